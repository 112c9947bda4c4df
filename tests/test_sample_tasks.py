"""`ablate sample` on trials of every task that generates: what a prompt means, what comes out, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from runs import new_results, run_here, train

from ablate import registry
from ablate.run.ledger import TrialFolder
from ablate.spec import TrialSpec, parse

PIECES = [[[60 + n, 64 + n], [], [55 + n % 7]] for n in range(30)]
ROWS = [f"{' '.join('abcd'[(n * 3 + k) % 4] for k in range(1 + n % 3))}\t{'ABCD'[n % 4]}" for n in range(60)]
TRAIN = {"tokens": 768, "batch_tokens": 64, "precision": "fp32", "eval_points": 2, "eval_tokens": 64}
DATA: dict[str, dict[str, Any]] = {
    "music": {"data": {"path": "pieces.json", "seq_len": 16}},
    "copy": {"data": {"task": {"name": "formal", "language": "copy", "train_length": 4}, "seq_len": 16}},
    "sums": {"data": {"task": {"name": "formal", "language": "modular_addition", "modulus": 7}, "seq_len": 4}},
    "seq2seq": {
        "arch": {"encoder": True},
        "data": {"path": "rows.tsv", "tokenizer": "symbols", "seq_len": 8, "valid": 0.2, "test": 0.2},
    },
    "denoise": {
        "arch": {"model": {"name": "dit", "patch": 4}},
        "data": {"task": {"name": "denoise", "steps": 50, "samples": 0, "sample_steps": 2}, "corpus": "digits"},
        "train": {"tokens": 64, "batch_tokens": 16},
    },
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, token_cache: Path) -> Callable[..., tuple[int, str]]:
    """`said(name, options)`: what the command says of a trial of `DATA`."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "pieces.json").write_text(json.dumps({"train": PIECES, "valid": PIECES[:5], "test": PIECES[:5]}))
    (folder / "rows.tsv").write_text("\n".join(["source\ttarget", *ROWS]))
    ledger = new_results(folder / "results", token_cache)
    found: dict[str, TrialFolder] = {}

    def say(name: str, *options: object) -> tuple[int, str]:
        if name not in found:
            tree = DATA[name]
            made: TrialSpec = parse(
                TrialSpec,
                {
                    "arch": {"d_model": 16, "n_heads": 2, "depth": 1, **tree.get("arch", {})},
                    "data": {"task": name, **tree["data"]},
                    "train": {**TRAIN, **tree.get("train", {})},
                },
            )
            task = registry.load(registry.find("task", made.data.task.name))
            found[name] = train(ledger, replace(made, data=task.resolve(made.data, folder)))
            assert found[name].status() == "finished", found[name].record()
        return run_here("sample", found[name].id, "--results", ledger.root, *options)

    return say


def samples(answer: tuple[int, str]) -> list[str]:
    assert answer[0] == 0, answer[1]
    return json.loads(answer[1])["samples"]  # type: ignore[no-any-return]


def test_music(said: Callable[..., tuple[int, str]]) -> None:
    two = samples(said("music", "--json", "--count", 2))
    assert two[0] != two[1]
    for text in two:
        assert all(0 <= pitch <= 127 for step in json.loads(text) for pitch in step)
    (text,) = samples(said("music", "--json", "--prompt", "[[60, 64], [], [55, -1, 67.0]]", "--length", 5))
    assert json.loads(text)[:3] == [[64, 60], [], [67, 55]]
    assert sum(len(step) + 1 for step in json.loads(text)) <= 7 + 5 + 1  # the last has no end


def test_formal_languages(said: Callable[..., tuple[int, str]]) -> None:
    (text,) = samples(said("copy", "--json", "--prompt", "1 2 |"))
    asked, _, answer = text.partition(" -> ")
    assert asked == "1 2 |" and set(answer.split()) <= {*"01234567", "|"}
    assert samples(said("copy", "--json", "--prompt", "1 2 |")) == [text]  # greedily
    asked, _, _ = samples(said("copy", "--json"))[0].partition(" -> ")
    assert asked.endswith(" |") and asked.count("|") == 1
    for options in ([], ["--prompt", "3 + 5 ="]):
        asked, _, answer = samples(said("sums", "--json", *options))[0].partition(" -> ")
        assert asked.split()[1::2] == ["+", "="] and len(answer.split()) == 1
    assert len({*samples(said("sums", "--json", "--count", 30, "--temperature", 9))}) > 1


def test_sequence_to_sequence(said: Callable[..., tuple[int, str]]) -> None:
    (text,) = samples(said("seq2seq", "--json", "--prompt", "a b"))
    assert text.startswith("a b -> ")
    assert samples(said("seq2seq", "--json", "--prompt", "a b", "--greedy")) == [text]
    three = samples(said("seq2seq", "--json", "--prompt", "a b", "--beam", 4, "--count", 3))
    assert len(set(three)) == 3 and all(each.startswith("a b -> ") for each in three)


def test_images(said: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, printed = said("denoise", "--out", tmp_path / "a.png", "--count", 12, "--prompt", "3")
    assert code == 0 and "12 images of class 3" in printed
    with Image.open(tmp_path / "a.png") as image:
        assert image.size[0] > 10 * 8 and image.size[1] > 2 * 8
    code, _ = said("denoise", "--out", tmp_path / "b.png", "--count", 12, "--prompt", "3", "--seed", 1)
    assert code == 0 and (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("music", ["--prompt", "[[60"], "is not JSON"),
        ("music", ["--prompt", "[60]"], "the prompt, step 1: 60 must be a list of pitches"),
        ("music", ["--prompt", "[[60], [128]]"], "the prompt, step 2: 128 is no pitch"),
        ("music", ["--prompt", json.dumps([[60, 64, 67]] * 9)], "the prompt is too long"),
        ("music", ["--out", "a.png"], "--out has no effect"),
        ("copy", ["--prompt", "1 x"], "unknown symbol 'x'"),
        ("copy", ["--prompt", " "], "unknown symbol ''"),
        ("copy", ["--prompt", "1 " * 17], "the prompt is too long"),
        ("copy", ["--count", 2], "greedy decoding says one thing"),
        ("sums", ["--length", 2], "asks for one symbol"),
        ("seq2seq", ["--prompt", "a z"], "does not know 'z'"),
        ("seq2seq", ["--prompt", "a " * 9], "the prompt is too long"),
        ("denoise", [], "give --out FILE.png"),
        ("denoise", ["--out", "a.png", "--top-k", 3], "no effect"),
        ("denoise", ["--out", "a.png", "--prompt", "cat"], "unknown class 'cat'"),
    ],
)
def test_bad_input(said: Callable[..., tuple[int, str]], name: str, options: list[object], message: str) -> None:
    code, printed = said(name, *options)
    assert code == 2
    assert message in printed and printed.startswith("ablate: ") and printed.count("\n") == 1
