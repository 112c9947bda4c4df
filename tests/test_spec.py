"""Specifications: strict to parse, written out whole, identical when they mean the same; and their registry."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_plugins import own_plugins

from ablate import registry
from ablate.errors import SpecError, UserError
from ablate.registry import KINDS, add_plugin, catalogue, find, load, make, syntax_hash
from ablate.signatures import accept
from ablate.spec import (
    ArchSpec,
    Component,
    DataSpec,
    Resources,
    TrainSpec,
    TrialSpec,
    canonical,
    digest,
    parse,
    parse_component,
    to_tree,
)

RESOLVED = TrialSpec(data=DataSpec(content="abc"), train=TrainSpec(precision="fp32"))


@pytest.fixture(autouse=True)
def _own_plugins() -> Iterator[None]:
    with own_plugins():
        yield


# --- any specification


def values(kind: str) -> st.SearchStrategy[Any]:
    """Values of an option's type, as written."""
    if kind.startswith("Literal"):
        return st.sampled_from(ast.literal_eval(kind.removeprefix("Literal")))
    return {
        "int": st.integers(1, 50),
        "float": st.floats(0, 1),
        "bool": st.booleans(),
        "str": st.text(max_size=5),
        "int | None": st.none() | st.integers(1, 50),
        "list[int] | None": st.none() | st.lists(st.integers(1, 50), max_size=3),
        "float | None": st.none() | st.floats(0, 1),
    }[kind]


ENTRIES = {slot: catalogue(slot) for slot in KINDS}


@st.composite
def components(draw: st.DrawFn, *slots: str) -> Any:
    """The tree of any registered component: its name, or its name with some of its options."""
    entry = draw(st.sampled_from([entry for slot in slots for entry in ENTRIES[slot]]))
    options = {each.name: draw(values(each.type)) for each in entry.options if draw(st.booleans())}
    return {"name": entry.name, **options} if options or draw(st.booleans()) else entry.name


SLOTS = ("embedding", "position", "norm", "residual", "stack", "sharing", "init", "head")


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    """A trial as a plain tree, with any of its fields."""
    heads, head = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    window, batch = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    optional: dict[str, dict[str, st.SearchStrategy[Any]]] = {
        "arch": {
            "d_ff": st.integers(1, 99),
            "depth": st.integers(1, 9),
            "order": st.text("sfq", min_size=1, max_size=6),
            "bias": st.booleans(),
            **{slot: components(slot) for slot in SLOTS},
        },
        "data": {
            "corpus": st.just("kjv"),
            "column": st.text(max_size=3),
            "tokenizer": components("tokenizer"),
            "valid": st.floats(0.01, 0.49),
            "test": st.floats(0.01, 0.49),
            "content": st.text(max_size=3),
        },
        "train": {
            "tokens": st.integers(64, 10**9),
            "optimizer": components("optimizer"),
            "schedule": components("schedule"),
            "lr": st.floats(1e-9, 1) | st.just(1),
            "clip": st.none() | st.floats(0.1, 2),
            "dropout": st.floats(0, 1, exclude_max=True),
            "precision": st.sampled_from(("auto", "fp32", "bf16")),
        },
        "resources": {
            "cpus": st.integers(1, 64),
            "gpus": st.none() | st.floats(0, 8),
            "memory": st.none() | st.integers(1, 10**12) | st.sampled_from(("8 GB", "1.5GiB", "200 MB")),
            "custom": st.dictionaries(st.sampled_from(("tpu", "label")), st.sampled_from((0.01, 1, 4)), max_size=2),
        },
    }
    tree: dict[str, Any] = {
        section: {name: draw(each) for name, each in fields.items() if draw(st.booleans())}
        for section, fields in optional.items()
    }
    tree["arch"] |= {"d_model": heads * head, "n_heads": heads}
    tree["arch"]["sublayers"] = {letter: draw(components("mixer", "channel")) for letter in "sfq"}
    tree["data"]["seq_len"], tree["train"]["batch_tokens"] = window, window * batch
    return {**tree, "seed": draw(st.integers(0, 9))}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(tree=trees())
def test_round_trip(tree: dict[str, Any]) -> None:
    """What is written out is parsed back, through JSON too, and written the same."""
    spec = parse(TrialSpec, tree)
    written = to_tree(spec)
    assert parse(TrialSpec, written) == spec
    assert parse(TrialSpec, json.loads(json.dumps(written))) == spec
    assert to_tree(parse(TrialSpec, written)) == written
    for section in ("arch", "data", "train", "resources"):
        assert tree[section].keys() <= written[section].keys()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(one=trees(), two=trees())
def test_ids_are_those_of_the_meaning(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Equal canonical trees have equal ids, different ones different ids; and an id holds no more than it must."""
    specs = []
    for tree in (one, two):
        spec = parse(TrialSpec, tree)
        data = replace(spec.data, content="abc", corpus="kjv", column="text")
        specs.append(replace(spec, data=data, train=replace(spec.train, precision="fp32"), resources=Resources()))
    assert (specs[0] == specs[1]) == (specs[0].trial_id == specs[1].trial_id)
    elsewhere = replace(specs[0].data, corpus=None, path="/somewhere/else.txt", column="body")
    moved = replace(specs[0], data=elsewhere, resources=Resources(cpus=7))
    assert moved.trial_id == specs[0].trial_id
    other = replace(specs[0], seed=specs[0].seed + 1)
    assert other.trial_id != specs[0].trial_id and other.group_id == specs[0].group_id


def test_canonical_drops_defaults() -> None:
    """A field or an option at its default leaves no trace, so that a new option keeps old ids."""
    assert canonical(RESOLVED) == canonical(parse(TrialSpec, to_tree(RESOLVED)))
    tree = canonical(RESOLVED)
    assert tree["train"] == {
        "precision": "fp32",
        "optimizer": {"name": "adamw", "version": 1},
        "schedule": {"name": "cosine", "version": 1},
    }
    assert set(tree["arch"]) == {*SLOTS, "sublayers", "d_head", "d_ff"}  # these two are derived from the width
    changed = parse(
        TrialSpec, {**to_tree(RESOLVED), "arch": {"position": {"name": "rope", "base": 5}, "order": "ss"}}
    )
    assert canonical(changed)["arch"]["position"] == {"name": "rope", "version": 1, "base": 5.0}
    assert canonical(changed)["arch"]["sublayers"] == {"s": {"name": "attention", "version": 1}}  # f is not in use


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({}, {"d_ff": 512, "d_head": 32, "depth": 4}),
        ({"position": "rope"}, {"position": {"name": "rope", "base": 10_000}}),
        ({"order": "s"}, {"order": "s", "sublayers": {"f": "glu"}}),
        ({"norm": {"name": "rmsnorm", "eps": 1}}, {"norm": {"eps": 1.0, "name": "rmsnorm"}}),
    ],
)
def test_the_same_architecture(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert parse(ArchSpec, one) == parse(ArchSpec, two)


def test_no_identity_before_data_and_precision_are_known() -> None:
    for spec in (TrialSpec(), replace(RESOLVED, data=DataSpec()), replace(RESOLVED, train=TrainSpec())):
        with pytest.raises(ValueError, match="before its data and precision are resolved"):
            _ = spec.trial_id


def test_digest_does_not_depend_on_order() -> None:
    assert digest({"a": 1, "b": [1, {"c": 2, "d": 3}]}) == digest({"b": [1, {"d": 3, "c": 2}], "a": 1})
    assert digest([1, 2]) != digest([2, 1])
    assert len(digest({})) == 12 and int(digest({}), 16) >= 0


WRONG: list[tuple[type, Any, str, str]] = [
    (TrialSpec, 3, "", "3 must be a mapping"),
    (TrialSpec, {"arc": {}}, "arc", "unknown key 'arc'; did you mean 'arch'?"),
    (TrialSpec, {"seed": "1"}, "seed", "'1' is text, must be int"),
    (TrialSpec, {"arch": {"norm": {"name": "layernorm", "eps": "x"}}}, "arch.norm.eps", "must be float"),
    (TrialSpec, {"data": {"seq_len": 100}}, "train.batch_tokens", "4096 is not a multiple of seq_len 100"),
    (ArchSpec, {"depth": True}, "depth", "True is bool, must be int"),
    (ArchSpec, {"d_model": 2.0}, "d_model", "2.0 is float, must be int"),
    (ArchSpec, {"d_ff": 0}, "d_ff", "0 must be at least 1"),
    (ArchSpec, {"n_heads": 3}, "n_heads", "3 does not divide d_model 128"),
    (ArchSpec, {"order": "sx"}, "order", "unknown sublayer 'x'; known: c, f, s"),
    (ArchSpec, {"order": ""}, "order", "at least one sublayer"),
    (
        ArchSpec,
        {"sublayers": {"s": {"name": "attention", "heads": 3}}},
        "sublayers.s.heads",
        "unknown option of mixer",
    ),
    (ArchSpec, {"sublayers": {"s": "rope"}}, "sublayers.s", "unknown mixer or channel 'rope'"),
    (ArchSpec, {"norm": None}, "norm", "must be the name of a norm"),
    (DataSpec, {"path": {"train": "a"}}, "path", "has no 'valid' file"),
    (DataSpec, {"path": ["a"]}, "path", "is a list, must be str | None"),
    (DataSpec, {"path": "a", "hub": "b"}, "hub", "one place"),
    (DataSpec, {"test": 0.5}, "test", "between 0 and 0.5"),
    (TrainSpec, {"lr": 0}, "lr", "must be positive"),
    (TrainSpec, {"clip": 0}, "clip", "must be positive"),
    (TrainSpec, {"dropout": 1}, "dropout", "at least 0 and below 1"),
    (TrainSpec, {"tokens": 1}, "tokens", "less than one batch"),
    (TrainSpec, {"precision": "fp8"}, "precision", "known: auto, bf16, fp32"),
    (TrainSpec, {"accumulate": 0}, "accumulate", "at least 1"),
    (Resources, {"cpus": 0}, "cpus", "at least 1"),
]


@pytest.mark.parametrize(
    ("cls", "tree", "path", "words"), WRONG, ids=[f"{each[0].__name__}-{each[2]}" for each in WRONG]
)
def test_strictness(cls: type, tree: Any, path: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(cls, tree)
    assert ".".join(caught.value.path) == path and words in caught.value.problem


def test_paths_of_splits() -> None:
    data = parse(DataSpec, {"path": {"valid": "b", "train": "a", "test": "c"}})
    assert data.path == (("test", "c"), ("train", "a"), ("valid", "b")) and data.corpus is None
    assert to_tree(data)["path"] == {"train": "a", "valid": "b", "test": "c"}


# --- types

ACCEPTED = [
    ("int", 3, 3),
    ("float", 3, 3.0),
    ("float", -0.5, -0.5),
    ("bool", False, False),
    ("str", "", ""),
    ("int | None", None, None),
    ("float | None", 2, 2.0),
    ("int | float", 2, 2),
    ("list[float]", [1, 2.5], [1.0, 2.5]),
    ("list[int] | None", (1, 2), [1, 2]),
    ("Literal['a', 'b']", "b", "b"),
    ("Literal[1, 2] | None", None, None),
]
REFUSED = [
    ("int", True, "True is bool, must be int"),
    ("int", 1.0, "1.0 is float, must be int"),
    ("int", "1", "'1' is text, must be int"),
    ("float", False, "False is bool, must be float"),
    ("float", None, "None is null, must be float"),
    ("float", float("inf"), "inf must be a finite number"),
    ("float", float("nan"), "nan must be a finite number"),
    ("float", 10**400, "must be a finite number"),
    ("float | None", float("nan"), "must be float | None"),
    ("bool", 1, "1 is int, must be bool"),
    ("str", [], "[] is a list, must be str"),
    ("int | None", {}, "{} is a mapping, must be int | None"),
    ("list[int]", [1, "x"], "'x' is text, must be int"),
    ("list[int]", 1, "1 is int, must be list[int]"),
    ("Literal['relu', 'gelu']", "reluu", "unknown value 'reluu'; did you mean 'relu'? known: gelu, relu"),
    ("Literal[0, 1]", False, "unknown value False"),
    ("complex", 1, "options of type complex are not supported, but bool, int"),
]


@pytest.mark.parametrize(("kind", "value", "held"), ACCEPTED)
def test_accepted(kind: str, value: Any, held: Any) -> None:
    got = accept(ast.parse(kind, mode="eval").body, value)
    assert got == held and type(got) is type(held)


@pytest.mark.parametrize(("kind", "value", "words"), REFUSED)
def test_refused(kind: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        accept(ast.parse(kind, mode="eval").body, value)
    assert words in str(caught.value)


# --- the registry

HEAD = "from ablate import Attention, Mixer, Norm, register\nfrom typing import Literal\n\n\n"
GOOD = '''\
@register("norm", "halving", paper="Doe 2020", causal=False, version=3)
class Halving(Norm):
    """x / 2."""

    def __init__(self, d: int, *, by: float = 2, how: Literal["all", "none"] = "all", only: int | None = None):
        super().__init__(d)
        self.by = by

    def forward(self, x):
        return x / self.by


@register("norm", "quartering", paper="Doe 2021")
class Quartering(Halving):
    """Twice."""
'''


def test_a_plugin_s_entries(write: Callable[..., Path]) -> None:
    file = write(HEAD + GOOD, "mine.py")
    assert add_plugin(file) == add_plugin(file)
    entry, heir = find("norm", "halving"), find(("mixer", "norm"), "quartering")
    assert (entry.slot, entry.name, entry.paper, entry.causal, entry.version) == (
        "norm",
        "halving",
        "Doe 2020",
        False,
        3,
    )
    assert entry.doc == "x / 2." and entry.file == file and len(entry.code) == 16
    assert entry.defaults == {"by": 2, "how": "all", "only": None}
    assert heir.defaults == entry.defaults and (heir.causal, heir.version) == (True, 1)  # options are inherited
    assert {"halving", "quartering"} <= {each.name for each in catalogue("norm")}
    made = make("norm", parse_component("norm", {"name": "quartering", "by": 4}, ()), 8)
    assert made(8.0) == 2.0 and made.component == "norm/quartering"
    assert registry.plugin_files()[str(file)] == entry.code


def test_options_are_inherited_from_the_package(write: Callable[..., Path]) -> None:
    add_plugin(
        write(
            HEAD + "@register('mixer', 'same', paper='x')\nclass Same(Attention):\n    '''The same.'''\n", "mine.py"
        )
    )
    assert find("mixer", "same").options == find("mixer", "attention").options


def test_a_changed_plugin_is_read_anew(write: Callable[..., Path]) -> None:
    file = write(HEAD + GOOD, "mine.py")
    add_plugin(file)
    old = find("norm", "halving")
    assert make("norm", Component("halving"), 8)(8.0) == 4.0
    write(HEAD + GOOD.replace("x / self.by", "x / self.by / self.by").replace("quartering", "eighthing"), "mine.py")
    add_plugin(file)
    assert find("norm", "halving").code != old.code
    assert make("norm", Component("halving"), 8)(8.0) == 2.0
    assert "quartering" not in {each.name for each in catalogue("norm")}
    write(HEAD + GOOD, "mine.py")  # and back
    add_plugin(file)
    assert find("norm", "halving").code == old.code and make("norm", Component("halving"), 8)(8.0) == 4.0


def test_a_module_that_is_imported_registers_itself(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No grid names it: the decorator is enough, as in a notebook's own module."""
    file = write(
        HEAD + GOOD.replace("halving", "thirding").replace("quartering", "ninthing"), "my_norms_of_test_spec.py"
    )
    monkeypatch.syspath_prepend(str(file.parent))
    module = __import__("my_norms_of_test_spec")
    try:
        assert load(find("norm", "thirding")) is module.Halving
        assert make("norm", Component("ninthing"), 8)(8.0) == 4.0
    finally:
        del sys.modules["my_norms_of_test_spec"]


BAD_PLUGINS = {
    "syntax": ("x = (", "mine.py:5: not Python"),
    "nothing": ("x = 1", "registers nothing: decorate a class with @register(slot, name, paper=...)"),
    "no paper": (
        "@register('mixer', 'q')\nclass Q(Mixer): ...",
        "mine.py:6: Q: write @register(slot, name, paper=...)",
    ),
    "no name": ("@register('mixer', paper='x')\nclass Q(Mixer): ...", "write @register(slot, name, paper=...)"),
    "keywords": ("@register(slot='mixer', name='q', paper='x')\nclass Q(Mixer): ...", "write @register(slot, name"),
    "name that is computed": ("N = 'q'\n@register('mixer', N, paper='x')\nclass Q(Mixer): ...", "literal text"),
    "name that is a number": ("@register('mixer', 3, paper='x')\nclass Q(Mixer): ...", "literal text"),
    "unknown argument": ("@register('mixer', 'q', paper='x', verzion=2)\nclass Q(Mixer): ...", "write @register("),
    "slot": ("@register('mixr', 'q', paper='x')\nclass Q(Mixer): ...", "unknown slot 'mixr'; did you mean 'mixer'?"),
    "taken": (
        "@register('norm', 'rmsnorm', paper='x')\nclass Q(Norm): ...",
        "norm 'rmsnorm' is already registered in",
    ),
    "twice": (2 * "@register('mixer', 'q', paper='x')\nclass Q(Mixer): ...\n", "mixer 'q' is already registered in"),
}
BAD_OPTIONS = {
    "self, site, *args": "Q: a component takes no *args and no **kwargs; name every option",
    "self, site, **kwargs": "Q: a component takes no *args and no **kwargs; name every option",
    "self, site, size=3": "Q: options are keyword-only: write them after a `*`",
    "self, site, *, size: int": "Q: option 'size' needs a type and a default",
    "self, site, *, size=3": "Q: option 'size' needs a type and a default",
    "self, site, *, size: int = len('abc')": "Q: the default of option 'size' must be a literal",
    "self, site, *, size: int = 'large'": "Q: option 'size': 'large' is text, must be int",
    "self, site, *, size: complex = 1": "Q: option 'size': options of type complex are not supported",
}


@pytest.mark.parametrize(("body", "words"), BAD_PLUGINS.values(), ids=BAD_PLUGINS)
def test_a_bad_plugin(write: Callable[..., Path], body: str, words: str) -> None:
    known = catalogue()
    with pytest.raises(UserError) as caught:
        add_plugin(write(HEAD + body, "mine.py"))
    assert words in str(caught.value) and "mine.py" in str(caught.value)
    assert [entry for entry in catalogue() if entry.name != "q"] == known


@pytest.mark.parametrize("signature", BAD_OPTIONS)
def test_bad_options(write: Callable[..., Path], signature: str) -> None:
    body = f"@register('mixer', 'q', paper='x')\nclass Q(Mixer):\n    def __init__({signature}): ...\n"
    with pytest.raises(UserError) as caught:
        add_plugin(write(HEAD + body, "mine.py"))
    assert f"mine.py:7: {BAD_OPTIONS[signature]}" in str(caught.value)


def test_a_missing_plugin(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.py does not exist"):
        add_plugin(tmp_path / "none.py")
    with pytest.raises(UserError, match="is not a file"):
        add_plugin(tmp_path)


def test_unknown_names() -> None:
    with pytest.raises(UserError, match=r"unknown position 'rop'; did you mean 'rope'\? known: alibi, binary"):
        find("position", "rop")
    with pytest.raises(UserError, match=r"unknown slot 'mixers'; did you mean 'mixer'\?"):
        catalogue("mixers")


SOURCE = '''\
"""A module."""
import math


class A:
    """A class."""

    size = 3

    def f(self, x):
        """A method."""
        return math.sqrt(x) + self.size  # a comment
'''
SAME = {
    "comment": SOURCE.replace("  # a comment", "") + "# the end\n",
    "docstrings": SOURCE.replace('"""A module."""\n', "")
    .replace("A method.", "Another word.")
    .replace("A class", "B"),
    "layout": SOURCE.replace(
        "math.sqrt(x) + self.size", "(\n            math.sqrt( x )\n            + self.size\n        )"
    ),
    "empty lines": SOURCE.replace("\n\n", "\n\n\n\n"),
}
DIFFERENT = {
    "a constant": SOURCE.replace("size = 3", "size = 4"),
    "an operator": SOURCE.replace("+ self", "- self"),
    "a name": SOURCE.replace("f(self, x)", "g(self, x)"),
    "a default": SOURCE.replace("x):", "x=1):"),
    "text that is no docstring": SOURCE.replace("size = 3", "size = 3\n    'more'"),
    "an import": SOURCE.replace("import math", "import math\nimport sys"),
}


@pytest.mark.parametrize("source", SAME.values(), ids=SAME)
def test_syntax_hash_is_that_of_the_code(source: str) -> None:
    assert source != SOURCE and syntax_hash(source) == syntax_hash(SOURCE)


@pytest.mark.parametrize("source", DIFFERENT.values(), ids=DIFFERENT)
def test_syntax_hash_changes_with_the_code(source: str) -> None:
    assert source != SOURCE and syntax_hash(source) != syntax_hash(SOURCE)


def test_a_body_of_a_docstring_alone() -> None:
    assert syntax_hash('def f():\n    """Words."""\n') == syntax_hash("def f():\n    pass\n")


@pytest.mark.parametrize("entry", catalogue(), ids=lambda entry: f"{entry.slot}-{entry.name}")
def test_the_source_is_read_as_python_reads_it(entry: registry.Entry) -> None:
    """The options read from the source are the constructor's, and each default is of its type."""
    cls = load(entry)
    parameters = inspect.signature(cls).parameters.values()
    options = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
    assert options == entry.defaults and not entry.code
    assert all(each.accept(each.default) == each.default for each in entry.options)
    assert cls.__name__ == entry.cls and inspect.getdoc(cls) and entry.paper and entry.slot in KINDS
    assert cls.component == f"{entry.slot}/{entry.name}"
