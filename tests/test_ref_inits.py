"""Where DeepNorm's and Fixup's models start from: deviations, bounds, zeros."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference import array, near

from ablate.build import build_model, build_on_meta
from ablate.contracts import Linear
from ablate.spec import ArchSpec, parse


def arch_of(**settings: Any) -> ArchSpec:
    return parse(ArchSpec, {"d_model": 12, "n_heads": 2, "d_ff": 20, "depth": 3, **settings})


WIDE = {"d_model": 128, "n_heads": 4, "d_head": 24, "d_ff": 192, "position": "none"}
Expected = Callable[[str, Linear], float]


def check_deviations(model: Any, expected: Expected, uniform: bool) -> int:
    """Mean 0 and the deviation, to five standard errors; the largest entry is the uniform's bound, or beyond it."""
    checked = 0
    for name, module in model.named_modules():
        if not isinstance(module, Linear):
            continue
        checked += 1
        weight, deviation = module.weight.detach(), expected(name, module)
        assert module.bias is None or not module.bias.any()
        if deviation == 0:
            assert not weight.any(), name
            continue
        error = math.sqrt((0.2 if uniform else 0.5) / weight.numel())  # of a relative deviation
        assert abs(weight.std().item() / deviation - 1) < 5 * error, name
        assert abs(weight.mean().item()) < 5 * deviation / math.sqrt(weight.numel()), name
        largest = weight.abs().max().item() / deviation
        assert 1.7 < largest <= 3**0.5 + 1e-6 if uniform else 3.3 < largest < 6.5, name
    return checked


def xavier(module: Linear) -> float:
    return math.sqrt(2 / (module.in_features + module.out_features))


@pytest.mark.parametrize("encoder", [False, True])
def test_deepnorm_initialisation(encoder: bool) -> None:
    """Xavier-normal with beta for the branch's own scale, 1 for queries, keys, gates and everything else."""
    N, M = 2, 3
    towers = {"encoder": True, "encoder_depth": N} if encoder else {}
    settings = {**WIDE, **towers, "depth": M, "init": "deepnorm", "residual": "deepnorm"}
    beta = {"encoder": 0.87 * (N**4 * M) ** (-1 / 16), "decoder": (12 * M) ** -0.25, "only": (8 * M) ** -0.25}

    def expected(name: str, module: Linear) -> float:
        side = name.split(".")[0] if encoder else "only"
        plain = name.split(".")[-1] in ("q", "k", "gate", "project")
        return xavier(module) * (1.0 if plain else beta[side])

    for sublayers in ({}, {"f": {"name": "glu", "activation": "swish", "hidden": "full"}}):
        arch = arch_of(**settings, sublayers=sublayers, head={"name": "softmax", "tied": False})
        model = build_model(arch, 300, 4)
        matrices = 7 if sublayers else 6
        n = M * (matrices + 4) + N * matrices if encoder else M * matrices
        assert check_deviations(model, expected, uniform=False) == n + 1
        table = (model.decoder if encoder else model).embedding.table.weight
        assert abs(table.std().item() * 128**0.5 - 1) < 0.02


@pytest.mark.parametrize("attention", ["glorot", "he"])
@pytest.mark.parametrize("encoder", [False, True])
def test_fixup_initialisation(attention: str, encoder: bool) -> None:
    """He L^(-1/2) in a ffn, L^(-1/6) in attention, L^(-1/4) He in a glu; L counts both towers; the last matrix 0."""
    towers = {"encoder": True, "encoder_depth": 2} if encoder else {}
    L = 2 * 2 + 3 * 3 if encoder else 2 * 3
    init = {"name": "fixup", "attention": attention}

    def expected(name: str, module: Linear) -> float:
        he, last = math.sqrt(2 / module.in_features), name.split(".")[-1]
        if last in ("q", "k", "v"):
            return (he if attention == "he" else xavier(module)) * L ** (-1 / 6)
        exponent = -1 / 4 if kind == "glu" else -1 / 2
        return {"up": he * L**exponent, "gate": he * L**exponent, "project": xavier(module)}.get(last, 0.0)

    for kind, options in (("ffn", {}), ("fixup_ffn", {}), ("glu", {"hidden": "full"})):
        sublayers = {"f": {"name": kind, **options}}
        settings = {**WIDE, **towers, "depth": 3, "init": init, "residual": "fixup", "norm": "none"}
        model = build_model(arch_of(**settings, sublayers=sublayers, head={"name": "softmax", "tied": False}), 300, 4)
        assert check_deviations(model, expected, uniform=True) > 3 * 6


def test_fixup_counts_the_mesh_code_s_sixty_branches() -> None:
    arch = arch_of(depth=12, encoder=True, residual="fixup", norm="none")
    assert build_on_meta(arch, 11, 16).decoder.tower.site.sublayers == 60


def test_initialisations_are_paired() -> None:
    """A module's values do not depend on what stands beside it, and beta is a factor."""
    models = [build_model(arch_of(init="deepnorm", depth=depth), 11, 16, seed=3) for depth in (2, 3)]
    one, other = (model.tower.functions["0"] for model in models)
    assert torch.equal(one[0].q.weight, other[0].q.weight)
    near(array(one[1].up.weight) * 16**0.25, array(other[1].up.weight) * 24**0.25, 1e-6)


def test_the_networks_of_experts() -> None:
    """Each is a branch's network; their router, which has no `write` matrix beside it, starts as everything else."""
    parts = {"f": {"name": "mixture_of_experts", "experts": 3}}
    settings = {**WIDE, "norm": "none", "sublayers": parts, "depth": 2}
    models = {init: build_model(arch_of(**settings, init=init), 11, 16) for init in ("vaswani", "deepnorm", "fixup")}
    plain, deepnorm, fixup = (model.tower.functions["1"][1] for model in models.values())
    assert torch.equal(plain.router.weight, fixup.router.weight)
    assert abs(deepnorm.router.weight.std().item() / xavier(deepnorm.router) - 1) < 0.2
    for ours, expected in ((deepnorm, 16**-0.25 * xavier(plain.experts[0].up)), (fixup, (2 / 128) ** 0.5 / 2)):
        for expert in ours.experts:
            assert abs(expert.up.weight.std().item() / expected - 1) < 0.03
    assert not any(expert.down.weight.any() for expert in fixup.experts)
