"""The Weighted Transformer's attention against loops, its identities, and its constraint."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import SITE, B, T, array, context, jitter, make, near, random
from runs import spec
from torch import nn

from ablate import registry
from ablate.build import build_model, build_on_meta
from ablate.checks.model import train_steps
from ablate.contracts import Memory
from ablate.errors import UserError
from ablate.spec import ArchSpec, Component, parse
from ablate.subject import Subject
from ablate.train.run import TrainingRun, constrained

NARANG: dict[str, Any] = {
    "d_model": 768, "n_heads": 12, "d_head": 64, "d_ff": 3072, "depth": 12, "encoder": True, "bias": False,
    "norm": "none", "position": "none",
}  # fmt: skip


def over_heads(mixer: Any, heads_BTHK: np.ndarray) -> np.ndarray:
    """sum_m alpha_m FFN(kappa_m W_m head_m), head by head."""
    out, width = mixer.out, heads_BTHK.shape[-1]
    y = 0
    for m in range(heads_BTHK.shape[2]):
        block = array(out.mix.weight)[:, m * width : (m + 1) * width]
        z = array(out.kappa)[m] * (heads_BTHK[:, :, m] @ block.T)
        hidden = np.maximum(0, z @ array(out.up.weight).T + array(out.up.bias))
        y = y + array(out.alpha)[m] * (hidden @ array(out.down.weight).T + array(out.down.bias))
    return np.asarray(y)


def plain_heads(mixer: Any, x_BTD: torch.Tensor, ctx: Any) -> np.ndarray:
    """What attention with the same weights gives, before its output matrix."""
    kind = "attention" if ctx.memory is None else "cross"
    other = make("mixer", kind, SITE, **({"d_value": 5} if mixer.v.out_features == 20 else {}))
    for name in ("q", "k", "v"):
        getattr(other, name).load_state_dict(getattr(mixer, name).state_dict())
    other.causal, other.out = mixer.causal, nn.Identity()
    return array(other(x_BTD, ctx).unflatten(-1, (4, -1)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [{}, {"d_value": 5}])
@pytest.mark.parametrize("causal", [True, False])
def test_weighted(causal: bool, options: dict[str, Any], bias: bool) -> None:
    mixer = make("mixer", "weighted", replace(SITE, causal=causal, bias=True), **options)
    if not bias:
        mixer.out.down.bias = mixer.out.up.bias = None
    x = random(B, T, 12)
    near(array(mixer(x, context())), over_heads(mixer, plain_heads(mixer, x, context())))


def test_weighted_cross() -> None:
    mixer = make("mixer", "weighted_cross", replace(SITE, tower="decoder"))
    x, source = random(B, T, 12), random(B, 5, 12, seed=3)
    valid_BS = torch.arange(5)[None] < torch.tensor([[5], [2]])
    ctx = replace(context(), memory=Memory(source, valid_BS, lambda layer: source))
    near(array(mixer(x, ctx)), over_heads(mixer, plain_heads(mixer, x, ctx)))


@pytest.mark.parametrize("activation", ["gelu", "identity"])
def test_activation(activation: str) -> None:
    mixer = make("mixer", "weighted", replace(SITE, n_heads=1, d_head=12), activation=activation)
    ffn = make("channel", "ffn", SITE, activation=activation)
    ffn.up.load_state_dict(mixer.out.up.state_dict())
    ffn.down.load_state_dict(mixer.out.down.state_dict())
    mixer.out.kappa.data.fill_(1.0)
    mixer.out.alpha.data.fill_(1.0)
    y_BTE = random(B, T, 12)
    near(array(mixer.out(y_BTE)), array(ffn(y_BTE @ mixer.out.mix.weight.T, context())))


def test_even_weights_and_a_linear_network_are_attention() -> None:
    """kappa = alpha = 1/H and W2 W1 = 1: attention's output over H^2."""
    site = replace(SITE, d_ff=12, bias=False)
    mixer, attention = make("mixer", "weighted", site, activation="identity"), make("mixer", "attention", site)
    for name in ("q", "k", "v"):
        getattr(mixer, name).load_state_dict(getattr(attention, name).state_dict())
    mixer.out.mix.load_state_dict(attention.out.state_dict())
    for linear in (mixer.out.up, mixer.out.down):
        linear.weight.data.copy_(torch.eye(12))
    for share_H in (mixer.out.kappa, mixer.out.alpha):
        share_H.data.fill_(1 / 4)
    x = random(B, T, 12)
    near(array(mixer(x, context())), array(attention(x, context())) / 16)


def test_gradient() -> None:
    mixer = make("mixer", "weighted", replace(SITE, n_heads=2), activation="gelu")
    parameters = (mixer.out.kappa, mixer.out.alpha, mixer.out.mix.weight, mixer.out.down.bias)
    y_BTE = random(1, 2, 12)

    def run(*given: torch.Tensor) -> torch.Tensor:
        names = ("kappa", "alpha", "mix.weight", "down.bias")
        y: torch.Tensor = torch.func.functional_call(mixer.out, dict(zip(names, given, strict=True)), y_BTE)
        return y

    assert torch.autograd.gradcheck(run, parameters)


# --- the constraint


def fresh(**options: Any) -> Any:
    torch.manual_seed(0)
    return registry.make("mixer", Component("weighted", tuple(options.items())), replace(SITE, n_heads=200, d_head=2))


def test_start() -> None:
    """U(0, 1), projected: of sum one and from zero to twice the mean, evenly."""
    out = fresh().out
    for share_H in (out.kappa, out.alpha):
        assert share_H.min() >= 0 and share_H.sum().item() == pytest.approx(1, abs=1e-3)
        assert share_H.max().item() == pytest.approx(2 / 200, rel=0.15)
        assert share_H.std().item() == pytest.approx(1 / 200 / 3**0.5, rel=0.15)
    assert not torch.equal(out.kappa, out.alpha)


def test_projection() -> None:
    out = make("mixer", "weighted", SITE).out
    z = np.array([0.5, -0.2, 0.0, 0.3])
    out.kappa.data.copy_(torch.from_numpy(z))
    out.alpha.data.copy_(torch.from_numpy(z[::-1].copy()))
    out.after_step(0.5)
    expected = np.maximum(z, 0) / np.sum(np.maximum(z, 0) + 1e-4)
    near(array(out.kappa), expected)
    near(array(out.alpha), expected[::-1])


@pytest.mark.parametrize("freeze", [0.0, 0.038, 0.5])
def test_frozen_at_the_end(freeze: float) -> None:
    """What was there at the last step before stays, whatever the optimizer does; a restored copy goes on alike."""
    out = make("mixer", "weighted", SITE, freeze=freeze).out
    out.after_step(0.1)
    other = make("mixer", "weighted", SITE, freeze=freeze).out
    other.load_state_dict(out.state_dict())
    for step, progress in enumerate((0.3, 0.5, 0.51, 0.962, 0.97, 1.0)):
        before = out.kappa.clone()
        for each in (out, other):
            jitter(each, seed=step, scale=0.05)
            each.after_step(progress)
        assert torch.equal(out.kappa, before) == (progress > 1 - freeze)
        assert torch.equal(out.kappa, other.kappa) and torch.equal(out.alpha, other.alpha)


def test_training_projects_after_every_step() -> None:
    """The weights stay on the simplex through an optimizer's steps, and stand still in the last of them."""
    subject = Subject(registry.find("mixer", "weighted"), Component("weighted", (("freeze", 0.5),)))
    model = subject.model(torch.float32, jitter=False).train()
    modules = constrained(model)
    assert [type(each).__name__ for each in modules] == ["Branches", "Branches"]
    seen: list[Any] = []
    watched: Any = modules[0]
    project = watched.after_step
    watched.after_step = lambda progress: (project(progress), seen.append(watched.alpha.tolist()))
    train_steps(model, torch.optim.Adam(model.parameters(), lr=0.05), subject, 8)
    assert all(min(each) >= 0 and sum(each) == pytest.approx(1, abs=1e-3) for each in seen) and len(seen) == 8
    assert seen[3] == seen[4] == seen[7] and seen[0] != seen[1] != seen[2]


def test_a_run_resumed_in_its_frozen_end(token_cache: Path) -> None:
    """Bit for bit what an undisturbed run gives: the kept values are part of its state."""
    settings = {"arch.order": "s", "arch.sublayers": {"s": {"name": "weighted", "freeze": 0.5}}, "arch.depth": 1}
    one, two = (TrainingRun(spec(settings), torch.device("cpu"), token_cache) for _ in range(2))
    kept = []
    for step in range(one.steps):
        one.train_step()
        kept.append(one.constrained[0].alpha.tolist())
        if step == one.steps * 3 // 4:
            two.restore(copy.deepcopy(one.state()))
    half = one.steps // 2
    assert all(each == kept[half - 1] for each in kept[half:]) and kept[half - 2] != kept[half - 1]
    assert all(min(each) >= 0 and sum(each) == pytest.approx(1, abs=1e-3) for each in kept)
    while two.step < two.steps:
        two.train_step()
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, two.model.state_dict()[name]), name


def test_no_other_component_is_constrained() -> None:
    assert not constrained(build_model(ArchSpec(d_model=16), 11, 16))


# --- counting


def test_parameters() -> None:
    """36 feed-forward networks in 12 + 12 layers, 36 times kappa and alpha; no other."""
    tree = {**NARANG, "order": "s", "sublayers": {"s": "weighted", "c": "weighted_cross"}}
    arch = parse(ArchSpec, tree)
    assert (arch.encoder_order, arch.decoder_order) == ("s", "sc")
    count = sum(p.numel() for p in build_on_meta(arch, 32128, 512).parameters())
    assert count == 32128 * 768 + 36 * (4 * 768**2 + 2 * 768 * 3072 + 2 * 12)
    assert round(count / 1e6, 2) == 279.48


def test_flops() -> None:
    """H 2 d d_ff for the first matrix; the second after the sum over heads."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        mixer = registry.make("mixer", Component("weighted"), SITE)
        y_BTE = torch.zeros(1, T, 24)
    with FlopCounterMode(display=False) as counter:
        mixer.out(y_BTE)
    assert counter.get_total_flops() == T * (4 * 2 * 6 * 12 + 4 * 2 * 12 * 20 + 2 * 20 * 12)


def test_refusals() -> None:
    for name in ("weighted", "weighted_cross"):
        with pytest.raises(UserError, match=f"mixer '{name}': freeze 2 must be from 0 to 1"):
            make("mixer", name, SITE, freeze=2.0)
    assert registry.find("mixer", "weighted").defaults["freeze"] == 0.038
