"""The universal stack against halting done by hand, and against models that it must be equal to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from reference import SITE, B, T, array, context, jitter, make, near, random
from torch import Tensor

from ablate.build import build_model, build_on_meta
from ablate.contracts import Cache, Context
from ablate.errors import UserError
from ablate.spec import ArchSpec, Component, parse

D = SITE.d_model
MATRIX = random(D, D, seed=7, scale=0.5)
TOKENS = torch.randint(0, 11, (B, T), generator=torch.Generator().manual_seed(3))


def layer(x_BTD: Tensor, ctx: Context) -> Tensor:
    """Any function of the state that mixes time causally."""
    return torch.tanh(x_BTD @ MATRIX) + x_BTD.cumsum(1) / 5


def stack(**options: Any) -> Any:
    return make("stack", "universal", SITE, **options)


def model(**settings: Any) -> Any:
    tree = {"d_model": 12, "n_heads": 2, "d_ff": 20, "depth": 1, "position": "none", **settings}
    made = build_model(parse(ArchSpec, tree), 11, 16).double().eval()
    jitter(made, 6)
    return made


def by_hand(x: np.ndarray, ut: Any, step_of: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Graves' equations, position by position: the output, and N + R."""
    w, b = array(ut.halt.weight)[0], ut.halt_bias.item()
    out, h, cost = np.zeros_like(x), np.zeros(x.shape[:2]), np.zeros(x.shape[:2])
    halted = np.zeros(x.shape[:2], dtype=bool)
    for step in range(1, ut.steps + 1):
        marked, x = x, step_of(x)
        for place in np.ndindex(*h.shape):
            if halted[place]:
                continue
            p = 1 / (1 + math.exp(-(marked[place] @ w + b)))
            cost[place] += 1
            if h[place] + p > ut.threshold or (step == ut.steps and ut.force_halt):
                u, halted[place] = 1 - h[place], True
                cost[place] += u
            else:
                u = p
            h[place] += u
            out[place] = u * x[place] + out[place] * (1 - u if ut.accumulate == "replace" else 1)
    return out, cost


@pytest.mark.parametrize("accumulate", ["replace", "sum"])
@pytest.mark.parametrize("force_halt", [True, False])
@pytest.mark.parametrize(("threshold", "bias"), [(0.99, 0.0), (0.5, -1.0), (0.7, -2.0)])
def test_halting(threshold: float, bias: float, force_halt: bool, accumulate: str) -> None:
    ut = stack(
        steps=5, threshold=threshold, halt_bias=bias, force_halt=force_halt, accumulate=accumulate, coordinates="none"
    )
    ctx, x = context(), random(B, T, D, scale=3.0)
    expected, cost = by_hand(x.numpy(), ut, lambda state: layer(torch.from_numpy(state), ctx).numpy())
    near(array(ut(x, [layer], ctx)), expected)
    assert len(np.unique(np.floor(cost))) > 1, "all positions halt at the same step: nothing is tested"
    near(ctx.aux["ponder"].item(), 0.01 * cost.mean())


def test_ponder_cost_without_padding() -> None:
    ut = stack(steps=4, ponder=0.5, coordinates="none", threshold=0.8, halt_bias=-1.0)
    x, valid_BT = random(B, T, D), torch.arange(T)[None] < torch.tensor([T, 4])[:, None]
    whole, padded = context(), replace(context(), valid_BT=valid_BT)
    ut(x, [layer], whole)
    ut(x, [layer], padded)
    _, cost = by_hand(x.numpy(), ut, lambda state: layer(torch.from_numpy(state), whole).numpy())
    near(whole.aux["ponder"].item(), 0.5 * cost.mean())
    near(padded.aux["ponder"].item(), 0.5 * cost[valid_BT.numpy()].mean())
    free = context()
    stack(steps=4, ponder=0.0)(x, [layer], free)
    assert not free.aux


def test_weights_sum_to_one_when_halting_is_forced() -> None:
    """The output for layers that give ones is the sum of the weights."""
    ones = lambda x_BTD, ctx: torch.ones_like(x_BTD)  # noqa: E731
    x = random(B, T, D)
    options: dict[str, Any] = {"steps": 3, "accumulate": "sum", "coordinates": "none", "halt_bias": -2.0}
    near(array(stack(force_halt=True, **options)(x, [ones], context())), np.ones((B, T, D)))
    assert stack(**options)(x, [ones], context()).max() < 0.9, "positions that never halt"


@pytest.mark.parametrize("accumulate", ["replace", "sum"])
def test_certain_halting_is_one_step(accumulate: str) -> None:
    ut = stack(steps=4, accumulate=accumulate, coordinates="none", halt_bias=60.0)
    ut.halt.weight.data.zero_()
    x = random(B, T, D)
    near(array(ut(x, [layer], context())), array(layer(x, context())))


def test_gradient() -> None:
    ut = stack(steps=3, threshold=0.8, halt_bias=-1.0)
    x = random(1, 3, D).requires_grad_()
    small = context(length=3)
    assert torch.autograd.gradcheck(lambda each: ut(each, [layer], replace(small, aux={})), x)
    parameters = (ut.halt.weight, ut.halt_bias)
    ctx = context(length=3)
    ut(x, [layer], ctx)
    for gradient in torch.autograd.grad(ctx.aux["ponder"], parameters):
        assert gradient.abs().max() > 0, "the remainder has a gradient"


@pytest.mark.parametrize("d", [12, 7])
def test_coordinates(d: int) -> None:
    """P^t is added before every step: with layers that do nothing, their sum."""
    ut = make("stack", "universal", replace(SITE, d_model=d), steps=3, act=False)
    x = random(B, T, d)
    expected = x.numpy().copy()
    for t in range(1, 4):
        for i in range(T):
            for j in range(d // 2):
                rate = 10000 ** (-2 * j / d)
                expected[:, i, 2 * j] += math.sin(i * rate) + math.sin(t * rate)
                expected[:, i, 2 * j + 1] += math.cos(i * rate) + math.cos(t * rate)
    near(array(ut(x, [lambda x_BTD, ctx: x_BTD], context())), expected, atol=2e-6)  # the waves are float32
    assert not list(ut.parameters())


def test_learned_steps() -> None:
    ut = stack(steps=3, act=False, coordinates="learned")
    x = random(B, T, D)
    expected = x + math.sqrt(D) * ut.step_table.sum(0)
    near(array(ut(x, [lambda x_BTD, ctx: x_BTD], context())), array(expected))
    wide = build_model(
        parse(ArchSpec, {"d_model": 512, "depth": 1, "stack": {"name": "universal", "coordinates": "learned"}}), 3, 4
    )
    assert wide.tower.stack.step_table.std().item() == pytest.approx(512**-0.5, rel=0.05)
    assert wide.tower.stack.halt_bias.item() == 1.0


def test_one_step_is_a_layer() -> None:
    plain = model(residual="post")
    once = model(residual="post", stack={"name": "universal", "steps": 1, "act": False, "coordinates": "none"})
    once.load_state_dict(plain.state_dict())
    assert torch.equal(once.log_probs(TOKENS), plain.log_probs(TOKENS))


@pytest.mark.parametrize("layers", [1, 2])
def test_steps_are_shared_layers(layers: int) -> None:
    """Without halting and coordinates: ALBERT's sharing, or two layers in turn."""
    ut = model(depth=layers, stack={"name": "universal", "steps": 4, "act": False, "coordinates": "none"})
    plain = model(depth=4 * layers, sharing="all" if layers == 1 else "none")
    state = ut.state_dict()
    if layers == 2:
        for part in ("functions", "residuals"):
            for name in [name for name in state if name.startswith(f"tower.{part}.")]:
                own, rest = name.split(".")[2], name.split(".", 3)[3]
                state.update({f"tower.{part}.{int(own) + 2 * step}.{rest}": state[name] for step in range(1, 4)})
    plain.load_state_dict(state)
    near(array(ut.log_probs(TOKENS)), array(plain.log_probs(TOKENS)))


def test_layers_and_calls_are_counted() -> None:
    seen = []

    def watched(x_BTD: Tensor, ctx: Context) -> Tensor:
        seen.append((ctx.layer, ctx.call))
        ctx.call += 1
        return x_BTD

    stack(steps=3)(random(B, T, D), [watched, watched], context())
    assert seen == [(index, index) for index in range(6)]


@pytest.mark.parametrize("coordinates", ["sinusoidal", "learned"])
def test_decoding(coordinates: str) -> None:
    """Positions halt by themselves, so that step by step they halt where they do in a full pass."""
    ut = model(
        depth=2,
        position="sinusoidal",
        stack={"name": "universal", "steps": 5, "threshold": 0.5, "halt_bias": -1.0, "coordinates": coordinates},
    )
    full = ut.log_probs(TOKENS)
    cache = Cache()
    near(array(torch.cat([ut.log_probs(each, cache) for each in TOKENS.split(2, 1)], 1)), array(full), atol=1e-10)


def test_parameters() -> None:
    """One block, d + 1 for halting and T d for the steps: of every tower."""

    def count(**settings: Any) -> int:
        tree = {"d_model": 12, "n_heads": 2, "depth": 1, "bias": False, **settings}
        return sum(p.numel() for p in build_on_meta(parse(ArchSpec, tree), 11, 16).parameters())

    for encoder in (False, True):
        extra = count(encoder=encoder, stack={"name": "universal", "steps": 24, "coordinates": "learned"})
        assert extra - count(encoder=encoder) == (1 + encoder) * (12 + 1 + 24 * 12)


def test_encoder_decoder() -> None:
    """Both towers ponder."""
    pair = model(encoder=True, stack={"name": "universal", "steps": 3, "ponder": 1.0, "halt_bias": 60.0})
    *_, aux = pair.objective(TOKENS, TOKENS, TOKENS, 0.0, 0.0)
    near(aux["ponder"].item(), 4.0)  # each position of each tower takes one step, with remainder 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"steps": 0, "act": False}, "steps 0 must be at least 1"),
        ({"threshold": 1.5}, "threshold 1.5 must be from 0 to 1"),
        ({"ponder": -1.0}, "ponder -1"),
        ({"steps": 1}, "act to false"),
        ({"act": False, "threshold": 0.5}, "no effect with act false"),
    ],
)
def test_refusals(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        make("stack", "universal", SITE, **options)


def test_bfloat16_halts_in_float32() -> None:
    ut = make("stack", "universal", SITE, steps=3).to(torch.bfloat16)
    y = ut(random(B, T, D).to(torch.bfloat16), [lambda x_BTD, ctx: x_BTD], context())
    assert y.dtype == torch.float32 and Component("universal").name in ut.component
