"""The sparsely gated networks: against loops over tokens, against transformers' Mixtral and Switch, by identities."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import EXACT, SITE, B, T, array, context, make, near, random
from torch import Tensor, nn

from ablate.build import build_model
from ablate.components.channels.ffn import ACTIVATIONS
from ablate.contracts import Cache
from ablate.spec import ArchSpec, parse

E = 4
BARE = replace(SITE, bias=False)
NAMES = ("mixture_of_experts", "switch")


def network(expert: Any, x: Tensor, activation: str) -> Tensor:
    """One expert by its equation: W2 act(W1 x + b1) + b2, or W2 (act(Wg x) * (Wu x))."""
    act = ACTIVATIONS[activation]
    if hasattr(expert, "gate"):
        return F.linear(
            act(F.linear(x, *expert.gate.parameters())) * F.linear(x, *expert.up.parameters()),
            *expert.down.parameters(),
        )
    return F.linear(act(F.linear(x, *expert.up.parameters())), *expert.down.parameters())


def choices(name: str, p_E: Tensor) -> list[tuple[int, Tensor]]:
    """The experts of one token and their gates."""
    ranked = sorted(range(len(p_E)), key=lambda e: -p_E[e].item())
    if name == "switch":
        return [(ranked[0], p_E[ranked[0]])]
    first, second = ranked[:2]
    return [(e, p_E[e] / (p_E[first] + p_E[second])) for e in (first, second)]


def loop(channel: Any, name: str, x: Tensor, activation: str = "gelu", limits: list[int] | None = None) -> Tensor:
    """One token at a time, one choice at a time; a queue for each expert where there are limits, one a row."""
    rows = []
    for row, tokens in enumerate(x):
        seen: Counter[int] = Counter()
        for token in tokens:
            y = torch.zeros_like(token)
            for e, gate in choices(name, torch.softmax(channel.router.weight @ token, 0)):
                seen[e] += 1
                if limits is None or seen[e] <= limits[row]:
                    y = y + gate * network(channel.experts[e], token, activation)
            rows.append(y)
    return torch.stack(rows).view_as(x)


def with_gradient(channel: nn.Module, y: Tensor, x: Tensor) -> list[Tensor]:
    """y, and the gradients of a weighing of it: of x and of all parameters."""
    wrt = [x, *channel.parameters()]
    found = torch.autograd.grad((y * random(*y.shape, seed=8)).sum(), wrt, allow_unused=True)
    return [y.detach(), *(torch.zeros_like(p) if g is None else g for g, p in zip(found, wrt, strict=True))]


def equal(one: list[Tensor], other: list[Tensor], atol: float = EXACT) -> None:
    for a, b in zip(one, other, strict=True):
        near(array(a), array(b), atol)


@pytest.mark.parametrize("activation", ["gelu", "relu", "swish"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("site", [SITE, BARE])
@pytest.mark.parametrize("name", NAMES)
def test_by_a_loop(name: str, site: Any, gated: bool, activation: str) -> None:
    channel = make("channel", name, site, gated=gated, activation=activation, experts=E)
    x = random(B, T, 12).requires_grad_()
    chosen = {
        e for p in torch.softmax(x.detach() @ channel.router.weight.T, -1).flatten(0, 1) for e, _ in choices(name, p)
    }
    assert chosen == set(range(E))
    expected = with_gradient(channel, loop(channel, name, x, activation), x)
    equal(with_gradient(channel, channel(x, context()), x), expected, 1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_in_training_mode(name: str) -> None:
    """The same, but for what is left to chance."""
    options = {"second": "all"} if name == "mixture_of_experts" else {}
    channel = make("channel", name, SITE, **options).train()
    x = random(B, T, 12)
    near(array(channel(x, context())), array(loop(channel, name, x)), 1e-11)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gated", [False, True])
def test_one_expert_is_the_dense_network(name: str, gated: bool) -> None:
    channel = make("channel", name, SITE, experts=1, gated=gated)
    dense = make("channel", "glu" if gated else "ffn", SITE, activation="gelu")
    dense.load_state_dict(channel.experts[0].state_dict())
    x = random(B, T, 12)
    for training in (False, True):
        near(array(channel.train(training)(x, context())), array(dense(x, context())))


def test_two_experts_of_two_are_a_dense_mixture() -> None:
    channel = make("channel", "mixture_of_experts", SITE, experts=2)
    x = random(B, T, 12)
    p = torch.softmax(x @ channel.router.weight.T, -1)
    expected = sum(p[..., e, None] * network(channel.experts[e], x, "gelu") for e in range(2))
    near(array(channel(x, context())), array(expected))


def test_an_expert_that_nobody_chose_has_a_gradient_of_zero() -> None:
    """Never none: an optimizer treats it like the others. The experts that were chosen get theirs."""
    channel = make("channel", "switch", SITE)
    x = random(1, 1, 12).requires_grad_()
    with_gradient(channel, channel(x, context(length=1)), x)
    channel(x, context(length=1)).sum().backward()
    used = [bool(expert.up.weight.grad.any()) for expert in channel.experts]
    assert sum(used) == 1 and all(p.grad is not None for p in channel.parameters())


# --- transformers


def test_mixtral(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixtral's block is a top-2 mixture of gated swish experts without drops; its router's float32 is lifted."""
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    config = pytest.importorskip("transformers").MixtralConfig(
        hidden_size=12, intermediate_size=14, num_local_experts=5, num_experts_per_tok=2
    )
    site = replace(BARE, d_ff=21)
    ours = make("channel", "mixture_of_experts", site, experts=5, gated=True, activation="swish")
    theirs = mixtral.MixtralSparseMoeBlock(config).double()
    with torch.no_grad():
        theirs.gate.weight.copy_(ours.router.weight)
        both = [torch.cat((expert.gate.weight, expert.up.weight)) for expert in ours.experts]
        theirs.experts.gate_up_proj.copy_(torch.stack(both))
        theirs.experts.down_proj.copy_(torch.stack([expert.down.weight for expert in ours.experts]))
    x = random(B, T, 12).requires_grad_()
    near(array(ours(x, context())), array(theirs(x)), 1e-6)
    monkeypatch.setattr(Tensor, "float", lambda tensor: tensor)
    near(array(ours(x, context())), array(theirs(x)))
    weights = random(B, T, 12, seed=8)
    (dx,) = torch.autograd.grad((theirs(x) * weights).sum(), x)
    (theirs(x) * weights).sum().backward()
    (ours(x, context()) * weights).sum().backward()
    near(array(theirs.gate.weight.grad), array(ours.router.weight.grad), 1e-11)
    both = [torch.cat((expert.gate.weight.grad, expert.up.weight.grad)) for expert in ours.experts]
    near(array(theirs.experts.gate_up_proj.grad), array(torch.stack(both)), 1e-11)
    downs = [expert.down.weight.grad for expert in ours.experts]
    near(array(theirs.experts.down_proj.grad), array(torch.stack(downs)), 1e-11)
    near(array(x.grad), array(2 * dx), 1e-11)


def switch_of_transformers(ours: Any, capacity: int) -> Any:
    """Their block with our weights; it counts capacities in whole tokens of a sequence."""
    switch = pytest.importorskip("transformers.models.switch_transformers.modeling_switch_transformers")
    config = pytest.importorskip("transformers").SwitchTransformersConfig(
        d_model=12, d_ff=20, num_experts=E, expert_capacity=capacity,  dropout_rate=0.0,
        router_jitter_noise=0.0, dense_act_fn="relu",
    )  # fmt: skip
    theirs = switch.SwitchTransformersSparseMLP(config).double()
    theirs.router.dtype = torch.float64
    names = {"router.classifier.weight": ours.router.weight}
    for e, expert in enumerate(ours.experts):
        names |= {
            f"experts.expert_{e}.wi.weight": expert.up.weight,
            f"experts.expert_{e}.wo.weight": expert.down.weight,
        }
    theirs.load_state_dict(names)
    return theirs


@pytest.mark.parametrize("capacity", [64, 1, 2])
def test_switch_is_transformers_s(capacity: int) -> None:
    """Without drops, and with capacities that drop: 9 tokens to 4 experts, int(9 factor / 4) each."""
    factor = None if capacity == 64 else (capacity + 0.5) * E / T
    ours = make("channel", "switch", BARE, experts=E, activation="relu", eval_capacity=factor)
    theirs = switch_of_transformers(ours, capacity)
    x = random(B, T, 12).requires_grad_()
    y = ours(x, context())
    assert (y.abs().sum(-1) == 0).any() == (capacity < 64)
    expected = with_gradient(theirs, theirs(x), x)
    found = with_gradient(ours, y, x)
    order = {id(p): g for p, g in zip(ours.parameters(), found[2:], strict=True)}
    mine = [order[id(ours.router.weight)]]
    mine += [order[id(each.weight)] for expert in ours.experts for each in (expert.up, expert.down)]
    equal([*found[:2], *mine], expected, 1e-11)


def test_the_losses_are_transformers_s() -> None:
    """Their load balance is by sequence, ours by batch: a batch of one sequence has both."""
    switch = pytest.importorskip("transformers.models.switch_transformers.modeling_switch_transformers")
    ours = make("channel", "switch", SITE, balance=1.0, z_loss=1.0)
    x = random(1, B * T, 12)
    ctx = context(length=B * T)
    ours(x, ctx)
    logits = x @ ours.router.weight.T
    p = logits.softmax(-1)
    near(array(ctx.aux["load_balance"]), array(switch.load_balancing_loss_func(p, p.argmax(-1))), 1e-7)  # float32
    near(array(ctx.aux["router_z"]), array(switch.router_z_loss_func(logits)))


# --- losses


def balance_loop(channel: Any, x: Tensor, valid: Tensor) -> float:
    """E sum_i f_i P_i over the tokens that are no padding."""
    tokens = [x[b, t] for b in range(x.shape[0]) for t in range(x.shape[1]) if valid[b, t]]
    p = [torch.softmax(channel.router.weight @ token, 0).tolist() for token in tokens]
    first = Counter(max(range(E), key=lambda e: each[e]) for each in p)
    return E * sum(first[e] / len(p) * sum(each[e] for each in p) / len(p) for e in range(E))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_load_balance(name: str, padded: bool) -> None:
    """Also where choices are dropped: the shares are those before."""
    channel = make("channel", name, SITE, balance=0.25, eval_capacity=0.5)
    x = random(B, T, 12)
    valid = torch.arange(T)[None] < torch.tensor([[T], [5 if padded else T]])
    ctx = context()
    ctx.valid_BT = valid if padded else None
    channel(x, ctx)
    near(array(ctx.aux["load_balance"]), 0.25 * balance_loop(channel, x, valid))
    assert list(ctx.aux) == ["load_balance"]


def test_balanced_loads_cost_balance_and_one_expert_for_all_costs_more() -> None:
    channel = make("channel", "switch", BARE, balance=1.0)
    channel.router.weight.data = 50 * torch.eye(4, 12).double()
    for x, expected in ((torch.eye(4, 12)[None], 1.0), (torch.eye(4, 12)[None, [2, 2, 2, 2]], 4.0)):
        ctx = context(length=4)
        channel(x.double(), ctx)
        near(array(ctx.aux["load_balance"]), expected)


def test_losses_of_layers_add_up_and_can_be_off() -> None:
    off = context()
    make("channel", "switch", SITE, balance=0.0)(random(B, T, 12), off)
    assert off.aux == {}
    tokens = torch.randint(0, 11, (B, T), generator=torch.Generator().manual_seed(0))
    tree = {
        "d_model": 12,
        "n_heads": 4,
        "d_ff": 20,
        "depth": 2,
        "sublayers": {"f": {"name": "switch", "z_loss": 0.1}},
    }
    loss, nll, aux = build_model(parse(ArchSpec, tree), 11, 16).objective(tokens, tokens, 0.0, 0.0)
    assert set(aux) == {"load_balance", "router_z"} and torch.equal(loss, nll)
    assert 0.02 <= aux["load_balance"].item() < 0.08 and aux["load_balance"].requires_grad


def test_the_load_balance_evens_the_load() -> None:
    """Descending on it alone spreads tokens that all went to one expert."""
    channel = make("channel", "switch", BARE, balance=1.0)
    x = random(4, 16, 12) + 1
    channel.router.weight.data = 0.1 * random(E, 12, seed=3)
    channel.router.weight.data[0] += 0.3

    def shares() -> list[float]:
        first = (x @ channel.router.weight.T).argmax(-1).flatten()
        return (torch.bincount(first, minlength=E) / first.numel()).tolist()

    assert max(shares()) > 0.9
    for _ in range(200):
        ctx = context(length=16)
        channel(x, ctx)
        (gradient,) = torch.autograd.grad(ctx.aux["load_balance"], channel.router.weight)
        channel.router.weight.data -= 0.2 * gradient
    assert max(shares()) < 0.5


# --- capacity


def limit(name: str, n: int, factor: float, experts: int = E) -> int:
    least = 4 if name == "mixture_of_experts" else 1
    return max(least, min(n, int(n * factor / experts)))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25, 2.0])
@pytest.mark.parametrize("name", NAMES)
def test_capacity_by_a_loop(name: str, factor: float, causal: bool) -> None:
    """In queues by position, then by choice, one for each row and expert."""
    length = 24
    channel = make("channel", name, replace(SITE, causal=causal), eval_capacity=factor)
    x = random(B, length, 12).requires_grad_()
    limits = [limit(name, length, factor)] * B
    expected = loop(channel, name, x, limits=limits)
    dropped = (expected - loop(channel, name, x)).abs().amax(-1) > 1e-6
    assert dropped.any() or factor == 2.0
    equal(with_gradient(channel, channel(x, context(length=length)), x), with_gradient(channel, expected, x), 1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_capacity_of_training_and_of_evaluation(name: str) -> None:
    options = {"second": "all"} if name == "mixture_of_experts" else {}
    channel = make("channel", name, SITE, capacity=0.5, eval_capacity=1.0, **options)
    x = random(B, 24, 12)
    for training, factor in ((True, 0.5), (False, 1.0)):
        expected = loop(channel, name, x, limits=[limit(name, 24, factor)] * B)
        near(array(channel.train(training)(x, context(length=24))), array(expected), 1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_drops_never_depend_on_later_tokens(name: str) -> None:
    """Nor on other rows: each changed token moves only outputs at and after it, in its own row."""
    channel = make("channel", name, SITE, eval_capacity=0.5, capacity=0.5)
    x = random(B, 24, 12)
    moved_later = False
    for training in (False, True):
        channel.train(training)
        for place in range(24):
            changed = x.clone()
            changed[0, place] = random(12, seed=place + 1)
            torch.manual_seed(0)
            before = channel(x, context(length=24))
            torch.manual_seed(0)
            difference = (channel(changed, context(length=24)) - before).abs().amax(-1)
            assert difference[1].max() == 0 and (difference[0, :place] == 0).all()
            moved_later |= bool((difference[0, place + 1 :] > 0).any())
    assert moved_later


@pytest.mark.parametrize("factor", [0.5, None])
@pytest.mark.parametrize("name", NAMES)
def test_padding_is_sent_nowhere(name: str, factor: float | None) -> None:
    """A padded row is treated as the row without its padding, whatever stands there."""
    channel = make("channel", name, replace(SITE, causal=False), eval_capacity=factor)
    x = random(3, 24, 12)
    lengths = (24, 20, 17)
    ctx = context(length=24)
    ctx.valid_BT = torch.arange(24)[None] < torch.tensor(lengths)[:, None]
    y = channel(x, ctx)
    for row, length in enumerate(lengths):
        alone = channel(x[row : row + 1, :length], context(length=length))
        near(array(y[row, :length]), array(alone[0]))
        assert not y[row, length:].any()


@pytest.mark.parametrize("name", NAMES)
def test_decoding_drops_nothing(name: str) -> None:
    channel = make("channel", name, SITE, eval_capacity=0.1)
    x = random(B, 24, 12)
    ctx = context(length=24)
    ctx.cache = Cache()
    near(array(channel(x, ctx)), array(loop(channel, name, x)), 1e-11)
