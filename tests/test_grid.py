"""What a grid means: variants, axes, sizes, budgets and seeds become trials, and `plan`, `show`, `list` say which."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ablate.cli import main
from ablate.errors import UserError
from ablate.grid import load_grid
from ablate.plan import make_plan
from ablate.planview import match_residual
from ablate.rows import Plan, Row
from ablate.spec import TrialSpec
from ablate.yamlfile import parse_scalar, parse_yaml

BASE = """\
base:
  arch: {d_model: 16, n_heads: 2, depth: 1, position: learned}
  data: {corpus: kjv, tokenizer: bytes, seq_len: 16}
  train: {tokens: 6400, batch_tokens: 256, lr: 3e-3}
"""

Planner = Callable[..., Plan]


@pytest.fixture
def plan(write: Callable[..., Path], token_cache: Path) -> Planner:
    """`plan(text, *overrides)`: the plan of BASE with the text after it."""
    return lambda text, *overrides: make_plan(load_grid(write(BASE + text), overrides), token_cache)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Any]:
    """`printed("plan", grid)`: what the command prints with --json."""

    def run(command: str, *arguments: object) -> Any:
        assert main([command, *map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def specs(write: Callable[..., Path], text: str, *overrides: str) -> list[TrialSpec]:
    """The specification of every cell, in order, before anything is resolved or matched."""
    grid = load_grid(write(text), overrides)
    found = []
    for size in grid.sizes:
        for axes in grid.axes:
            draft = grid.base.copy()
            draft.lay(size.settings, size.origin)
            draft.lay(axes.settings, axes.origin)
            found += [variant.lay_on(draft).spec() for variant in grid.variants]
    return found


def row(plan: Plan, variant: str) -> Row:
    (found,) = [row for row in plan.rows if row.variant == variant]
    return found


def test_defaults(write: Callable[..., Path]) -> None:
    """An empty grid is the default trial, under the file's name; the comment that opens it is its question."""
    grid = load_grid(write("# Does it work?\n#   On any machine?\n{}\n", "first_try.yaml"))
    assert (grid.name, grid.question) == ("first_try", "Does it work?\nOn any machine?")
    assert [variant.name for variant in grid.variants] == ["baseline"]
    assert (grid.match, grid.tolerance, grid.seeds) == ("params", 0.01, (0,))
    assert specs(write, "{}") == [TrialSpec()]


# --- variants

SPELLINGS = {
    "registered names": "rmsnorm+rope",
    "use": "{use: rmsnorm+rope}",
    "use and a path": "{use: rope, arch.norm: rmsnorm}",
    "dotted paths": "{arch.norm: rmsnorm, arch.position: rope}",
    "a section": "{arch: {norm: rmsnorm, position: {name: rope}}}",
    "an option at its default": "{arch.norm: {name: rmsnorm, eps: 1e-6}, arch.position: {name: rope, base: 10000}}",
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_variant_spellings(write: Callable[..., Path], spelling: str) -> None:
    expected = specs(write, BASE + "variants: [baseline, rmsnorm+rope]\n")
    assert specs(write, BASE + f"variants:\n  baseline: {{}}\n  other: {spelling}\n") == expected
    assert expected[0].arch.norm.name == "layernorm" and expected[1].arch.norm.name == "rmsnorm"
    assert expected[1].arch.position.name == "rope"


def test_the_first_variant_is_the_baseline(plan: Planner) -> None:
    made = plan("variants: {b: rope, a: {}}\n")
    assert made.baseline == "b"
    assert [row.differs_in for row in made.rows] == [(), ("position",)]
    assert made.rows[0].residuals == {"params": 0.0, "flops": 0.0}


def test_one_option_of_a_component(write: Callable[..., Path]) -> None:
    """A dotted path may go on into a component: its other options, given or default, stay."""
    text = BASE.replace("position: learned", "position: {name: rope, base: 500.0}, sublayers: {f: glu}")
    text += "variants: {a: {}, b: {arch.position.base: 100}, c: {arch.sublayers.s.dropout: 0.1}}\n"
    a, b, c = specs(write, text)
    assert a.arch.position.get("base") == 500.0 and b.arch.position.get("base") == 100.0
    assert dict(c.arch.sublayers)["s"].get("dropout") == 0.1
    assert dict(b.arch.sublayers) == dict(a.arch.sublayers) and dict(a.arch.sublayers)["f"].name == "glu"


def test_confounded(plan: Planner) -> None:
    """More than one difference is marked, unless it was asked for as a combination."""
    made = plan(
        "variants:\n"
        "  plain: {}\n"
        "  one: rmsnorm\n"
        "  two: {arch.norm: rmsnorm, arch.position: rope}\n"
        "  asked: rmsnorm+alibi\n"
        "  pattern: {arch.order: ssff, arch.depth: 1}\n"
        "  sublayers: {arch.sublayers: {s: convolution, f: {name: ffn, activation: relu}}}\n"
        "  width: {arch.d_model: 24}\n"
        "  data: {data.seq_len: 8}\n"
        "  training: {train.lr: 1e-3, train.schedule: linear}\n"
        "match: none\n"
    )
    assert {row.variant: (row.differs_in, row.confounded) for row in made.rows} == {
        "plain": ((), False),
        "one": (("norm",), False),
        "two": (("norm", "position"), True),
        "asked": (("norm", "position"), False),
        "pattern": (("pattern",), False),
        "sublayers": (("channel", "mixer"), True),
        "width": (("d_model",), False),
        "data": (("data.seq_len",), False),
        "training": (("train.lr", "train.schedule"), True),
    }


# --- axes, sizes, seeds


def test_axes_are_crossed(plan: Planner) -> None:
    axes = "axes: {train.dropout: [0.0, 0.1], arch.norm: [layernorm, {name: rmsnorm, eps: 1e-5}], train.clip: 1.0}\n"
    made = plan("variants: [baseline, rope]\n" + axes)
    assert [(row.variant, row.axes) for row in made.rows] == [
        (variant, f"dropout={dropout}, norm={norm}, clip=1")
        for dropout in ("0", "0.1")
        for norm in ("layernorm", "rmsnorm(eps=1e-05)")
        for variant in ("baseline", "rope")
    ]
    for row in made.rows:
        norm = row.axis_values["arch.norm"]
        assert row.spec.train.dropout == row.axis_values["train.dropout"]
        assert row.spec.arch.norm.name == (norm if isinstance(norm, str) else norm["name"])
        assert row.differs_in == (() if row.variant == "baseline" else ("position",))
    assert len({trial.id for trial in made.trials}) == 8


SIZES = {
    "parallel": ("{arch.d_model: [16, 24], arch.depth: [1, 2]}", ["d_model=16, depth=1", "d_model=24, depth=2"]),
    "named": ("{small: {arch.d_model: 16}, big: {arch: {d_model: 24, depth: 2}}}", ["small", "big"]),
}


@pytest.mark.parametrize(("sizes", "labels"), SIZES.values(), ids=SIZES)
def test_sizes(plan: Planner, sizes: str, labels: list[str]) -> None:
    made = plan(f"variants: [baseline, rope]\nsizes: {sizes}\n")
    assert [(row.size, row.variant) for row in made.rows] == [
        (label, variant) for label in labels for variant in ("baseline", "rope")
    ]
    shapes = [(row.spec.arch.d_model, row.spec.arch.depth) for row in made.rows if row.variant == "baseline"]
    assert shapes == [(16, 1), (24, 2)]
    assert made.rows[2].cost.params_total > 2 * made.rows[0].cost.params_total
    assert made.rows[3].residuals["params"] == pytest.approx(
        made.rows[3].cost.params_total / made.rows[2].cost.params_total - 1
    )


def test_a_ladder(write: Callable[..., Path]) -> None:
    ladder = specs(write, BASE + "sizes: laptop\n")
    assert [spec.arch.d_model for spec in ladder] == [32, 48, 64, 96, 128]
    assert all(small.arch.depth < big.arch.depth for small, big in pairwise(ladder))


def test_seeds(plan: Planner) -> None:
    """A count is 0, 1, ...; a list is taken as it is. A trial's id is its own whatever other seeds there are."""
    counted, listed = plan("seeds: 3\n"), plan("seeds: [7, 2]\n")
    assert [trial.spec.seed for trial in counted.trials] == [0, 1, 2]
    assert [trial.spec.seed for trial in listed.trials] == [7, 2]
    assert counted.trials[2].id == listed.trials[1].id
    assert len({trial.spec.group_id for trial in (*counted.trials, *listed.trials)}) == 1


# --- budgets


def test_no_budget_is_the_base_s(plan: Planner) -> None:
    (only,) = plan("").rows
    assert (only.budget, only.tokens) == ("", 6400)


def test_tokens(plan: Planner) -> None:
    """Whole batches of 256: the nearest number of them."""
    made = plan("variants: [baseline, rope]\nbudgets: {tokens: [1e4, 25600]}\n")
    assert [(row.budget, row.tokens) for row in made.rows] == 2 * [("tokens=10000", 9984), ("tokens=25600", 25600)]
    assert all(row.spec.train.tokens == row.tokens == 256 * row.spec.train.steps for row in made.rows)


def test_tokens_per_param(plan: Planner) -> None:
    """Per parameter of the size's baseline: variants of one size see the same tokens."""
    sizes = "sizes: {arch.d_model: [16, 32]}\n"
    made = plan(
        f"variants: {{a: {{}}, b: {{arch.d_ff: 96}}}}\nmatch: none\n{sizes}budgets: {{tokens_per_param: 5}}\n"
    )
    small, fat, big, bigger = made.rows
    assert fat.cost.params_total > 1.1 * small.cost.params_total
    assert small.tokens == fat.tokens and big.tokens == bigger.tokens
    for each in (small, big):
        assert abs(each.tokens - 5 * each.cost.params_total) <= 128


def test_flops(plan: Planner) -> None:
    """IsoFLOP: a variant that costs more per token sees fewer of them, to within half a batch."""
    made = plan("variants: {a: {}, b: {arch.d_ff: 256}}\nmatch: none\nbudgets: {flops: [1e9, 4e9]}\n")
    for each in made.rows:
        budget = float(each.budget.removeprefix("flops="))
        assert abs(each.flops - budget) <= each.cost.flops_train * 128
    cheap, dear = made.rows[0], made.rows[2]
    assert (cheap.variant, dear.variant) == ("a", "b") and cheap.tokens > 1.5 * dear.tokens
    assert made.total_flops == pytest.approx(sum(each.flops for each in made.rows))


# --- what lies over what

LAYERS = """\
base: {preset: gpt2, arch: {d_model: 16, n_heads: 2, depth: 1}, train: {lr: 0.1}}
variants: {a: {}, b: {train.dropout: 0.4, arch.n_heads: 4}}
axes: {train.dropout: [0.3]}
sizes: {s: {train.dropout: 0.2, train.lr: 0.2}}
"""


def test_precedence(write: Callable[..., Path], token_cache: Path) -> None:
    """Preset, base, size, axes, variant: the later lies over the earlier."""
    text = LAYERS.replace("lr: 0.1", "lr: 0.1, batch_tokens: 256") + "match: none\n"
    grid = load_grid(write(text), ["data.seq_len=16"])
    a, b = (row.spec for row in make_plan(grid, token_cache).rows)
    assert dict(a.arch.sublayers)["f"].get("activation") == "gelu_tanh"  # the preset's
    assert a.arch.d_model == 16 and a.arch.init.name == "gpt2"
    assert (a.train.lr, a.train.dropout) == (0.2, 0.3)
    assert (b.train.dropout, b.arch.n_heads, a.arch.n_heads) == (0.4, 4, 2)


OVERRIDES: dict[str, Callable[[TrialSpec, TrialSpec], bool]] = {
    "arch.d_model=32": lambda a, b: a.arch.d_model == b.arch.d_model == 32,
    "base.arch.d_model=32": lambda a, b: a.arch.d_model == 32,
    "arch.position.std=0.5": lambda a, b: a.arch.position.get("std") == 0.5,
    "arch.sublayers.f=glu": lambda a, b: dict(a.arch.sublayers)["f"].name == "glu",
    "train.weight_decay=1e-3": lambda a, b: a.train.weight_decay == 0.001,
    "train.lr=0.5": lambda a, b: a.train.lr == 0.2,  # the base's: the size still lies over it
    "base.preset=llama2": lambda a, b: a.arch.norm.name == "rmsnorm" and a.arch.d_model == 16,
    "axes.train.dropout=[0.1]": lambda a, b: (a.train.dropout, b.train.dropout) == (0.1, 0.4),
    "sizes={s: {train.lr: 0.7}}": lambda a, b: a.train.lr == 0.7,
    "variants.b=alibi": lambda a, b: b.arch.position.name == "alibi" and b.train.dropout == 0.3,
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_override(write: Callable[..., Path], override: str) -> None:
    a, b = specs(write, LAYERS, override)
    assert OVERRIDES[override](a, b)
    assert (a, b) != tuple(specs(write, LAYERS)) or override == "train.lr=0.5"


def test_the_last_override_wins(write: Callable[..., Path]) -> None:
    assert specs(write, LAYERS, "arch.depth=2", "arch.depth=3")[0].arch.depth == 3
    both = "base: {train.lr: 0.1, train: {lr: 0.2}}\n"  # however often, and wherever, the file sets it
    assert [specs(write, both, *each)[0].train.lr for each in ((), ("train.lr=0.3",))] == [0.2, 0.3]
    assert load_grid(write(LAYERS), ["seeds=[4]", "study=other", "match=both"]).seeds == (4,)


# --- YAML

SCALARS = {
    "1e-3": 0.001,
    "1E5": 100000.0,
    "-.5": -0.5,
    "1.": 1.0,
    "2_000_000": 2_000_000,
    "1_0.5": 10.5,
    "0x10": 16,
    "0o17": 15,
    "010": 10,
    "+3": 3,
    "1_": "1_",
    "on": "on",
    "no": "no",
    "1:30": "1:30",
    "2001-01-01": "2001-01-01",
    "TRUE": True,
    "~": None,
    "": None,
    "'1'": "1",
    '"true"': "true",
    "-.Inf": float("-inf"),
    "[1, x, 1e1]": [1, "x", 10.0],
    "{a: {b: 0}}": {"a": {"b": 0}},
}


@pytest.mark.parametrize("text", SCALARS, ids=[text or "nothing" for text in SCALARS])
def test_scalars_are_those_of_yaml_1_2(text: str) -> None:
    expected = SCALARS[text]
    for value in (parse_yaml(f"key: {text}", Path("x")).value["key"], parse_scalar(text)):
        assert value == expected and type(value) is type(expected)


def test_every_key_and_item_knows_its_line() -> None:
    document = parse_yaml("a:\n  b.c:\n  - 1\n  - x: 2\n\n    y: [3,\n      4]\n", Path("g.yaml"))
    lines = {
        ("a",): 1,
        ("a", "b.c"): 2,
        ("a", "b.c", "0"): 3,
        ("a", "b.c", "1", "y"): 6,
        ("a", "b.c", "1", "y", "1"): 7,
    }
    assert {path: document.lines[path] for path in lines} == lines
    assert str(document.error(("a", "b.c", "1", "none"), "wrong")) == "g.yaml:4: a.b.c.1.none: wrong"


@pytest.mark.parametrize(
    ("extra", "place"),
    [
        ("variants:\n  a: {}\n  b:\n    arch.norm: rmsnorm\n    arch.depth: 0\n", "9: variants.b.arch.depth"),
        ("variants:\n  a: {}\n  b:\n    arch:\n      norm: rmsnorm\n      depth: 0\n", "10: variants.b.arch.depth"),
        ("sizes:\n  s:\n    arch.depth: 0\n", "7: sizes.s.arch.depth"),
        ("axes:\n  train.lr: [1]\n  arch.depth: [0]\n", "7: axes.arch.depth"),
    ],
)
def test_an_error_names_the_line_that_set_the_value(write: Callable[..., Path], extra: str, place: str) -> None:
    with pytest.raises(UserError) as caught:
        specs(write, BASE + extra)
    assert f"grid.yaml:{place}: 0 must be at least 1" in str(caught.value)


# --- identity


def test_ids_do_not_depend_on_how_a_grid_is_written(plan: Planner) -> None:
    """Key order, defaults written out, comments, the study's name, other variants: the trials stay the same."""
    one = plan("variants: {a: {}, b: {arch.position: rope, train.lr: 1e-3}}\n")
    two = plan(
        "study: other  # a comment\nvariants: {x: {}, y: {arch.norm: rmsnorm}, z: {train: {lr: 0.001}, arch: "
        "{position: {name: rope, base: 1e4}, order: sf, bias: true}, resources: {cpus: 2}}}\n"
    )
    assert row(two, "x").spec.trial_id == row(one, "a").spec.trial_id
    assert row(two, "z").spec.trial_id == row(one, "b").spec.trial_id
    assert len({trial.id for trial in two.trials}) == 3


# --- what the commands print

JSON_GRID = (
    BASE
    + "variants: {plain: {}, rope: rope}\nsizes: {arch.d_model: [16, 24]}\nmatch: both\ntolerance: 0.2\nseeds: 2\n"
)


def test_plan_json(
    printed: Callable[..., Any], write: Callable[..., Path], tmp_path: Path, token_cache: Path
) -> None:
    grid = write(JSON_GRID)
    tree = printed("plan", grid, "--results", tmp_path / "results")
    made = make_plan(load_grid(grid), token_cache)
    assert tree["trials"] == len(made.trials) == 8
    assert tree["total_flops"] == pytest.approx(made.total_flops) and tree["match"] == "both"
    assert [(each["name"], each["size"]) for each in tree["variants"]] == [
        ("plain", "d_model=16"),
        ("rope", "d_model=16"),
        ("plain", "d_model=24"),
        ("rope", "d_model=24"),
    ]
    for each, planned in zip(tree["variants"], made.rows, strict=True):
        assert each["params_total"] == planned.cost.params_total
        assert each["flops_per_token"] == planned.cost.flops_forward
        assert each["differs_in"] == list(planned.differs_in)
        assert each["match_residual"] == match_residual(planned, "both")
        assert abs(each["match_residual"]) <= 0.2
        assert type(each["params_total"]) is int and each["params_non_embedding"] < each["params_total"]
    assert tree["variants"][1]["differs_in"] == ["position"] and tree["variants"][0]["match_residual"] == 0
    assert not (tmp_path / "results" / "trials").exists()


def test_plan_for_a_person(capsys: pytest.CaptureFixture[str], write: Callable[..., Path], tmp_path: Path) -> None:
    text = "variants: {plain: {}, both: {arch.norm: rmsnorm, arch.position: rope}}\nseeds: 3\n"
    assert main(["plan", str(write(BASE + text)), "--results", str(tmp_path / "results")]) == 0
    out = capsys.readouterr().out
    plain, both = (next(line for line in out.splitlines() if line.startswith(name)) for name in ("plain", "both"))
    assert "norm, position" in both and both.endswith("confounded") and "confounded" not in plain
    assert "6 trials" in out and "match: params within 1.0%" in out


SHOWN = {"name", "paper", "params_total", "params_non_embedding", "flops_per_token", "arch", "differs_in"}


@pytest.mark.parametrize(
    ("name", "params", "differs"),
    [
        ("baseline", 7664, []),
        ("rope", 7408, ["position"]),
        ("rmsnorm+rope", 7360, ["norm", "position"]),
        ("no_ffn", 5504, ["pattern"]),
    ],
)
def test_show_json(printed: Callable[..., Any], name: str, params: int, differs: list[str]) -> None:
    """By hand, d = 16: 256 d table, 16 d positions, 4 (d d + d) attention, 8 d d + 5 d ffn, 3 norms of 2 d."""
    tree = printed("show", name, *(f"--set={each}" for each in ("d_model=16", "n_heads=2", "depth=1", "seq_len=16")))
    assert tree.keys() >= SHOWN and tree["name"] == name
    assert tree["params_total"] == params and tree["differs_in"] == differs
    positions = 256 if tree["arch"]["position"] == {"name": "learned"} else 0
    assert tree["params_non_embedding"] == params - 256 * 16 - positions
    assert (tree["arch"]["d_model"], tree["arch"]["d_ff"], tree["arch"]["depth"]) == (16, 64, 1)
    assert type(tree["params_total"]) is int and tree["flops_per_token"] > 0
    assert bool(tree["paper"]) == (name != "baseline")


def test_show_a_preset_at_the_paper_s_size_and_at_another(printed: Callable[..., Any]) -> None:
    tree = printed("show", "gpt2")
    assert tree["params_total"] == 124_439_808  # the published model
    assert (tree["vocab"], tree["seq_len"], tree["differs_in"]) == (50257, 1024, [])
    small = printed("show", "gpt2+alibi", "--set", "vocab=100", "--set", "arch.d_ff=32", *SMALL)
    assert (small["vocab"], small["arch"]["d_ff"], small["differs_in"]) == (100, 32, ["position"])
    assert small["params_by_slot"]["embedding"] == 1600


SMALL = ("--set=d_model=16", "--set=n_heads=2", "--set=depth=1", "--set=seq_len=16")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ropee",), ("unknown variant 'ropee'", "did you mean 'rope'?")),
        (("rope+alibi",), ("both set arch.position",)),
        (("rope", "--set", "width=3"), ("--set width", "unknown size 'width'", "d_model")),
        (("rope", "--set", "d_model"), ("write PATH=VALUE",)),
        (("rope", "--set", "d_model=x"), ("--set arch.d_model", "'x' is text, must be int")),
        (("rope", "--set", "n_heads=3"), ("--set arch.n_heads", "3 does not divide")),
        (("rope", "--set", "vocab=0"), ("--set vocab", "from 1")),
        (("rope+lstm", *SMALL), ("position 'rope' has no effect",)),
    ],
)
def test_show_mistakes(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert main(["show", *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("ablate: ") and message.count("\n") == 1
    assert all(word in message for word in words), message


def test_show_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "rmsnorm", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "* norm             rmsnorm" in out and "differs from its baseline in: norm" in out
    assert "* final rmsnorm" in out  # drawn, and marked
    assert "7,616" in out


def test_list_json(printed: Callable[..., Any]) -> None:
    entries = printed("list")
    assert all(set(each) >= {"slot", "name", "paper", "causal", "options"} for each in entries)
    assert len({(each["slot"], each["name"]) for each in entries}) == len(entries)
    by_name = {(each["slot"], each["name"]): each for each in entries}
    assert by_name["position", "rope"]["options"] == {"base": 10000.0, "pairs": "halves", "fraction": 1.0}
    assert by_name["variant", "rope"]["options"] == {"arch.position": "rope"}
    assert by_name["preset", "gpt2"]["options"]["arch.d_model"] == 768
    assert all(each["paper"] for each in entries)
    assert by_name["mixer", "attention"]["causal"] is True and by_name["mixer", "fnet"]["causal"] is False
    for slot in ("mixer", "variant", "preset", "tokenizer", "schedule"):
        assert printed("list", slot) == [each for each in entries if each["slot"] == slot] != []


def test_every_listed_variant_can_be_used(write: Callable[..., Path], printed: Callable[..., Any]) -> None:
    listed = printed("list", "variant")
    pairs = {each["name"] for each in listed if "arch.encoder_order" in each["options"]}  # they need an encoder
    assert pairs == {"evolved_transformer"}
    names = [each["name"] for each in listed if each["name"] not in pairs and "sandwich" not in each["name"]]
    made = specs(write, BASE.replace("depth: 1", "depth: 4") + f"variants: [baseline, {', '.join(names)}]\n")
    assert len(made) == len(names) + 1


def test_list_an_unknown_slot(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "mixers"]) == 2
    message = capsys.readouterr().err
    assert "unknown slot 'mixers'" in message and "did you mean 'mixer'?" in message and "variant" in message
