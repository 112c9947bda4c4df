"""Batch norms against torch.nn, against loops from the equation, and against what they promise about time."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from reference import EXACT, B, T, array, make, near, random
from torch import Tensor, nn

from ablate import registry
from ablate.build import build_model
from ablate.contracts import Cache
from ablate.cost import count
from ablate.errors import UserError
from ablate.spec import ArchSpec, Component, parse

LEAKING = {"name": "batchnorm", "train_stats_leak": True}
TOKENS = torch.randint(0, 11, (3, T), generator=torch.Generator().manual_seed(3))


def model_of(norm: Any, *, causal: bool = True, **settings: Any) -> Any:
    """A model in float64 whose parameters are away from zeros and ones."""
    arch = parse(ArchSpec, {"d_model": 12, "n_heads": 2, "d_ff": 20, "depth": 2, "norm": norm, **settings})
    model = build_model(arch, 11, 16, causal=causal, classes=5).double()
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def changed_at(place: int) -> Tensor:
    tokens = TOKENS.clone()
    tokens[:, place] = (tokens[:, place] + 1) % 11
    return tokens


@pytest.mark.parametrize("options", [{}, {"eps": 1e-2, "momentum": 0.3}])
def test_batchnorm_is_torch_s(options: dict[str, float]) -> None:
    """nn.BatchNorm1d on (B, d, n): three training steps with their gradients, the statistics, evaluation."""
    norm = make("norm", "batchnorm", 12, **options).train()
    theirs = nn.BatchNorm1d(12, **options, dtype=torch.float64)  # type: ignore[arg-type]
    with torch.no_grad():
        theirs.weight.copy_(norm.gain)
        theirs.bias.copy_(norm.shift)
    for step in range(3):
        x = (random(B, T, 12, seed=step) * (1 + step) + 2).requires_grad_()
        x2 = x.detach().clone().requires_grad_()
        weights = random(B, T, 12, seed=7)
        y, y2 = norm(x), theirs(x2.transpose(1, 2)).transpose(1, 2)
        near(array(y), array(y2))
        for each in (norm, theirs):
            each.zero_grad()
        (y * weights).sum().backward()
        (y2 * weights).sum().backward()
        for one, other in ((x, x2), (norm.gain, theirs.weight), (norm.shift, theirs.bias)):
            near(one.grad, other.grad)
        near(norm.mean, theirs.running_mean)
        near(norm.variance, theirs.running_var)
    x = random(B, T, 12, seed=9)
    near(array(norm.eval()(x)), array(theirs.eval()(x.transpose(1, 2)).transpose(1, 2)))


def test_batchnorm_is_its_equation() -> None:
    """Biased variance in the normalisation, unbiased in the running statistics; any leading axes."""
    norm = make("norm", "batchnorm", 6, momentum=0.25).train()
    x = random(2, 4, 5, 6).numpy() * 3 + 1
    expected, mean, variance = np.zeros_like(x), np.zeros(6), np.zeros(6)
    for d in range(6):
        values = x[..., d].ravel()
        mean[d], variance[d] = values.mean(), ((values - values.mean()) ** 2).sum() / (len(values) - 1)
        biased = variance[d] * (len(values) - 1) / len(values)
        expected[..., d] = (x[..., d] - mean[d]) / np.sqrt(biased + 1e-5)
    near(array(norm(torch.from_numpy(x))), expected * array(norm.gain) + array(norm.shift))
    near(norm.mean, 0.25 * mean)
    near(norm.variance, 0.75 + 0.25 * variance)
    assert {name for name, _ in norm.named_parameters()} == {"gain", "shift"}
    assert {name for name in norm.state_dict() if name not in ("gain", "shift")} == {"mean", "variance"}


def test_a_batch_leaks_in_training_alone() -> None:
    """Variants.md measures a leak into position 0; evaluation has none, and decodes step by step."""
    model = model_of(LEAKING)
    for training, leaks in ((True, True), (False, False)):
        model.train(training)
        with torch.no_grad():
            difference = (model.log_probs(changed_at(T - 1)) - model.log_probs(TOKENS))[:, : T - 1].abs()
        assert (difference[:, 0].max() > 1e-3) == leaks and (difference.max() < EXACT) != leaks
    with torch.no_grad():
        model.tower.residuals["0"][0].norm.mean += 0.5
        full = model.log_probs(TOKENS)
        for piece in (1, 5):
            cache = Cache()
            pieces = [model.log_probs(part, cache=cache) for part in TOKENS.split(piece, 1)]
            near(torch.cat(pieces, 1), full, 1e-10)


def test_a_causal_model_asks_for_consent() -> None:
    with pytest.raises(UserError, match="norm 'batchnorm' sees the future"):
        model_of("batchnorm")
    with pytest.raises(UserError, match="norm 'batchnorm' sees the future"):
        model_of("batchnorm", encoder=True)
    model_of(LEAKING, encoder=True)
    model_of("batchnorm", causal=False)
    model_of("batchnorm_running")


@pytest.mark.parametrize("norm", ["batchnorm", "batchnorm_running"])
def test_padding(norm: str) -> None:
    """Refused in training, where it would be counted; in evaluation it moves nothing."""
    model = model_of(norm, causal=False, head="classify")
    valid_BT = torch.arange(T)[None] < torch.tensor([T, 4, 6])[:, None]
    model.train()
    with pytest.raises(UserError, match=f"norm '{norm}' would count padding in training"):
        model.log_probs(TOKENS, valid_BT)
    model.log_probs(TOKENS)
    model.eval()
    with torch.no_grad():
        near(model.log_probs(TOKENS, valid_BT)[1], model.log_probs(TOKENS[1:2, :4])[0])
    pair = model_of(LEAKING if norm == "batchnorm" else norm, encoder=True).train()
    with pytest.raises(UserError, match="would count padding in training"):
        pair.log_probs(TOKENS, TOKENS, valid_BS=valid_BT)


@pytest.mark.parametrize("name", ["batchnorm", "batchnorm_running"])
def test_one_position_has_no_variance(name: str) -> None:
    norm = make("norm", name, 12)
    norm(random(1, 1, 12))
    with pytest.raises(UserError, match="two positions or more"):
        norm.train()(random(1, 1, 12))
    arch = parse(ArchSpec, {"d_model": 12, "n_heads": 2, "depth": 1, "norm": {"name": name}})
    one = count(arch, 11, 1, causal=False)  # costs are counted on a single row
    assert one.params_by_slot["norm"] == 3 * 2 * 12


@pytest.mark.parametrize("name", ["batchnorm", "batchnorm_running"])
@pytest.mark.parametrize(("option", "value"), [("eps", -1.0), ("momentum", 1.5), ("momentum", -0.1)])
def test_options_have_ranges(name: str, option: str, value: float) -> None:
    with pytest.raises(UserError, match=f"norm '{name}': {option}"):
        make("norm", name, 12, **{option: value})


@pytest.mark.parametrize("name", ["batchnorm", "batchnorm_running"])
def test_bfloat16_goes_through_float32(name: str) -> None:
    """Rounded once, on the way out; in float64 nothing is rounded to float32."""
    norm = registry.make("norm", Component(name), 8).train()
    x = (random(64, 8) + 20).to(torch.bfloat16)
    exact = copy.deepcopy(norm).double()
    y = norm(x)
    expected = exact(x.double())
    assert y.dtype == torch.bfloat16 and expected.dtype == torch.float64 and norm.mean.dtype == torch.float32
    assert ((y.double() - expected).abs() <= 2**-8 * expected.abs() + 1e-4).all()


def test_running_statistics_are_constants_of_earlier_steps() -> None:
    """Training and evaluation compute the same; the gradient is that of an affine map; the batch counts later."""
    norm = make("norm", "batchnorm_running", 6, momentum=0.25)
    mean, variance = np.zeros(6), np.ones(6)
    for step in range(3):
        x = (random(B, T, 6, seed=step) * (1 + step) + 2).requires_grad_()
        evaluated = norm.eval()(x.detach())
        y = norm.train()(x)
        near(array(y), array(evaluated))
        root = np.sqrt(variance + 1e-5)
        near(array(y), (array(x) - mean) / root * array(norm.gain) + array(norm.shift))
        near(norm.mean, mean)
        norm.zero_grad()
        weights = random(B, T, 6, seed=8)
        (y * weights).sum().backward()
        near(x.grad, weights.numpy() * array(norm.gain) / root)
        near(norm.gain.grad, (weights.numpy() * (array(x) - mean) / root).sum((0, 1)))
        mean += 0.25 * (array(x).mean((0, 1)) - mean)
        variance += 0.25 * (array(x).reshape(-1, 6).var(0, ddof=1) - variance)
        near(norm.mean, mean)
        near(norm.variance, variance)


def test_a_pass_without_gradients_leaves_the_running_statistics() -> None:
    model = model_of("batchnorm_running").train()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model.nll(TOKENS, TOKENS)
    model.nll(TOKENS, TOKENS)
    model.eval().nll(TOKENS, TOKENS).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.train().nll(TOKENS, TOKENS).sum().backward()
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert len(moved) == 5 * 2 and all(name.endswith(("mean", "variance")) for name in moved)


@pytest.mark.parametrize("sharing", ["none", "all"])
def test_running_statistics_are_causal_while_they_are_learned(sharing: str) -> None:
    """With gradients on, also where one norm serves several layers of a pass; every use of it counts."""
    model = model_of("batchnorm_running", sharing=sharing, depth=3).train()
    for _ in range(3):
        model.nll(TOKENS, TOKENS).sum().backward()
    one, other = copy.deepcopy(model), copy.deepcopy(model)
    difference = (one.log_probs(changed_at(T - 1)) - other.log_probs(TOKENS)).abs()
    assert difference[:, : T - 1].max() < EXACT < 0.01 < difference[:, T - 1].max()
    rows = TOKENS.clone()
    rows[1:] = changed_at(2)[1:]
    assert (copy.deepcopy(model).log_probs(rows) - one.log_probs(TOKENS))[0].abs().max() < EXACT
    if sharing == "all":
        norm = one.tower.residuals["0"][0].norm
        old, seen = norm.mean.clone(), []
        hook = norm.register_forward_pre_hook(lambda _, x: seen.append(x[0].detach().mean((0, 1))))
        one.nll(TOKENS, TOKENS).sum().backward()
        hook.remove()
        assert len(seen) == 3
        for mean in reversed(seen):  # the backward pass comes to the last use first
            old = old.lerp(mean, 0.1)
        near(norm.mean, old)
