"""Orders by rule, the encoder's and the decoder's order, and layers that are swapped."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from ablate.build import build_model
from ablate.errors import SpecError, UserError
from ablate.orders import random, random_budget, sandwich
from ablate.spec import ArchSpec, parse

BASE: dict[str, Any] = {"d_model": 16, "n_heads": 4, "d_ff": 24, "depth": 4}


def arch(**settings: Any) -> ArchSpec:
    return parse(ArchSpec, {**BASE, **settings})


@pytest.mark.parametrize(
    ("k", "string"), [(0, "sf" * 16), (6, "s" * 6 + "sf" * 10 + "f" * 6), (15, "s" * 15 + "sf" + "f" * 15)]
)
def test_sandwich(k: int, string: str) -> None:
    """Press et al.: s^k (sf)^(n-k) f^k; k = 0 interleaves."""
    assert sandwich(16, k) == string
    made = arch(depth=16, order=f"sandwich({k})")
    assert (made.order, made.depth) == (string, 1)


@pytest.mark.parametrize("depth", [1, 4, 16])
def test_random_orders(depth: int) -> None:
    """As many of each, or as many parameters: an f has those of two s."""
    orders = {random(depth, seed) for seed in range(20)}
    budgets = {random_budget(depth, seed) for seed in range(20)}
    assert all(Counter(order) == {"s": depth, "f": depth} for order in orders)
    assert all(order.count("s") + 2 * order.count("f") == 3 * depth for order in budgets)
    assert all({"s", "f"} == set(order) for order in budgets)
    if depth > 1:
        assert len(orders) > 5 and len(budgets) > 5
        assert len({len(order) for order in budgets}) > 1


def test_random_orders_are_for_ever() -> None:
    """A study of them names them by their seed."""
    assert random(4, 0) == "ssssffff"
    assert random_budget(4, 1) == "sssssffsf"


def test_a_rule_is_its_string() -> None:
    assert arch(order="sandwich(1)") == arch(order="ssfsfsff", depth=1)
    assert arch(order="sandwich( 1 )") == arch(order="sandwich(1)")


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ("sandwich(4)", "k must be from 0 to 3"),
        ("sandwhich(1)", "did you mean 'sandwich'?"),
        ("sandwich(x)", "a rule with one number, as sandwich(2)"),
        ("sandwich(1", "a rule with one number"),
    ],
)
def test_a_wrong_rule(order: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        arch(order=order)
    assert caught.value.path == ("order",) and words in caught.value.problem


# --- two towers


@pytest.mark.parametrize(
    ("settings", "encoder", "decoder"),
    [
        ({}, "sf", "scf"),
        ({"order": "fsf"}, "fsf", "fscf"),
        ({"order": "sandwich(1)"}, "ssfsfsff", "scscfscfscff"),
        ({"order": "sfcf"}, "sff", "sfcf"),
        ({"order": "sf", "encoder_order": "fs"}, "fs", "scf"),
    ],
)
def test_cross_attention_follows_every_mixer(settings: dict[str, Any], encoder: str, decoder: str) -> None:
    made = arch(encoder=True, **settings)
    assert (made.encoder_order, made.decoder_order) == (encoder, decoder)
    assert arch(**{**settings, "encoder_order": None, "order": "sf"}).decoder_order == "sf"


def test_an_encoder_for_a_decoder() -> None:
    assert replace(arch(), encoder=True) == arch(encoder=True)


def test_depths_of_two_towers() -> None:
    model = build_model(arch(encoder=True, encoder_depth=2), 11, 8)
    assert len(model.encoder.tower.functions) == 2 and len(model.decoder.tower.functions) == 4
    assert arch(encoder=True).encoder_depth == 4
    for field, value in (("encoder_depth", 2), ("encoder_order", "sf")):
        with pytest.raises(SpecError, match="needs an encoder"):
            arch(**{field: value})


def test_shared_input_embeddings() -> None:
    """One table of three, two or one, by `share_embeddings` and the head's `tied`."""
    for share, tied, tables in ((True, True, 1), (True, False, 2), (False, True, 2), (False, False, 3)):
        made = arch(encoder=True, share_embeddings=share, head={"name": "softmax", "tied": tied})
        model = build_model(made, 100, 8)
        found = [p for p in {id(p): p for p in model.parameters()}.values() if p.shape == (100, 16)]
        assert len(found) == tables
    assert arch(share_embeddings=False) == arch()  # one tower has one input


# --- swaps


def kinds(model: Any, tower: str = "") -> str:
    """The channels of a tower's layers, by their first letters."""
    reader = getattr(model, tower) if tower else model
    return "".join(type(functions[-1]).__name__[0] for functions in reader.tower.functions.values())


@pytest.mark.parametrize(
    ("swap", "found"),
    [
        ({"every": 2}, "FGFG"),
        ({"every": 4}, "FFFG"),
        ({"every": 1}, "GGGG"),
        ({"layer": 0}, "GFFF"),
        ({"layer": -2}, "FFGF"),
    ],
)
def test_swap(swap: dict[str, Any], found: str) -> None:
    assert kinds(build_model(arch(swap={"by": "glu", **swap}), 11, 8)) == found


@pytest.mark.parametrize(
    ("tower", "found"), [("both", ("FG", "FG")), ("encoder", ("FG", "FF")), ("decoder", ("FF", "FG"))]
)
def test_swap_in_one_tower(tower: str, found: tuple[str, str]) -> None:
    model = build_model(arch(encoder=True, depth=2, swap={"by": "glu", "every": 2, "tower": tower}), 11, 8)
    assert (kinds(model, "encoder"), kinds(model, "decoder")) == found


@pytest.mark.parametrize(
    ("swap", "words"),
    [
        ({"by": "glu"}, "give either every or layer"),
        ({"by": "glu", "every": 2, "layer": 1}, "give either every or layer"),
        ({"by": "glu", "every": 9}, "no layer is swapped: depth is 4, and every 9 is meant"),
        ({"by": "glu", "layer": 4}, "no layer is swapped: depth is 4, and layer 4 is meant"),
        ({"by": "glu", "every": 0}, "must be at least 1"),
        ({"by": "glu", "every": 2, "sublayer": "x"}, "unknown sublayer 'x'"),
        ({"by": "glu", "every": 2, "tower": "left"}, "unknown tower 'left'"),
        ({"by": "glou", "every": 2}, "did you mean 'glu'?"),
    ],
)
def test_a_wrong_swap(swap: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        arch(swap=swap)
    assert caught.value.path[0] == "swap" and words in caught.value.problem


def test_what_sees_ahead_may_be_swapped_into_an_encoder_alone() -> None:
    swap = {"sublayer": "s", "by": "fnet", "every": 2}
    build_model(arch(encoder=True, swap={**swap, "tower": "encoder"}), 11, 8)
    for tower in ("both", "decoder"):
        with pytest.raises(UserError, match="mixer 'fnet' sees the future"):
            build_model(arch(encoder=True, swap={**swap, "tower": tower}), 11, 8)
