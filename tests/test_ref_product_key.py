"""The product-key memory: against a search through all slots, against another implementation, by its gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import SITE, B, T, array, context, make, near, random
from torch import Tensor

from ablate import registry
from ablate.build import build_model
from ablate.cost import count, params_only
from ablate.errors import UserError
from ablate.spec import ArchSpec, Component, parse

SMALL: dict[str, Any] = {"keys": 6, "knn": 3, "heads": 2, "d_key": 8}
BARE = replace(SITE, bias=False)


def flat(channel: Any, x: Tensor, knn: int) -> Tensor:
    """Every slot of every head scored for one token at a time; the knn best are read."""
    heads, _, keys, half = channel.keys.shape
    rows = []
    for token in x.flatten(0, 1):
        y = torch.zeros_like(token)
        q_HPK = F.linear(token, channel.query.weight, channel.query.bias).view(heads, 2, half)
        for head in range(heads):
            one, two = q_HPK[head]
            if channel.query_norm is not None:
                norm = channel.query_norm
                one, two = (
                    (each - each.mean()) / (each.var(correction=0) + 1e-5).sqrt() * norm.gain + norm.shift
                    for each in (one, two)
                )
            scores = [
                one @ channel.keys[head, 0, a] + two @ channel.keys[head, 1, b]
                for a in range(keys)
                for b in range(keys)
            ]
            best = sorted(range(keys * keys), key=lambda slot: -scores[slot].item())[:knn]
            weights = torch.softmax(torch.stack([scores[slot] for slot in best]), 0)
            y = y + sum(weight * channel.values[slot] for weight, slot in zip(weights, best, strict=True))
        rows.append(y)
    return torch.stack(rows).view_as(x)


def gradients(channel: Any, y: Tensor, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad((y * random(*y.shape, seed=8)).sum(), [x, *channel.parameters()]))


@pytest.mark.parametrize("norm", ["layer", "none"])
@pytest.mark.parametrize("knn", [1, 3, 6])
@pytest.mark.parametrize("site", [SITE, BARE])
def test_it_reads_the_best_of_all_slots(site: Any, knn: int, norm: str) -> None:
    """The two-stage search is exact; so is its gradient. One slot alone has weight 1."""
    channel = make("channel", "product_key", site, **{**SMALL, "knn": knn}, query_norm=norm)
    x = random(B, T, 12).requires_grad_()
    y, expected = channel(x, context()), flat(channel, x, knn)
    near(array(y), array(expected))
    if knn > 1:
        for one, other in zip(gradients(channel, y, x), gradients(channel, expected, x), strict=True):
            near(one, other, 1e-11)


def test_a_memory_of_one_slot_is_its_value() -> None:
    channel = make("channel", "product_key", SITE, keys=1, knn=1, heads=3, d_key=4)
    near(array(channel(random(B, T, 12), context())), array(3 * channel.values[0].expand(B, T, 12)))


def test_it_is_the_package_s() -> None:
    """Its queries are laid out (half, head, width), its keys (head, key, half, width); it has no query bias."""
    package = pytest.importorskip("product_key_memory")
    ours = make("channel", "product_key", BARE, **SMALL)
    theirs = package.PKM(dim=12, heads=2, num_keys=6, topk=3, dim_head=4).double()
    with torch.no_grad():
        theirs.to_queries.weight.copy_(ours.query.weight.view(2, 2, 4, 12).transpose(0, 1).reshape(16, 12))
        theirs.keys.copy_(ours.keys.permute(0, 2, 1, 3))
        theirs.values.weight.copy_(ours.values)
        theirs.norm.weight.copy_(ours.query_norm.gain)
        theirs.norm.bias.copy_(ours.query_norm.shift)
    x = random(B, T, 12).requires_grad_()
    y, expected = ours(x, context()), theirs(x)
    near(array(y), array(expected))
    weights = random(B, T, 12, seed=8)
    (dx,) = torch.autograd.grad((y * weights).sum(), x, retain_graph=True)
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    near(array(x.grad), array(2 * dx), 1e-11)
    queries = ours.query.weight.grad.view(2, 2, 4, 12).transpose(0, 1).reshape(16, 12)
    for one, other in (
        (queries, theirs.to_queries.weight),
        (ours.keys.grad.permute(0, 2, 1, 3), theirs.keys),
        (ours.values.grad, theirs.values.weight),
        (ours.query_norm.gain.grad, theirs.norm.weight),
        (ours.query_norm.shift.grad, theirs.norm.bias),
    ):
        near(array(one), array(other.grad), 1e-11)


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_gradcheck(norm: str) -> None:
    """Away from ties: the best slots' scores are further apart than a difference quotient moves them."""
    channel = make("channel", "product_key", SITE, keys=3, knn=2, heads=2, d_key=4, query_norm=norm)
    x = random(1, 3, 12).requires_grad_()
    names, parameters = zip(*channel.named_parameters(), strict=True)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(channel, dict(zip(names, values, strict=True)), (x, context(length=3)))

    assert torch.autograd.gradcheck(run, (x, *parameters))


def test_rows_that_are_not_read_get_no_gradient() -> None:
    channel = make("channel", "product_key", SITE, keys=20, knn=2, heads=1, d_key=8)
    channel(random(1, 3, 12), context(length=3)).sum().backward()
    assert 2 <= (channel.values.grad != 0).any(-1).sum() <= 6 and channel.keys.grad.any()


def test_tokens_do_not_see_each_other() -> None:
    """In training either: the norm is of each query by itself."""
    channel = make("channel", "product_key", SITE, **SMALL).train()
    x = random(B, T, 12)
    changed = x.clone()
    changed[0, 3] += 1
    moved = (channel(changed, context()) - channel(x, context())).abs().amax(-1) > 0
    assert moved.nonzero().tolist() == [[0, 3]]


def test_bfloat16() -> None:
    """The softmax is in float32; the output is near the float32 one wherever the same slots are found."""
    channel = registry.make("channel", Component("product_key", tuple({**SMALL, "knn": 6}.items())), SITE)
    x = random(B, T, 12).float()
    expected = channel(x, context())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = channel(x, context())
    assert y.isfinite().all() and (y - expected).abs().median() < 0.01
    assert channel.to(torch.bfloat16)(x.to(torch.bfloat16), context()).dtype == torch.bfloat16


# --- initialisation, parameters, FLOPs


def test_start() -> None:
    """Sub-keys U(+-1/sqrt(d_key/2)), values N(0, 1/d_model)."""
    tree = {"d_model": 64, "n_heads": 4, "depth": 1, "order": "f", "sublayers": {"f": "product_key"}}
    memory = build_model(parse(ArchSpec, tree), 11, 16).tower.functions["0"][0]
    assert memory.keys.shape == (4, 2, 128, 128) and memory.values.shape == (128 * 128, 64)
    bound = 128**-0.5
    assert 0.999 * bound < memory.keys.abs().max().item() <= bound
    assert abs(memory.keys.std().item() - bound / 3**0.5) < 0.005 * bound
    assert abs(memory.values.std().item() - 0.125) < 0.001 and abs(memory.values.mean().item()) < 0.001
    assert torch.equal(memory.query_norm.gain, torch.ones(128)) and not memory.query_norm.shift.any()


@pytest.mark.parametrize(("d_key", "norm"), [(256, "layer"), (256, "none"), (128, "none")])
def test_parameters_of_narang_et_al(d_key: int, norm: str) -> None:
    """512 sub-keys in the place of one of the decoder's 12 ffn's: 420.1 to 420.8 million, printed as 421."""
    d, f, n = 768, 3072, 512
    memory = {"name": "product_key", "keys": n, "d_key": d_key, "query_norm": norm}
    tree = {"d_model": d, "n_heads": 12, "d_ff": f, "depth": 12, "encoder": True, "order": "scf", "bias": False}
    swap = {"sublayer": "f", "by": memory, "layer": -2, "tower": "decoder"}
    total = params_only(parse(ArchSpec, {**tree, "position": "none", "norm": "none", "swap": swap}), 32128, 512)
    vanilla = 32128 * d + 12 * (4 * d * d + 2 * d * f) + 12 * (8 * d * d + 2 * d * f)
    replaced = n * n * d + 4 * 2 * n * d_key // 2 + d * 4 * d_key + (d_key if norm == "layer" else 0)
    assert total == vanilla - 2 * d * f + replaced
    assert 420.0e6 < total < 420.9e6


def test_costs() -> None:
    """2 d Hm d_key + 2 Hm N d_key + 2 Hm knn d FLOPs a token; a token uses Hm knn values at most."""
    tree = {"d_model": 16, "n_heads": 4, "depth": 1, "d_ff": 24, "order": "f", "bias": False, "position": "none"}
    memory = {"name": "product_key", "keys": 10, "knn": 5, "heads": 3, "d_key": 8}
    cost = count(parse(ArchSpec, {**tree, "sublayers": {"f": memory}}), 11, 12)
    bare = count(parse(ArchSpec, {**tree, "sublayers": {"f": "ffn"}}), 11, 12)
    extra = cost.flops_forward - bare.flops_forward + 4 * 16 * 24
    assert extra == 2 * 16 * 3 * 8 + 2 * 3 * 10 * 8 + 2 * 3 * 5 * 16
    assert cost.flops_backward - bare.flops_backward + 8 * 16 * 24 == 2 * extra
    assert cost.params_by_slot["channel"] == 100 * 16 + 3 * 2 * 10 * 4 + 16 * 3 * 8
    assert cost.params_total - cost.params_active == (100 - 15) * 16
    few = make("channel", "product_key", SITE, keys=3, knn=3, heads=4, d_key=4)
    assert few.idle_parameters() == 0


# --- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": 0}, "keys 0 must be at least 1"),
        ({"heads": 0}, "heads 0 must be at least 1"),
        ({"d_key": 0}, "d_key 0 must be at least 2"),
        ({"d_key": 7}, "d_key 7 is odd"),
        ({"knn": 0}, "knn 0 must be from 1 to keys, 128"),
        ({"keys": 16}, "knn 32 must be from 1 to keys, 16"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"channel 'product_key': {message}"):
        make("channel", "product_key", SITE, **options)
