"""The sparsely gated networks: what is left to chance, precision, parameters and FLOPs, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from reference import SITE, B, T, array, context, make, near, random
from torch import Tensor

from ablate import registry
from ablate.build import build_model
from ablate.cost import count, params_only
from ablate.errors import UserError
from ablate.spec import ArchSpec, Component, parse

NAMES = ("mixture_of_experts", "switch")
D, F = 768, 3072


def arch(channel: dict[str, Any], **fields: Any) -> ArchSpec:
    tree = {"d_model": 16, "n_heads": 4, "depth": 1, "d_ff": 24, "order": "f", "bias": False, "position": "none"}
    return parse(ArchSpec, {**tree, "norm": "none", "sublayers": {"f": channel}, **fields})


# --- chance


@pytest.mark.parametrize("threshold", [0.2, 0.6, 1.0])
def test_the_second_expert_by_chance(threshold: float) -> None:
    """With probability min(1, g_2 / threshold), in training alone; the first one's gate stays as it is."""
    channel = make(
        "channel", "mixture_of_experts", SITE, experts=2, second_threshold=threshold, activation="identity"
    )
    for e, expert in enumerate(channel.experts):
        for parameter in expert.parameters():
            parameter.data.zero_()
        expert.down.bias.data[e] = 1.0  # the output's entry e is the gate of expert e, or zero
    x = random(4, 4000, 12, scale=0.5)
    both = channel(x, context())[..., :2]
    near(array(both.sum(-1)), 1.0)
    assert torch.equal(both, channel(x, context())[..., :2])
    ctx = context()
    torch.manual_seed(7)
    drawn = channel.train()(x, ctx)[..., :2]
    best = both.argmax(-1, keepdim=True)
    near(array(drawn.gather(-1, best)), array(both.gather(-1, best)))
    small, kept = (each.gather(-1, 1 - best)[..., 0] for each in (both, drawn))
    assert set((kept / small).unique().tolist()) <= {0.0, 1.0}
    near(array((kept > 0)[small > threshold]), 1.0)
    for low in (0.0, 0.25, 0.5, 0.75):
        chosen = (small > low * threshold) & (small <= (low + 0.25) * threshold)
        if chosen.sum() > 500:
            expected = (small[chosen] / threshold).mean().item()
            assert abs((kept[chosen] > 0).double().mean().item() - expected) < 4 * (0.25 / chosen.sum()) ** 0.5
    torch.manual_seed(7)
    assert torch.equal(drawn, channel(x, ctx)[..., :2])


def test_all_leaves_nothing_to_chance() -> None:
    channel = make("channel", "mixture_of_experts", SITE, second="all")
    x = random(B, T, 12)
    assert torch.equal(channel.train()(x, context()), channel.eval()(x, context()))


def test_jitter_moves_what_the_router_reads_and_nothing_else() -> None:
    """p of the jittered input times the network of the plain one, in training."""
    channel = make("channel", "switch", SITE, jitter=0.3, experts=3)
    x = random(B, T, 12)
    near(array(channel(x, context())), array(make("channel", "switch", SITE, experts=3)(x, context())))
    before, ctx = x.clone(), context()
    torch.manual_seed(4)
    y = channel.train()(x, ctx)
    assert torch.equal(x, before)
    torch.manual_seed(4)
    factors = torch.empty_like(x).uniform_(0.7, 1.3)
    p = torch.softmax((x * factors) @ channel.router.weight.T, -1).max(-1, keepdim=True)
    networks = torch.stack([expert(x, context()) for expert in channel.experts], -2)
    chosen = networks.gather(-2, p.indices[..., None].expand(-1, -1, -1, 12))[..., 0, :]
    near(array(y), array(p.values * chosen))


def test_noise_on_the_logits() -> None:
    """Of its deviation, in training, and in the losses too."""
    channel = make("channel", "mixture_of_experts", SITE, noise=0.5)
    x = random(40, 100, 12)
    assert torch.equal(channel.logits(x), channel.logits(x))
    plain = channel.logits(x)
    noise = channel.train().logits(x) - plain
    assert abs(noise.std().item() - 0.5) < 0.01 and abs(noise.mean().item()) < 0.01


@pytest.mark.parametrize("name", NAMES)
def test_dropout_of_the_experts(name: str) -> None:
    channel = make("channel", name, SITE, dropout=0.5, **({"second": "all"} if name == NAMES[0] else {}))
    x = random(B, T, 12)
    torch.manual_seed(0)
    assert (channel.train()(x, context()) - channel.eval()(x, context())).abs().max() > 0.01
    assert all(expert.dropout == 0.5 for expert in channel.experts)


# --- precision


@pytest.mark.parametrize("name", NAMES)
def test_the_router_is_float32_under_autocast(name: str) -> None:
    """Logits far apart in float32 and equal in bfloat16: the same experts, the same gates."""
    channel = registry.make("channel", Component(name), SITE).eval()
    channel.router.weight.data = torch.ones(4, 12) + 1e-4 * torch.arange(4)[:, None]
    x = random(B, T, 12).float()
    expected = channel.logits(x)
    ctx = context()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = channel.logits(x)
        y = channel(x, ctx)
    assert torch.equal(logits, expected) and logits.dtype == torch.float32 and y.dtype == torch.bfloat16
    assert ctx.aux["load_balance"].dtype == torch.float32
    assert (y.float() - channel(x, context())).abs().max() < 0.02
    low = registry.make("channel", Component(name), SITE).to(torch.bfloat16)
    assert low.logits(x.to(torch.bfloat16)).dtype == torch.float32 and low(x.to(torch.bfloat16), ctx).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_float64_is_kept(name: str) -> None:
    channel = make("channel", name, SITE)
    assert channel(random(B, T, 12), context()).dtype == channel.logits(random(B, T, 12)).dtype == torch.float64


# --- initialisation


def test_init_scale() -> None:
    """A tenth of the variance, of router and experts; the same draws otherwise."""
    plain = build_model(arch({"name": "switch"}, bias=True), 11, 16)
    small = build_model(arch({"name": "switch", "init_scale": 0.1}, bias=True), 11, 16)
    for (name, p), q in zip(plain.named_parameters(), small.parameters(), strict=True):
        factor = 0.1**0.5 if "functions" in name else 1.0
        assert torch.allclose(q, factor * p, rtol=1e-6), name
    assert any("functions" in name and p.any() for name, p in plain.named_parameters())


def test_experts_start_apart_and_as_the_ffn_does() -> None:
    """Each has a seed of its own, and the deviations that the init gives a ffn."""
    model = build_model(arch({"name": "mixture_of_experts", "experts": 3}, d_ff=400, d_model=64), 11, 16)
    dense = build_model(arch({"name": "ffn"}, d_ff=400, d_model=64), 11, 16)
    experts, ffn = model.tower.functions["0"][0].experts, dense.tower.functions["0"][0]
    ups: list[Tensor] = [expert.up.weight for expert in experts]
    assert not torch.equal(ups[0], ups[1]) and not torch.equal(ups[1], ups[2])
    for expert in experts:
        for one, other in ((expert.up, ffn.up), (expert.down, ffn.down)):
            assert abs(one.weight.std() / other.weight.std() - 1).item() < 0.03


# --- parameters and FLOPs


VANILLA = 32128 * D + 12 * (4 * D * D + 2 * D * F) + 12 * (8 * D * D + 2 * D * F)


@pytest.mark.parametrize(("name", "experts", "millions"), [(NAMES[0], 16, 647.60), (NAMES[1], 32, 1100.66)])
def test_parameters_of_narang_et_al(name: str, experts: int, millions: float) -> None:
    """12 + 12 layers without norms and biases, experts in every fourth of both towers: 6 of 24 ffn's."""
    tree = {"d_model": D, "n_heads": 12, "d_ff": F, "depth": 12, "encoder": True, "order": "scf", "bias": False}
    plain = parse(ArchSpec, {**tree, "position": "none", "norm": "none"})
    assert params_only(plain, 32128, 512) == VANILLA
    swap = {"sublayer": "f", "by": {"name": name, "experts": experts}, "every": 4}
    total = params_only(parse(ArchSpec, {**tree, "position": "none", "norm": "none", "swap": swap}), 32128, 512)
    assert total == VANILLA + 6 * ((experts - 1) * 2 * D * F + experts * D)
    assert abs(total / 1e6 - millions) < 0.01


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("experts", [1, 2, 5])
@pytest.mark.parametrize("name", NAMES)
def test_costs(name: str, experts: int, gated: bool) -> None:
    """E (2 d f + d) parameters; R 4 d f + 2 d E FLOPs, executed, of R experts a token."""
    channel = {"name": name, "experts": experts, "gated": gated}
    cost, bare = count(arch(channel), 11, 12), count(arch({"name": "ffn"}), 11, 12)
    used = min(experts, 2 if name == "mixture_of_experts" else 1)
    assert cost.params_by_slot["channel"] == experts * (2 * 16 * 24 + 16)
    assert cost.params_total - cost.params_active == (experts - used) * 2 * 16 * 24
    extra = cost.flops_forward - bare.flops_forward
    assert extra == (used - 1) * 4 * 16 * 24 + 2 * 16 * experts
    assert cost.flops_algorithmic == cost.flops_forward
    assert cost.flops_backward - bare.flops_backward == 2 * extra


@pytest.mark.parametrize("name", NAMES)
def test_only_chosen_experts_run(name: str) -> None:
    """On the CPU as on the meta device: as many rows go through experts as there are choices."""
    channel = make("channel", name, SITE)
    rows = []
    for expert in channel.experts:
        expert.up.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    channel(random(B, T, 12), context())
    assert len(rows) == 4 and sum(rows) == B * T * channel.choices
    dropping = make("channel", name, SITE, eval_capacity=0.5)
    rows.clear()
    for expert in dropping.experts:
        expert.up.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    dropping(random(1, 24, 12), context(length=24))
    assert max(rows) <= max(dropping.least_capacity, 3)


def test_widenet() -> None:
    """One attention and one mixture for all layers, norms of their own: (4 d^2 + E 2 d f + E d) + L norms."""
    moe = {"name": "mixture_of_experts", "experts": 4, "capacity": 1.2, "noise": 0.25, "second": "all"}
    tree = arch(moe, order="sf", depth=6, sharing={"name": "all", "norms": False}, norm="layernorm")
    cost = count(tree, 11, 16)
    assert cost.params_by_slot["mixer"] == 4 * 16 * 16
    assert cost.params_by_slot["channel"] == 4 * 2 * 16 * 24 + 4 * 16
    assert cost.params_by_slot["norm"] == 6 * 2 * 2 * 16 + 2 * 16
    tokens = torch.randint(0, 11, (B, T), generator=torch.Generator().manual_seed(0))
    loss, _, aux = build_model(tree, 11, 16).train().objective(tokens, tokens, 0.0, 0.0)
    (loss.mean() + aux["load_balance"]).backward()
    assert 0.06 <= aux["load_balance"].item() < 0.24  # six layers' sum, each from 0.01 to 0.04


# --- refusals


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *((name, {"experts": 0}, "experts 0 must be at least 1") for name in NAMES),
        *((name, {"dropout": 1.5}, "dropout 1.5 must be from 0 to 1") for name in NAMES),
        *((name, {"balance": -1.0}, "balance -1 must be at least 0") for name in NAMES),
        *((name, {"capacity": -0.5}, "capacity -0.5 must be at least 0") for name in NAMES),
        *((name, {"eval_capacity": -0.5}, "eval_capacity -0.5 must be at least 0") for name in NAMES),
        ("mixture_of_experts", {"second_threshold": 2.0}, "second_threshold 2 must be from 0 to 1"),
        ("mixture_of_experts", {"noise": -1.0}, "noise -1 must be at least 0"),
        ("switch", {"z_loss": -1.0}, "z_loss -1 must be at least 0"),
        ("switch", {"jitter": 1.5}, "jitter 1.5 must be from 0 to 1"),
        ("switch", {"init_scale": -1.0}, "init_scale -1 must be at least 0"),
    ],
)
def test_refusals(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"channel '{name}': {message}"):
        make("channel", name, SITE, **options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_sequences(name: str, length: int) -> None:
    """A capacity never takes less than one token: the first of a sequence always finds its expert."""
    channel = make("channel", name, replace(SITE, causal=False), eval_capacity=0.01)
    y = channel(random(B, length, 12), context(length=length))
    assert y.shape == (B, length, 12) and y[:, 0].abs().sum(-1).min() > 0
