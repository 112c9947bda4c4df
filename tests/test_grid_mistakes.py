"""Mistakes in a grid: each ends with exit code 2 and one line that names the file, the line, and what is legal."""

from __future__ import annotations

import bz2
import copy
import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard
from conftest import Cli
from hypothesis import given, settings
from hypothesis import strategies as st
from own_plugins import own_plugins

from ablate.cli import main
from ablate.errors import UserError
from ablate.grid import load_grid
from ablate.plan import make_plan
from ablate.spec import TrialSpec

GRID = """\
study: demo
base:
  arch:
    d_model: 16
    n_heads: 2
    depth: 1
  data: {corpus: kjv, seq_len: 16}
  train:
    tokens: 6400
    batch_tokens: 256
variants:
  plain: {}
  rope: rope
"""
STUDY, DEPTH, DATA, BATCH = "study: demo", "depth: 1", "{corpus: kjv, seq_len: 16}", "batch_tokens: 256"
VARIANTS = "  plain: {}\n  rope: rope\n"
TEXT = "".join(f"line {i} says {i * i % 97} things of {i % 7} kinds\n" for i in range(300))

# what it is called; what of GRID to replace ("" appends); by what, `#!` in the line to be named; words of the message
MISTAKES: list[tuple[str, str, str, tuple[str, ...]]] = [
    # the file
    ("top-level key", STUDY, f"{STUDY}\nseed: 3 #!", ("unknown key 'seed'", "did you mean 'seeds'?", "variants")),
    ("key that is a number", STUDY, "1: 2 #!", ("unknown key '1'", "study")),
    ("study's name", STUDY, "study: a/b #!", ("'a/b'", "letters, digits", "to name a folder")),
    ("not YAML", DEPTH, "depth: [1\nx: 2 #!", ("not YAML", "expected ','")),
    ("tab", STUDY, "\tstudy: demo #!", ("not YAML", "'\\t'")),
    ("two documents", STUDY, f"{STUDY}\n--- #!\nstudy: two", ("not YAML", "another document")),
    ("control character", STUDY, f"{STUDY}\nseeds: \x07 #!", ("not YAML", "U+0007")),
    ("not a mapping", GRID, "- a #!\n", ("a grid is a mapping with the keys study, base, variants",)),
    ("empty file", GRID, "#!\n", ("a grid is a mapping with the keys study, base", "`variants: [baseline, rope]`")),
    ("duplicate key", DEPTH, f"{DEPTH}\n    depth: 2 #!", ("base.arch.depth", "given twice, first in line 6")),
    ("merge key", DEPTH, f"{DEPTH}\n    <<: {{bias: false}} #!", ("merge keys", "write the keys out")),
    ("alias in itself", DEPTH, "depth: &a [*a] #!", ("an alias contains itself",)),
    ("unknown alias", DEPTH, "depth: *a #!", ("not YAML", "undefined alias 'a'")),
    ("tag", DEPTH, "depth: !!python/tuple [1] #!", ("tags (!!python/tuple) are not supported",)),
    ("key that is a list", DEPTH, "? [a] #!\n    : 1", ("a key must be plain text",)),
    # base
    ("base is a list", GRID, "base: [1] #!\n", ("base", "[1] must be a mapping")),
    ("section", "  arch:", "  data_: {} #!\n  arch:", ("unknown key 'data_'", "did you mean 'data'?", "preset")),
    ("field without its section", "  arch:", "  lr: 1e-3 #!\n  arch:", ("unknown key 'lr'", "train.lr")),
    ("section is a number", GRID, "base:\n  arch: 3 #!\n", ("base.arch", "3 must be a mapping")),
    ("field", DEPTH, "dept: 1 #!", ("unknown key 'dept'", "did you mean 'depth'?", "n_heads")),
    (
        "preset",
        "base:\n",
        "base:\n  preset: gtp2 #!\n",
        ("unknown variant 'gtp2'", "did you mean 'gpt2'?", "near: gpt2"),
    ),
    ("preset is a list", "base:\n", "base:\n  preset: [gpt2] #!\n", ("['gpt2'] must be the name of a preset",)),
    # components
    (
        "component",
        DEPTH,
        "position: ropee #!",
        ("unknown position 'ropee'", "did you mean 'rope'?", "alibi, binary"),
    ),
    (
        "option of a component",
        DEPTH,
        "position:\n      name: rope\n      bas: 3 #!",
        ("base.arch.position.bas", "unknown option of position 'rope': 'bas'", "did you mean 'base'?"),
    ),
    (
        "option of a component that has none",
        DEPTH,
        "position: {name: none, base: 3} #!",
        ("position.base", "'none' takes no options"),
    ),
    (
        "component without a name",
        DEPTH,
        "norm: {eps: 1} #!",
        ("must be the name of a norm", "{name: ..., option: ...}"),
    ),
    ("component is a list", DEPTH, "norm: [layernorm] #!", ("['layernorm']", "must be the name of a norm")),
    (
        "option's type",
        DEPTH,
        "sublayers:\n      f: ffn\n      s: {name: attention, dropout: much} #!",
        ("base.arch.sublayers.s.dropout", "'much' is text, must be float"),
    ),
    (
        "option's choice",
        DEPTH,
        "sublayers: {f: {name: ffn, activation: reluu}} #!",
        ("sublayers.f.activation", "unknown value 'reluu'", "did you mean 'relu'?", "softplus"),
    ),
    (
        "option's range",
        DEPTH,
        "sublayers: {f: {name: ffn, dropout: 1.5}} #",
        ("variant 'plain': channel 'ffn': dropout 1.5 must be from 0 to 1",),
    ),
    ("sublayers", DEPTH, "sublayers: attention #!", ("mapping of letters to sublayers", "{s: attention, f: ffn}")),
    ("sublayer's letter", DEPTH, "sublayers: {ss: attention} #!", ("'ss' must be a single letter",)),
    ("sublayer", DEPTH, "sublayers: {s: attentive} #!", ("unknown mixer or channel 'attentive'", "lstm", "glu")),
    ("optimizer", BATCH, f"{BATCH}\n    optimizer: adamm #!", ("unknown optimizer 'adamm'", "did you mean 'adam'?")),
    (
        "optimizer's range",
        BATCH,
        f"{BATCH}\n    optimizer: {{name: adam, beta1: 2}} #!",
        ("optimizer 'adam'", "Invalid beta", "2.0"),
    ),
    (
        "schedule",
        BATCH,
        f"{BATCH}\n    schedule: cos #!",
        ("unknown schedule 'cos'", "did you mean 'cosine'?", "wsd"),
    ),
    ("task", DATA, "{task: lmm} #!", ("unknown task 'lmm'", "known: classify, denoise")),
    # types and values of fields
    ("text for a number", DEPTH, "depth: many #!", ("'many' is text, must be int",)),
    ("list for a number", DEPTH, "depth: [1, 2] #!", ("[1, 2] is a list, must be int",)),
    ("bool for a number", DEPTH, "depth: true #!", ("True is bool, must be int",)),
    ("fraction for a count", DEPTH, "depth: 1.0 #!", ("1.0 is float, must be int",)),
    ("number for a bool", DEPTH, "bias: 1 #!", ("1 is int, must be bool",)),
    ("YAML 1.1's yes", DEPTH, "bias: yes #!", ("'yes' is text, must be bool",)),
    ("null", DEPTH, "depth: #!", ("None is null, must be int",)),
    ("no depth", DEPTH, "depth: 0 #!", ("base.arch.depth", "0 must be at least 1")),
    ("heads", "n_heads: 2", "n_heads: 3 #!", ("3 does not divide d_model 16", "1, 2, 4, 8, 16", "d_head")),
    ("unknown letter", DEPTH, "order: sfx #!", ("unknown sublayer 'x'", "known: c, f, s")),
    ("empty order", DEPTH, "order: '' #!", ("is empty", "at least one sublayer")),
    ("negative lr", BATCH, f"{BATCH}\n    lr: -1e-3 #!", ("base.train.lr", "-0.001 must be positive")),
    ("infinite lr", BATCH, f"{BATCH}\n    lr: .inf #!", ("must be a finite number",)),
    ("not a number", BATCH, f"{BATCH}\n    weight_decay: .nan #!", ("must be a finite number",)),
    ("dropout", BATCH, f"{BATCH}\n    dropout: 1.5 #!", ("1.5 must be at least 0 and below 1",)),
    ("negative decay", BATCH, f"{BATCH}\n    weight_decay: -1 #!", ("-1.0 must not be negative",)),
    ("precision", BATCH, f"{BATCH}\n    precision: fp16 #!", ("unknown precision 'fp16'", "auto, bf16, fp32")),
    ("batch_tokens", BATCH, "batch_tokens: 250 #!", ("not a multiple of seq_len 16", "try 240 or 256")),
    (
        "batch_tokens and accumulate",
        BATCH,
        f"{BATCH} #!\n    accumulate: 3",
        ("seq_len 16 x accumulate 3", "try 240 or 288"),
    ),
    ("less than a batch", "tokens: 6400", "tokens: 100 #!", ("100 is less than one batch of 256 tokens",)),
    ("gpus", BATCH, f"{BATCH}\n  resources: {{gpus: -1}} #!", ("base.resources.gpus", "must not be negative")),
    (
        "error between two sections",  # batch_tokens is a default: the place is in the section that was given
        GRID,
        "base:\n  data: {seq_len: 100} #!\n",
        ("train.batch_tokens", "4096 is not a multiple of seq_len 100", "try 4000 or 4100"),
    ),
    # architectures
    ("odd head", DEPTH, "d_head: 7\n    position: rope #", ("rotates pairs", "d_head 7 must be even")),
    (
        "position without effect",
        VARIANTS,
        "  plain: {}\n  b: rope+lstm #!\n",
        ("variant 'b'", "position 'rope' has no effect", "lstm", "use position 'none'"),
    ),
    # variants
    ("no variants", "variants:\n" + VARIANTS, "variants: {} #!\n", ("is empty", "{baseline: {}}")),
    ("empty list of variants", "variants:\n" + VARIANTS, "variants: [] #!\n", ("is empty", "{baseline: {}}")),
    ("nothing under variants", "variants:\n" + VARIANTS, "variants: #!\n", ("is empty", "{baseline: {}}")),
    (
        "variants is a name",
        "variants:\n" + VARIANTS,
        "variants: rope #!\n",
        ("must be a mapping or a list of names",),
    ),
    (
        "variant",
        VARIANTS,
        "  a: {}\n  b: rop #!\n",
        ("unknown variant 'rop'", "did you mean 'rope'?", "`ablate list variant`"),
    ),
    ("variant in a list", VARIANTS, "- baseline\n- rop #!\n", ("unknown variant 'rop'", "'rope'?")),
    ("variant in a combination", VARIANTS, "- baseline\n- rmsnorm+rop #!\n", ("unknown variant 'rop'", "'rope'?")),
    ("twice in a list", VARIANTS, "- baseline\n- rope\n- rope #!\n", ("variant 'rope' is given twice",)),
    ("twice in a mapping", VARIANTS, "  a: {}\n  b: rope\n  a: rope #!\n", ("variants.a", "given twice", "line 12")),
    ("variant's name", VARIANTS, "  a: {}\n  b c: rope #!\n", ("'b c'", "letters, digits")),
    ("variant is a number", VARIANTS, "  a: {}\n  b: 3 #!\n", ("3 must be a mapping of dotted paths, or the name",)),
    (
        "use",
        VARIANTS,
        "  a: {}\n  b: {use: 3} #!\n",
        ("variants.b.use", "3 must be the name of a registered variant"),
    ),
    ("same path", VARIANTS, "- baseline\n- rope+alibi #!\n", ("'rope' and 'alibi' both set arch.position",)),
    ("preset not first", VARIANTS, "- baseline\n- rope+gpt2 #!\n", ("preset 'gpt2' must come first", "everything")),
    (
        "same as the baseline",
        VARIANTS,
        "  a: {}\n  b: {arch.position: learned} #!\n",
        ("variant 'b' has no effect", "same experiment as 'a'"),
    ),
    (
        "same as another",
        VARIANTS,
        "  a: {}\n  b: rope\n  c: {arch.position: rope} #!\n",
        ("variant 'c' has no effect", "same experiment as 'b'"),
    ),
    (
        "differs in resources alone",
        VARIANTS,
        "  a: {}\n  b: {resources.cpus: 2} #!\n",
        ("variant 'b' has no effect", "same experiment as 'a'"),
    ),
    (
        "same in one cell of the axes",
        VARIANTS,
        VARIANTS.replace("rope: rope", "rope: rope #!") + "axes: {arch.position: [learned, rope]}\n",
        ("'rope' has no effect at position=rope", "same experiment as 'plain'"),
    ),
    ("bare field", VARIANTS, "  a: {}\n  b: {position: rope} #!\n", ("did you mean 'arch.position'?",)),
    ("path", VARIANTS, "  a: {}\n  b:\n    arch.posit: rope #!\n", ("unknown key 'posit'", "'position'?")),
    ("path below a number", VARIANTS, "  a: {}\n  b: {arch.depth.x: 1} #!\n", ("only components have options",)),
    (
        "option of a registered variant",
        VARIANTS,
        "  a: {}\n  b: {use: rope, arch.position.bas: 3} #!\n",
        ("unknown option of position 'rope': 'bas'", "known: base"),
    ),
    # axes, sizes, budgets, match, seeds
    ("axis", "", "axes: {train.dropou: [0.1]} #!\n", ("unknown key 'dropou'", "did you mean 'dropout'?")),
    ("bare axis", "", "axes: {dropout: [0.1]} #!\n", ("did you mean 'train.dropout'?",)),
    ("empty axis", "", "axes: {train.dropout: []} #!\n", ("axes.train.dropout", "empty", "at least one value")),
    ("axis's value twice", "", "axes: {train.dropout: [0, 0.0]} #!\n", ("0 is in the list twice",)),
    ("axis without effect", "", "axes: {resources.cpus: [1, 2]} #!\n", ("same experiment", "cpus=1", "cpus=2")),
    ("axes is a list", "", "axes: [1] #!\n", ("axes", "[1] must be a mapping")),
    ("ladder", "", "sizes: lapto #!\n", ("unknown ladder 'lapto'", "did you mean 'laptop'?")),
    (
        "unequal sizes",
        "",
        "sizes: {arch.d_model: [16, 32], arch.depth: [1]} #!\n",
        ("in parallel", "arch.d_model has 2, arch.depth has 1"),
    ),
    ("empty sizes", "", "sizes: {} #!\n", ("dotted paths with lists, named sizes, or the name of a ladder",)),
    ("empty size list", "", "sizes: {arch.d_model: []} #!\n", ("sizes.arch.d_model", "at least one value")),
    ("size twice", "", "sizes: {arch.d_model: [16, 16]} #!\n", ("16 is in the list twice",)),
    ("named size", "", "sizes:\n  a: {d_model: 16} #!\n", ("did you mean 'arch.d_model'?",)),
    (
        "named sizes alike",
        "",
        "sizes: {a: {arch.depth: 1}, b: {arch.depth: 1}} #!\n",
        ("same experiment", "(plain, a) and (plain, b)"),
    ),
    ("two budgets", "", "budgets: {tokens: 1e5, flops: 1e9} #!\n", ("tokens and flops are given", "choose one of")),
    ("budget", "", "budgets: {token: [1e5]} #!\n", ("unknown budget 'token'", "tokens_per_param")),
    ("negative budget", "", "budgets: {tokens: [-5]} #!\n", ("budgets.tokens", "-5 must be a positive number")),
    ("endless budget", "", "budgets: {flops: .inf} #!\n", ("inf must be a positive number",)),
    ("small budget", "", "budgets: {flops: [1e4]} #!\n", ("flops 10000", "less than one batch of 256")),
    ("budgets alike", "", "budgets: {tokens: [6400, 6401]} #!\n", ("same experiment", "tokens=6401")),
    ("match", "", "match: param #!\n", ("unknown match 'param'", "did you mean 'params'?", "both, flops, none")),
    ("match is a list", "", "match: [params, flops] #!\n", ("unknown match", "both, flops, none, params")),
    ("tolerance", "", "tolerance: 1% #!\n", ("'1%' must be a fraction between 0 and 1",)),
    ("no tolerance", "", "tolerance: 0 #!\n", ("0 must be a fraction between 0 and 1",)),
    (
        "no sizes match",
        VARIANTS,
        "  a: {}\n  b: {arch.d_ff: 640, arch.depth: 1} #!\n",
        (
            "variant 'b'",
            "cannot be matched in params within 1%",
            "nearest: arch.d_model 8: params +74.8%",
            "match: none",
        ),
    ),
    ("no seeds", "", "seeds: 0 #!\n", ("no seeds", "at least 1")),
    ("empty seeds", "", "seeds: [] #!\n", ("no seeds", "at least 1")),
    ("seed twice", "", "seeds: [1, 1] #!\n", ("[1, 1] has a seed twice",)),
    ("seed is text", "", "seeds: [one] #!\n", ("a count, or a list of whole numbers from 0",)),
    ("seeds is a fraction", "", "seeds: 1.5 #!\n", ("a count, or a list of whole numbers from 0",)),
    ("seeds without end", "", "seeds: 1000000000 #!\n", ("a count up to 10000",)),
    # plugins
    ("plugin", "", "plugins:\n- none.py #!\n", ("none.py does not exist",)),
    ("plugin is a folder", "", "plugins: . #!\n", ("is not a file",)),
    ("plugin is a number", "", "plugins: [3] #!\n", ("3 must be the path of a Python file",)),
    ("plugin with a syntax error", "", "plugins: [syntax.py] #!\n", ("syntax.py:2: not Python",)),
    ("plugin that registers nothing", "", "plugins: [empty.py] #!\n", ("registers nothing", "@register(slot, name")),
    ("plugin with **options", "", "plugins: [stars.py] #!\n", ("stars.py:6: Stars", "no *args and no **kwargs")),
    ("plugin of an unknown slot", "", "plugins: [slot.py] #!\n", ("slot.py:5", "unknown slot 'mixr'", "'mixer'?")),
    ("plugin of a known name", "", "plugins: [taken.py] #!\n", ("mixer 'lstm' is already registered",)),
    (
        "plugin that cannot be imported",
        VARIANTS,
        "  a: {}\n  b: {arch.sublayers.s: lost} #!\nplugins: [lost.py]\n",
        ("variant 'b'", "lost.py cannot be imported", "No module named 'nowhere_to_be_found'"),
    ),
    (
        "plugin that raises",
        VARIANTS,
        "  a: {}\n  b: {arch.sublayers.s: raising} #!\nplugins: [raising.py]\n",
        ("variant 'b' cannot be built", "ZeroDivisionError: division by zero", "raising.py:7"),
    ),
    # data: where it is
    ("corpus", DATA, "{corpus: kjvv} #!", ("unknown corpus 'kjvv'", "did you mean 'kjv'?", "data.path")),
    ("two texts", DATA, "{corpus: kjv, path: x.txt} #!", ("from one place", "corpus and path are given")),
    ("missing file", DATA, "{path: none.txt} #!", ("none.txt does not exist",)),
    ("empty folder", DATA, "{path: hollow} #!", ("hollow holds no file that can be read as text",)),
    ("unknown format", DATA, "{path: a.pdf} #!", ("a.pdf", ".txt, .jsonl, .csv, .tsv, .parquet", ".zst")),
    ("no home", DATA, "{path: ~nobody-at-all/x.txt} #!", ("'~nobody-at-all/x.txt' is no path",)),
    ("split", DATA, "{path: {train: a, valid: b, tests: c}} #!", ("unknown split 'tests'", "valid")),
    ("no test split", DATA, "{path: {train: a, valid: b}} #!", ("has no 'test' file",)),
    ("fraction", DATA, "{valid: 0.5} #!", ("0.5 must be a fraction between 0 and 0.5",)),
    # data: what is in it
    ("not UTF-8", DATA, "{path: latin.txt} #!", ("latin.txt:3: not UTF-8: byte 0xe9", "iconv")),
    ("not gzip", DATA, "{path: false.txt.gz} #!", ("false.txt.gz: cannot be read", "gzip")),
    ("cut gzip", DATA, "{path: cut.txt.gz} #!", ("cut.txt.gz: cannot be read", "ended before")),
    ("broken gzip", DATA, "{path: bad.txt.gz} #!", ("bad.txt.gz: cannot be read", "CRC check failed")),
    ("not zstandard", DATA, "{path: false.txt.zst} #!", ("false.txt.zst: cannot be read",)),
    ("cut zstandard", DATA, "{path: cut.txt.zst} #!", ("cut.txt.zst: cannot be read", "ended before")),
    ("cut bzip2", DATA, "{path: cut.txt.bz2} #!", ("cut.txt.bz2: cannot be read", "ended before")),
    ("not JSON", DATA, "{path: bad.jsonl} #!", ("bad.jsonl:2: not JSON",)),
    ("row is a list", DATA, "{path: list.jsonl} #!", ("list.jsonl:1", "must be an object or text")),
    ("half a character", DATA, "{path: half.jsonl} #!", ("half.jsonl:1: holds U+D800",)),
    ("column", DATA, "{path: body.jsonl} #!", ("unknown column 'text'", "body", "data.column")),
    ("cell is a number", DATA, "{path: number.jsonl} #!", ("number.jsonl:2: column 'text' is 3",)),
    ("ragged CSV", DATA, "{path: ragged.csv} #!", ("ragged.csv:3: 1 columns", "header has 2")),
    ("column of Parquet", DATA, "{path: n.parquet, column: n} #!", ("row 1: column 'n' is 1",)),
    ("not Parquet", DATA, "{path: false.parquet} #!", ("false.parquet: not Parquet",)),
    ("empty text", DATA, "{path: empty.txt} #!", ("train split is empty: there is too little text",)),
    ("short text", DATA, "{path: text.txt, seq_len: 256, valid: 0.02} #!", ("data.seq_len", "too few for a window")),
    # tokenizers
    ("tokenizer", DATA, "{tokenizer: byte} #!", ("unknown tokenizer 'byte'", "bytes")),
    (
        "small bpe",
        DATA,
        "{tokenizer: {name: bpe, vocab: 100}} #!",
        ("data.tokenizer.vocab", "100 must be from 257 (256 bytes and <eos>)"),
    ),
    (
        "words that are all rare",
        DATA,
        "{path: rare.txt, tokenizer: {name: words, vocab: 9}} #!",
        ("tokenizer 'words' does not fit", "100% of the tokens are unknown", "larger vocabulary, or bytes or bpe"),
    ),
    ("no words", DATA, "{tokenizer: {name: words, vocab: 2}} #!", ("2 must be from 3",)),
    ("zero byte", DATA, "{path: zero.txt, tokenizer: bytes} #!", ("zero byte", "end of a document")),
    ("saved tokenizer", DATA, "{tokenizer: file} #!", ("needs the path of a saved tokenizer",)),
    (
        "missing saved tokenizer",
        DATA,
        "{tokenizer: {name: file, path: no.json}} #!",
        ("data.tokenizer.path", "no.json does not exist"),
    ),
    (
        "not a tokenizer",
        DATA,
        "{path: text.txt, tokenizer: {name: file, path: text.txt}} #!",
        ("data.tokenizer.path", "text.txt: not a saved tokenizer"),
    ),
    (
        "folder without a tokenizer",
        DATA,
        "{path: text.txt, tokenizer: {name: file, path: hollow}} #!",
        ("hollow: holds neither encoder.json and vocab.bpe nor vocab.json",),
    ),
]
FIRST_VARIANT = {"option's range": 12, "odd head": 13}  # found when the architecture is built: named by its variant

HEADER = "from ablate import Mixer, register\n\n\n"
PLUGINS = {
    "syntax.py": "import this\nx = (\n",
    "empty.py": "x = 1\n",
    "stars.py": HEADER
    + "@register('mixer', 'stars', paper='x')\nclass Stars(Mixer):\n    def __init__(self, **k): ...\n",
    "slot.py": HEADER + "@register('mixr', 'x', paper='x')\nclass Slot(Mixer): ...\n",
    "taken.py": HEADER + "@register('mixer', 'lstm', paper='x')\nclass Taken(Mixer): ...\n",
    "lost.py": "import nowhere_to_be_found\n"
    + HEADER
    + "@register('mixer', 'lost', paper='x')\nclass L(Mixer): ...\n",
    "raising.py": HEADER
    + "@register('mixer', 'raising', paper='x')\nclass R(Mixer):\n"
    + "    def forward(self, x, ctx):\n        return x / (1 / 0)\n",
}


@pytest.fixture(autouse=True)
def _own_plugins() -> Iterator[None]:
    with own_plugins():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a results folder and every kind of file that a grid may wrongly name."""
    folder = tmp_path_factory.mktemp("mistakes")
    packed = gzip.compress(TEXT.encode(), mtime=0)
    middle = len(packed) // 2
    files: dict[str, bytes | str] = {
        **PLUGINS,
        "text.txt": TEXT,
        "empty.txt": "",
        "rare.txt": "".join(f"word{i} {chr(0x4E00 + i)}\n" for i in range(2000)),
        "zero.txt": f"{TEXT}\0{TEXT}",
        "a.pdf": "%PDF",
        "latin.txt": "one\ntwo\ncaf\xe9\n".encode("latin-1"),
        "false.txt.gz": TEXT,
        "cut.txt.gz": packed[:middle],
        "bad.txt.gz": packed[:middle] + bytes([packed[middle] ^ 255]) + packed[middle + 1 :],
        "false.txt.zst": TEXT,
        "cut.txt.zst": zstandard.compress(TEXT.encode())[:-9],
        "cut.txt.bz2": bz2.compress(TEXT.encode())[:-9],
        "bad.jsonl": '{"text": "a"}\n{"text": \n',
        "list.jsonl": "[1]\n",
        "half.jsonl": json.dumps({"text": "\ud800"}),
        "body.jsonl": '{"body": "a"}\n',
        "number.jsonl": '{"text": "a"}\n{"text": 3}\n',
        "ragged.csv": "text,id\na,1\nb\n",
        "false.parquet": "PAR1",
    }
    (folder / "hollow").mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    pq.write_table(pa.table({"n": [1]}), folder / "n.parquet")
    return folder


@pytest.fixture
def tell(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`tell(text, ...)`: the message of `ablate plan` on a grid of that text, which must be refused."""

    def plan(text: str | bytes, *arguments: str, name: str = "grid.yaml") -> str:
        grid = folder / name
        grid.write_bytes(text if isinstance(text, bytes) else text.encode())
        code = main(["plan", str(grid), "--results", str(folder / "results"), *arguments])
        out, err = capsys.readouterr()
        assert (code, out) == (2, ""), out
        assert err.startswith("ablate: ") and err.count("\n") == 1 and "Traceback" not in err
        return err

    return plan


def mistaken(old: str, new: str) -> str:
    assert GRID.count(old) == 1 or not old
    return GRID.replace(old, new) if old else GRID + new


def marked_line(text: str) -> int:
    (line,) = [number for number, line in enumerate(text.splitlines(), 1) if "#!" in line]
    return line


def test_the_grid_itself_is_fine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every case below is one mistake away from a grid that can be planned."""
    (folder / "grid.yaml").write_text(GRID)
    assert main(["plan", str(folder / "grid.yaml"), "--results", str(folder / "results")]) == 0
    assert "2 trials" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "old", "new", "words"), MISTAKES, ids=[each[0] for each in MISTAKES])
def test_mistake(tell: Callable[..., str], name: str, old: str, new: str, words: tuple[str, ...]) -> None:
    text = mistaken(old, new)
    line = FIRST_VARIANT.get(name) or marked_line(text)
    message = tell(text)
    assert f"grid.yaml:{line}: " in message
    for word in words:
        assert word in message


OVERRIDES: list[tuple[str, tuple[str, ...]]] = [
    ("train.lr", ("'train.lr'", "write path=value", "--set train.lr=1e-3")),
    ("=3", ("write path=value",)),
    ("lr=3", ("unknown path 'lr'", "train.lr")),
    ("seed=3", ("unknown path 'seed'", "did you mean 'seeds'?")),
    ("base=3", ("unknown path 'base'", "arch", "variants")),
    ("train.lrr=3", ("train.lrr", "unknown key 'lrr'", "did you mean 'lr'?")),
    ("train.lr=x", ("train.lr: 'x' is text, must be float",)),
    ("train.lr=", ("train.lr: None is null, must be float",)),
    ("train.lr=[", ("'[' is not a YAML value",)),
    ("arch=3", ("3 must be a mapping",)),
    ("arch.position=ropee", ("unknown position 'ropee'", "did you mean 'rope'?")),
    ("base.preset=gtp2", ("unknown variant 'gtp2'", "did you mean 'gpt2'?")),
    ("seeds=0", ("seeds: there are no seeds",)),
    ("match.x=3", ("match is not a mapping", "set all of match")),
    ("sizes=lap", ("unknown ladder 'lap'", "did you mean 'laptop'?")),
    ("budgets.tokens=3", ("budgets.tokens", "less than one batch of 256")),
    ("variants.rope.arch.position=alibi", ("set the whole variant", "--set variants.rope={")),
    ("variants.rope=ropee", ("unknown variant 'ropee'",)),
]


@pytest.mark.parametrize(("override", "words"), OVERRIDES, ids=[each[0] for each in OVERRIDES])
def test_mistake_on_the_command_line(tell: Callable[..., str], override: str, words: tuple[str, ...]) -> None:
    """The message names the option and not a line: the mistake is not in the file."""
    message = tell(GRID + "match: params\n", "--set", override)
    assert message.startswith("ablate: --set") and not re.search(r"grid.yaml:\d", message)
    for word in words:
        assert word in message


def test_a_list_is_not_silently_replaced(tell: Callable[..., str]) -> None:
    text = "variants: [baseline, rope]\n"
    assert "variants is not a mapping" in tell(text, "--set", "variants.alibi=alibi")


def test_a_wrong_file(tell: Callable[..., str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(folder / "no.yaml")]) == 2
    assert f"{folder / 'no.yaml'} does not exist" in capsys.readouterr().err
    assert main(["plan", str(folder)]) == 2
    assert "is a folder, not a file" in capsys.readouterr().err
    assert "grid.yaml:2: not UTF-8 text: byte 0xe9" in tell(b"study: x\n# caf\xe9\n")
    assert "my grid.yaml:2: study: 'my grid' must be letters" in tell(GRID.replace(STUDY, "# x"), name="my grid.yaml")
    assert "not YAML" in tell("[" * 5000)


def test_an_impossible_head(tell: Callable[..., str], folder: Path) -> None:
    """An embedding without a table cannot be tied to; no built-in one is like that."""
    (folder / "untable.py").write_text(
        "from ablate import Embedding, register\nimport torch\n\n\n"
        "@register('embedding', 'untable', paper='x')\nclass Untable(Embedding):\n    '''Zeros.'''\n\n"
        "    def __init__(self, site):\n        super().__init__(site)\n        self.d = site.d_model\n\n"
        "    def forward(self, tokens):\n        return torch.zeros(*tokens.shape, self.d, device=tokens.device)\n"
    )
    text = mistaken(VARIANTS, "  a: {}\n  b: {arch.embedding: untable} #!\nplugins: [untable.py]\n")
    message = tell(text)
    assert f"grid.yaml:{marked_line(text)}: " in message
    assert "embedding 'untable' does not have: set arch.head.tied to false" in message


@pytest.mark.parametrize("name", ["component", "not JSON", "plugin that raises"])
def test_run_refuses_before_training(cli: Cli, folder: Path, tmp_path: Path, name: str) -> None:
    """`ablate run` in a process of its own: the same message, and nothing that looks like a trial is left."""
    (case,) = [each for each in MISTAKES if each[0] == name]
    _, old, new, words = case
    grid = folder / "grid.yaml"
    grid.write_text(text := mistaken(old, new))
    done = cli("run", grid, "--results", tmp_path / "results")
    assert done.returncode == 2 and done.stderr.startswith("ablate: ") and "Traceback" not in done.stderr
    assert f"grid.yaml:{marked_line(text)}: " in done.stderr
    assert all(word in done.stderr for word in words)
    assert not list((tmp_path / "results").glob("trials/*"))


# --- anything at all in a grid ends with a plan or with a message

SMALL = """\
study: fuzz
base:
  arch: {d_model: 16, n_heads: 2, depth: 1, position: {name: rope, base: 100.0}, sublayers: {s: attention, f: ffn}}
  data: {path: text.txt, tokenizer: bytes, seq_len: 16, valid: 0.1}
  train: {tokens: 6400, batch_tokens: 256, lr: 1e-3, schedule: {name: cosine, warmup: 0.1}, dropout: 0.1}
variants:
  plain: {}
  alibi: alibi
  short: {data.seq_len: 8, arch.n_heads: 1}
  both: {use: rmsnorm+swiglu, train.lr: 2e-3}
axes: {train.weight_decay: [0.0, 0.1]}
sizes: {arch.d_model: [16, 24], arch.depth: [1, 2]}
budgets: {tokens: [6400, 12800]}
match: params
tolerance: 0.05
seeds: 2
"""
VALUES = (
    *(0, 1, 2, 3, 16, -1, 0.5, 1e-3, 1e400, float("nan"), 10**400, None, True, "", "x", "s", "rope", "rope+alibi"),
    *(
        "params",
        "arch.depth",
        "train.lr",
        "\0",
        "é",
        [],
        {},
        [1, 2],
        [[1]],
        {"a": 1},
        {"name": "rope"},
        {"name": [1]},
    ),
    *(
        {"arch.depth": 2},
        {"arch.position": "none"},
        {"arch": {"depth": 2}},
        {1: 2},
        [{"name": "t5"}],
        ["baseline", "rope"],
    ),
)
TOKEN = re.compile(r"[A-Za-z0-9_.+-]+|[^A-Za-z0-9_.+-]")
SCRAPS = (
    "",
    "- ",
    ": ",
    "\n",
    "\t",
    "{",
    "}",
    "[",
    "]",
    "'",
    '"',
    "#",
    "|",
    "&a",
    "*a",
    "!t",
    "<<",
    "\x07",
    "\u2028",
    "1_0",
)


@st.composite
def mutated_text(draw: st.DrawFn) -> str:
    """SMALL with a few tokens deleted, doubled, or replaced."""
    tokens = TOKEN.findall(SMALL)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(tokens) - 1))
        tokens[at] = draw(st.sampled_from((tokens[at] * 2, *SCRAPS)))
    return "".join(tokens)


@st.composite
def mutated_tree(draw: st.DrawFn) -> str:
    """SMALL with one value, or two, replaced or deleted, or put under another key."""
    tree = yaml.safe_load(SMALL)
    for _ in range(draw(st.integers(1, 2))):
        place, key = draw(st.sampled_from(list(places(tree))))
        match draw(st.sampled_from(("replace", "replace", "delete", "rename"))):
            case "replace":
                place[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
            case "delete":
                del place[key]
            case "rename" if isinstance(place, dict):
                place[draw(st.sampled_from(("x", "base", "rope", "arch.d_ff", "train.lr", "", 3)))] = place.pop(key)
        if not tree:
            break
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every mapping and list in a tree with each of its keys."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from places(tree[key])


def all_specs(text: str, folder: Path) -> Iterator[TrialSpec]:
    file = folder / "grid.yaml"
    file.write_text(text, encoding="utf-8")
    grid = load_grid(file)
    for size in grid.sizes:
        for axes in grid.axes:
            draft = grid.base.copy()
            draft.lay(size.settings, size.origin)
            draft.lay(axes.settings, axes.origin)
            for variant in grid.variants:
                yield variant.lay_on(draft).spec()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=mutated_text() | mutated_tree())
def test_any_text_is_a_grid_or_a_message(folder: Path, text: str) -> None:
    try:
        specs = list(all_specs(text, folder))
    except UserError as error:
        assert str(error).startswith(str(folder / "grid.yaml")) and "\n" not in str(error)
    else:
        assert specs


def test_the_fuzzed_grid_is_fine(folder: Path) -> None:
    assert len(list(all_specs(SMALL, folder))) == 2 * 2 * 4
    assert len(make_plan(load_grid(folder / "grid.yaml"), folder / "results" / "cache").trials) == 2 * 2 * 4 * 2 * 2


@settings(max_examples=50, deadline=None, derandomize=True)
@given(text=mutated_tree())
def test_any_grid_is_a_plan_or_a_message(folder: Path, text: str) -> None:
    file = folder / "grid.yaml"
    file.write_text(text, encoding="utf-8")
    try:
        plan = make_plan(load_grid(file), folder / "results" / "cache")
    except UserError as error:
        assert str(error).startswith(str(file))
    else:
        assert len(plan.trials) == len(plan.rows) * len(plan.grid.seeds) > 0


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    path=st.lists(
        st.sampled_from(("base", "arch", "train", "sizes", "variants", "seeds", "lr", "x", "")), max_size=4
    ),
    value=st.sampled_from(VALUES).map(str) | st.sampled_from(SCRAPS),
)
def test_any_override_is_taken_or_refused(folder: Path, path: list[str], value: str) -> None:
    file = folder / "grid.yaml"
    file.write_text(SMALL, encoding="utf-8")
    try:
        load_grid(file, [f"{'.'.join(path)}={value}"])
    except UserError as error:
        assert str(error).startswith(("--set", str(file)))
