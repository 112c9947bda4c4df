"""Variants made from factors: which are on, their names and what they set; fractions against published designs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ablate.designs import designed, fractional, words
from ablate.draft import Draft
from ablate.errors import UserError
from ablate.yamlfile import Document, parse_yaml, read_yaml

FACTORS = "{rope: rope, gate: swiglu, norm: {arch.norm: rmsnorm}, wide: {arch: {d_ff: 96}}}"


def document(design: str, more: str = "") -> Document:
    return parse_yaml(f"study: made\n{more}\ndesign:\n{design}\n", Path("grid.yaml"))


def made(kind: str, factors: str = FACTORS, more: str = "") -> dict[str, dict[str, bool]]:
    found = designed(document(f"  kind: {kind}\n  factors: {factors}\n{more}"))
    assert found is not None
    return {each.name: dict(each.on) for each in found}


def columns(runs: list[tuple[bool, ...]]) -> np.ndarray:
    return np.where(np.array(runs), 1, -1)


def test_a_grid_without_a_design_has_none() -> None:
    assert designed(parse_yaml("study: made", Path("grid.yaml"))) is None


def test_one_at_a_time() -> None:
    off = dict.fromkeys(("rope", "gate", "norm", "wide"), False)
    on = dict.fromkeys(off, True)
    added = {"baseline": off} | {name: off | {name: True} for name in off}
    left_out = {f"without_{name}": on | {name: False} for name in off}
    for kind, expected in (
        ("add_one_in", added),
        ("leave_one_out", {"full": on} | left_out),
        ("both", added | left_out | {"full": on}),
    ):
        assert list(made(kind).items()) == list(expected.items())


def test_both_of_two_factors_has_each_variant_once() -> None:
    two = "{rope: rope, gate: swiglu}"
    assert list(made("both", two)) == ["baseline", "rope", "gate", "full"]
    assert set(made("leave_one_out", two)) == {"full", "rope", "gate"}


def test_a_full_factorial_has_every_combination() -> None:
    found = made("factorial")
    runs = [tuple(each.values()) for each in found.values()]
    assert next(iter(found)) == "baseline" and sorted(runs) == sorted(itertools.product((False, True), repeat=4))
    assert {"rope+norm", "without_gate", "full", "gate"} <= set(found)
    assert found["rope+norm"] == {"rope": True, "gate": False, "norm": True, "wide": False}


# Montgomery, Design and Analysis of Experiments, table 8.14: factors, resolution, runs
PUBLISHED = [
    (3, 3, 4), (4, 4, 8), (5, 5, 16), (5, 3, 8), (6, 6, 32), (6, 4, 16), (6, 3, 8), (7, 7, 64), (7, 4, 16), (7, 3, 8),
    (8, 5, 64), (8, 4, 16), (9, 6, 128), (9, 4, 32), (9, 3, 16), (10, 5, 128), (10, 4, 32), (10, 3, 16),
]  # fmt: skip


@pytest.mark.parametrize(("k", "resolution", "runs"), PUBLISHED)
def test_fractions_are_as_small_as_published_ones(k: int, resolution: int, runs: int) -> None:
    assert len(fractional(k, resolution)) == runs


@pytest.mark.parametrize(("k", "resolution"), [*((k, r) for k in range(3, 7) for r in range(3, k + 1)), (7, 4)])
def test_a_fraction_confounds_nothing_below_its_resolution(k: int, resolution: int) -> None:
    """By the columns themselves: an effect of i factors and one of j < R - i are orthogonal; the first run is off."""
    runs = fractional(k, resolution)
    x = columns(runs)
    assert not any(runs[0]) and len(set(runs)) == len(runs)
    subsets = [which for i in range(k + 1) for which in itertools.combinations(range(k), i)]
    products = np.stack([x[:, list(which)].prod(1) for which in subsets])
    inner = np.abs(products @ products.T)
    assert set(np.unique(inner)) == {0, len(runs)}  # regular: orthogonal or the same
    for (a, first), (b, second) in itertools.combinations(enumerate(subsets), 2):
        if len(first) + len(second) < resolution:
            assert inner[a, b] == 0, (first, second)


def test_the_defining_relation() -> None:
    """2^(5-2) with D = AB, E = AC: ABD, ACE, and their product BCDE."""
    assert words(5, [(0, 1), (0, 2)]) == [{0, 1, 3}, {0, 2, 4}, {1, 2, 3, 4}]


def test_a_fraction_of_least_aberration() -> None:
    """2^(9-4) has six words of four letters and eight of five (Chen, Sun and Wu 1993, design 9-4.1); the standard
    table's fewest shorter words."""
    x = columns(fractional(9, 4))
    lengths = [k for k in range(1, 10) for which in itertools.combinations(range(9), k)
               if abs(x[:, list(which)].prod(1).sum()) == len(x)]  # fmt: skip
    assert [lengths.count(k) for k in range(3, 10)] == [0, 6, 8, 0, 0, 1, 0]


def test_what_a_variant_sets() -> None:
    found = designed(document(f"  kind: factorial\n  factors: {FACTORS}"))
    assert found is not None
    by_name = {each.name: each for each in found}
    assert by_name["baseline"].paths() == set()
    assert by_name["full"].paths() == {"arch.position", "arch.sublayers.f", "arch.norm", "arch.d_ff"}
    before = Draft()
    before.lay({"arch": {"d_model": 32}}, found[0].origin)
    tree = by_name["norm+wide"].lay_on(before).tree["arch"]
    assert tree == {"d_model": 32, "norm": "rmsnorm", "d_ff": 96} and before.tree["arch"] == {"d_model": 32}
    assert by_name["rope+gate"].lay_on(before).tree["arch"]["position"] == "rope"
    assert by_name["full"].is_combination and not by_name["rope"].is_combination


def test_factors_that_agree_are_crossed() -> None:
    found = made("factorial", "{a: {arch.norm: rmsnorm, arch.d_ff: 96}, b: {arch.norm: rmsnorm}}")
    assert list(found) == ["baseline", "b", "a", "full"]


CLASH = "\n    a: {arch.norm: rmsnorm}\n    b:\n      arch.d_ff: 96\n      arch.norm: layernorm"


def test_factors_that_clash_are_added_one_at_a_time_alone() -> None:
    assert list(made("add_one_in", CLASH)) == ["baseline", "a", "b"]
    with pytest.raises(UserError) as error:
        made("factorial", CLASH)
    assert str(error.value).startswith(
        "grid.yaml:9: design.factors.b.arch.norm: factor 'b' sets arch.norm to 'layern"
    )
    assert "factor 'a' (line 6) sets arch.norm to 'rmsnorm': they cannot be crossed" in str(error.value)
    with pytest.raises(
        UserError, match=r"'o' sets arch.position.base to 10000.0, and factor 'rope' .line 5. sets arch.pos"
    ):
        made("both", "{rope: rope, o: {arch.position.base: 10000.0}}")
    with pytest.raises(UserError, match=r"'g' sets arch.sublayers.f to 'glu'"):
        made("leave_one_out", "{swiglu: swiglu, g: {arch.sublayers: {f: glu}}}")


@pytest.mark.parametrize(
    ("design", "words_"),
    [
        ("  [1]", "design: [1] must be a mapping"),
        ("  factor: {a: rope, b: swiglu}", "design.factor: unknown key 'factor'; did you mean 'factors'?"),
        ("  kind: all\n  factors: {a: rope, b: swiglu}", "unknown kind 'all'; known: add_one_in, both, factorial"),
        ("  factors: {a: rope}", "must be a mapping of 2 to 10 factors"),
        ("  factors: {a: ropee, b: swiglu}", "unknown variant 'ropee'; did you mean 'rope'?"),
        ("  factors: {a: rope+alibi, b: swiglu}", "'rope' and 'alibi' both set arch.position"),
        ("  factors: {a: gpt2, b: swiglu}", "preset 'gpt2' sets everything and is no factor"),
        ("  factors: {a: baseline, b: swiglu}", "'baseline' sets nothing"),
        ("  factors: {a: {}, b: swiglu}", "must be the name of a registered variant, or a mapping"),
        ("  factors: {full: rope, b: swiglu}", "'full' is a name that the design's own variants have"),
        ("  factors: {a+c: rope, b: swiglu}", "'a+c' must be letters, digits"),
        ("  kind: both\n  resolution: 3\n  factors: {a: rope, b: swiglu}", "a both design has no resolution"),
        (f"  kind: fractional\n  resolution: high\n  factors: {FACTORS}", "'high' must be a whole number from 3"),
        (
            f"  kind: fractional\n  resolution: 5\n  factors: {FACTORS}",
            "no fraction of resolution 5 of 4 factors: 4 factors have fractions of resolution 3 to 4; choose "
            "resolution: 3 (8 variants), resolution: 4 (8 variants), kind: factorial (16 variants)",
        ),
        (
            "  kind: fractional\n  resolution: 2\n  factors: {a: rope, b: swiglu}",
            "below 3 factors none; choose kind: factorial (4 variants)",
        ),
    ],
)
def test_mistakes_name_the_place_and_what_is_legal(design: str, words_: str) -> None:
    with pytest.raises(UserError) as error:
        designed(document(design))
    assert words_ in str(error.value) and str(error.value).startswith("grid.yaml:")


def test_variants_and_a_design_do_not_go_together() -> None:
    with pytest.raises(UserError, match=r"grid.yaml:2: variants: variants and design do not go together"):
        designed(document("  factors: {a: rope, b: swiglu}", "variants: {a: {}}"))


def test_a_design_on_file(write: Callable[..., Path]) -> None:
    found = designed(read_yaml(write(f"design: {{kind: fractional, factors: {FACTORS}}}")))
    assert found is not None and len(found) == 8 and found[0].name == "baseline"
    assert found[-1].name == "full" and sum(len(each.factors) == 2 for each in found) == 6
