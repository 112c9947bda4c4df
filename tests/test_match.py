"""Matching: a variant gets the baseline's parameters, FLOPs, or both, at sizes that it did not set itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablate.cost import count, params_only
from ablate.errors import UserError
from ablate.grid import load_grid
from ablate.match import Matcher, Unmatched
from ablate.plan import make_plan
from ablate.rows import Plan, Row
from ablate.spec import ArchSpec, Component

BASE = """\
base:
  arch: {d_model: 32, n_heads: 4, depth: 2}
  data: {corpus: kjv, tokenizer: bytes, seq_len: 16}
  train: {tokens: 6400, batch_tokens: 256}
"""
VOCAB, T = 256, 16

Planner = Callable[[str], Plan]


@pytest.fixture
def plan(write: Callable[..., Path], token_cache: Path) -> Planner:
    return lambda text: make_plan(load_grid(write(BASE + text)), token_cache)


def sizes(row: Row) -> tuple[int, int | None, int]:
    arch = row.spec.arch
    return arch.d_model, arch.d_ff, arch.depth


TARGETS = {
    "params": ("swiglu, convolution, lstm, block_sharing", 0.01),
    "flops": ("swiglu, convolution, lstm, block_sharing", 0.01),
    "both": ("swiglu, alibi, lstm", 0.06),
}


@pytest.mark.parametrize("target", TARGETS)
def test_residuals_are_within_the_tolerance(plan: Planner, target: str) -> None:
    """And they are what the architectures that will be trained count, not what the solver believed."""
    names, tolerance = TARGETS[target]
    made = plan(f"variants: [baseline, {names}]\nmatch: {target}\ntolerance: {tolerance}\n")
    base = count(made.rows[0].spec.arch, VOCAB, T)
    for row in made.rows:
        cost = count(row.spec.arch, VOCAB, T)
        assert cost == row.cost
        assert row.residuals["params"] == cost.params_total / base.params_total - 1
        assert row.residuals["flops"] == cost.flops_forward / base.flops_forward - 1
        for each in ("params", "flops") if target == "both" else (target,):
            assert abs(row.residuals[each]) <= tolerance, row.variant


def test_without_matching(plan: Planner) -> None:
    made = plan(f"variants: [baseline, {TARGETS['params'][0]}]\nmatch: none\n")
    assert all(row.solved == {} and sizes(row) == (32, 128, 2) for row in made.rows)
    assert max(abs(row.residuals["params"]) for row in made.rows) > 0.2  # so that matching has something to do


def test_nothing_moves_when_nothing_must(plan: Planner) -> None:
    made = plan("variants: [baseline, rmsnorm]\n")
    assert made.rows[1].solved == {} and sizes(made.rows[1]) == sizes(made.rows[0])
    assert 0 < -made.rows[1].residuals["params"] < 0.01


# variant, tolerance, what is solved
KNOBS = {
    "d_ff first": ("lstm", 0.01, {"arch.d_ff"}),
    "d_ff set": ("{arch.sublayers.s: lstm, arch.d_ff: 160}", 0.07, {"arch.d_model"}),
    "d_ff set in a section": ("{arch: {sublayers: {s: lstm}, d_ff: 160}}", 0.07, {"arch.d_model"}),
    "d_ff and d_model set": ("{arch.order: f, arch.d_ff: 128, arch.d_model: 32}", 0.01, {"arch.depth"}),
    "nothing that has a d_ff": ("no_ffn", 0.06, {"arch.d_model"}),
}


@pytest.mark.parametrize(("variant", "tolerance", "knobs"), KNOBS.values(), ids=KNOBS)
def test_what_a_variant_sets_is_not_touched(plan: Planner, variant: str, tolerance: float, knobs: set[str]) -> None:
    made = plan(f"variants: {{plain: {{}}, b: {variant}}}\ntolerance: {tolerance}\n")
    row = made.rows[1]
    assert set(row.solved) == knobs and abs(row.residuals["params"]) <= tolerance
    asked, got = made.grid.variants[1].lay_on(made.grid.base).spec().arch, row.spec.arch
    moved = {f"arch.{each.name}" for each in fields(asked) if getattr(asked, each.name) != getattr(got, each.name)}
    follow = {"arch.d_ff", "arch.d_head"} - made.grid.variants[1].paths() if "arch.d_model" in knobs else set()
    assert knobs <= moved <= knobs | follow
    assert all(getattr(got, path.removeprefix("arch.")) == value for path, value in row.solved.items())


def test_an_axis_is_not_touched(plan: Planner) -> None:
    """What the axes set holds for every variant: comparing at a width means that width."""
    made = plan("variants: [baseline, lstm]\naxes: {arch.d_ff: [64, 128]}\ntolerance: 0.2\n")
    assert [row.spec.arch.d_ff for row in made.rows] == [64, 64, 128, 128]
    assert all("arch.d_ff" not in row.solved and row.solved for row in made.rows if row.variant == "lstm")


def test_the_head_dimension_follows(plan: Planner) -> None:
    """A solved width stays even per head; a head dimension that was given stays."""
    text = "variants: {{plain: {{}}, b: {{arch.d_ff: 220, arch.depth: 2, arch.n_heads: 2{}}}}}\ntolerance: 0.05\n"
    follows, fixed = (plan(text.format(extra)).rows[1].spec.arch for extra in ("", ", arch.d_head: 16"))
    assert (follows.d_model, follows.d_head) == (24, 12)
    assert (fixed.d_model, fixed.d_head) == (24, 16)


REFUSED = "variants:\n  plain: {}\n  b: {arch.d_ff: 300, arch.depth: 2, train.lr: 1}\n"


def test_a_width_that_a_component_cannot_have_is_not_tried(plan: Planner) -> None:
    """Its two halves need an even d_ff; the nearest whole number to the baseline's parameters is odd."""
    made = plan(
        "sizes:\n  d48: {arch.d_model: 48, arch.n_heads: 2, arch.depth: 3, data.seq_len: 64}\n"
        "variants: [baseline, gmlp_causal]\nseeds: 1\nmatch: params\n"
    )
    _, gmlp = made.rows
    assert gmlp.spec.arch.d_ff and gmlp.spec.arch.d_ff % 2 == 0 and abs(gmlp.residuals["params"]) <= 0.01


def test_a_refusal_names_the_nearest(plan: Planner) -> None:
    with pytest.raises(UserError) as caught:
        plan(REFUSED)
    message = str(caught.value)
    assert "grid.yaml:7: " in message and message.endswith("Widen `tolerance`, or set `match: none`")
    assert "variant 'b' at size 'base' cannot be matched in params within 1%" in message
    nearest = re.findall(r"(arch.d_model \d+|sizes as they are): params ([+-][0-9.]+)%", message)
    assert len(nearest) == 3
    off = [abs(float(residual)) for _, residual in nearest]
    assert off == sorted(off)
    # as it says: a tolerance that reaches the nearest takes exactly that one
    row = plan(REFUSED + f"tolerance: {(off[0] + 0.06) / 100}\n").rows[1]
    assert f"{100 * row.residuals['params']:+.1f}" == nearest[0][1]
    assert row.solved == {"arch.d_model": int(nearest[0][0].split()[1])}


def test_both_is_refused_where_only_one_fits(plan: Planner) -> None:
    """Weights used twice cost FLOPs and no parameters: what equals the baseline in one is off in the other."""
    text = "variants: {plain: {}, b: {arch.sharing: all, arch.d_model: 32, arch.depth: 2}}\ntolerance: 0.05\nmatch: "
    assert plan(text + "params").rows[1].residuals["flops"] > 0.1
    assert plan(text + "flops").rows[1].residuals["params"] < -0.1
    with pytest.raises(UserError, match=r"cannot be matched in params and flops within 5%; nearest: .* flops [+-]"):
        plan(text + "both")


def test_axes_of_training_do_not_change_the_sizes(plan: Planner) -> None:
    made = plan("variants: [baseline, lstm]\naxes: {train.dropout: [0.0, 0.1], train.lr: [1e-3, 2e-3]}\n")
    assert len({row.spec.arch for row in made.rows}) == 2
    assert len({tuple(row.solved.items()) for row in made.rows if row.variant == "lstm"}) == 1


CHANGES: tuple[dict[str, Any], ...] = (
    {"sublayers": (("f", Component("glu")), ("s", Component("attention")))},
    {"sublayers": (("f", Component("ffn")), ("s", Component("lstm")))},
    {"head": Component("softmax", (("tied", False),))},
    {"order": "sff"},
    {"order": "f", "position": Component("none")},
    {"bias": False},
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    heads=st.sampled_from((1, 2, 4)),
    width=st.integers(2, 6),
    depth=st.integers(1, 3),
    change=st.sampled_from(CHANGES),
    frozen=st.sets(st.sampled_from(("arch.d_ff", "arch.d_model", "arch.depth"))),
    tolerance=st.sampled_from((0.01, 0.1)),
)
def test_any_size(
    heads: int, width: int, depth: int, change: dict[str, Any], frozen: set[str], tolerance: float
) -> None:
    """Within the tolerance with the frozen sizes as they were; or refused with the nearest, none of which fits."""
    common = {"d_model": 8 * width, "n_heads": heads, "depth": depth}

    def make(sizes: Mapping[str, int]) -> ArchSpec:
        return ArchSpec(**{**common, **change, **{path.removeprefix("arch."): n for path, n in sizes.items()}})

    def flops(arch: ArchSpec) -> float:
        raise AssertionError("FLOPs are not asked for")

    want = float(params_only(ArchSpec(**common), VOCAB, T))
    try:
        matcher = Matcher(make, lambda arch: params_only(arch, VOCAB, T), flops)
        found = matcher.solve({"params": want}, tolerance, frozenset(frozen))
    except Unmatched as error:
        nearest = [abs(float(each)) / 100 for each in re.findall(r"params ([+-][0-9.]+)%", str(error))]
        assert nearest == sorted(nearest) and nearest[0] > tolerance - 0.001
        return
    assert abs(params_only(found.arch, VOCAB, T) / want - 1) == found.worst <= tolerance
    assert not set(dict(found.sizes)) & frozen
    assert found.arch == make(dict(found.sizes)) and found.arch.n_heads == heads
