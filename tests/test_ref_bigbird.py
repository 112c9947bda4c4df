"""Neighbouring, global and random blocks: transformers, a rule in the place of the mask, and identities."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from reference import SITE, B, T, array, context, make, near, random
from reference_attention import GPT, Rule, costs, finish, full, masked, needed
from torch import Tensor, nn

from ablate import registry
from ablate.build import build_model
from ablate.errors import UserError
from ablate.spec import ArchSpec, Component, parse

K, H = SITE.d_head, SITE.n_heads


def bigbird_rule(mixer: Any, n: int, causal: bool) -> Rule:
    """From the definition, with the mixer's own order of the random blocks."""
    first, last, order = mixer.first, mixer.last, mixer.order

    def blocks(h: int, i: int) -> set[int]:
        there = set(range(i + 1)) if causal else set(range(n))
        ends = set(range(first)) | set(range(n - last, n))
        if i in ends:
            return there
        fixed = {i - 1, i, i + 1} | ends
        drawn = sorted(there - fixed, key=lambda j: -int(order[h, i, j]))[: mixer.random_blocks]
        return (fixed & there) | set(drawn)

    size = mixer.block
    return lambda h, t, s: s // size in blocks(h, t // size) and not (causal and s > t)


BIGBIRD = [
    {"block": 1, "random_blocks": 2},
    {"block": 1, "random_blocks": 0, "global_blocks": 0},
    {"block": 2, "random_blocks": 1},
    {"block": 1, "random_blocks": 1, "global_blocks": 3},
    {"block": 2, "random_blocks": 9, "global_blocks": 1},
    {},
]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("options", BIGBIRD)
@pytest.mark.parametrize("length", [1, 5, 9, 16])
def test_bigbird(options: dict[str, Any], length: int, causal: bool) -> None:
    mixer = make("mixer", "bigbird", replace(SITE, causal=causal), **options)
    x = random(B, length, 12)
    rule = bigbird_rule(mixer, -(-length // mixer.block), causal)
    near(array(mixer(x, context(length=length))), finish(mixer, masked(mixer, x.numpy(), rule)))


@pytest.mark.parametrize("causal", [True, False])
def test_a_bigbird_that_sees_all_blocks_is_attention(causal: bool) -> None:
    x = random(B, T, 12)
    for options in ({"block": 3, "random_blocks": 0}, {"block": 1, "random_blocks": 9}, {"block": 9}):
        mixer = make("mixer", "bigbird", replace(SITE, causal=causal), **options)
        near(array(mixer(x, context())), full(mixer, causal, x))


def test_random_blocks() -> None:
    """Of the layer and the head, as many as asked for, neither neighbours nor global, equally often."""
    site = replace(SITE, max_len=40, n_heads=200)

    def drawn(layer: int, **options: Any) -> Tensor:
        mixer = make("mixer", "bigbird", replace(site, layer=layer, **options), block=1)
        n = 40
        return mixer.blocks_seen(torch.full((1, 1, 1, 1), n), n)[0]

    one = drawn(0)
    assert torch.equal(one, drawn(0)) and not torch.equal(one, drawn(1)) and not torch.equal(one[0], one[1])
    assert (one[:, 8:].sum(-1) == 1 + 2 + 3).all()
    both = drawn(0, causal=False)
    assert (both[:, 2:-2].sum(-1) == 2 + 3 + 3).all() and both[:, [0, -1]].all() and both[..., [0, -1]].all()
    often = one[:, 30, 1:29].double().mean(0)  # 3 of 28, 200 times: standard deviation 0.022
    assert (often - 3 / 28).abs().max() < 0.09
    with torch.device("meta"):
        meta = registry.make("mixer", Component("bigbird", (("block", 1),)), site)
    assert torch.equal(meta.order, make("mixer", "bigbird", site, block=1).order)


def test_bigbird_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In training mode, where their random blocks are random, and where they draw no block that is seen anyway."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

    config = transformers.BigBirdConfig(
        vocab_size=11,
        hidden_size=24,
        num_attention_heads=4,
        num_hidden_layers=1,
        intermediate_size=20,
        block_size=2,
        num_random_blocks=1,
        attention_type="block_sparse",
        max_position_embeddings=40,
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )
    length, n = 32, 16
    mixer = make("mixer", "bigbird", replace(SITE, d_model=24, max_len=32, causal=False), block=2, random_blocks=1)
    nn.init.eye_(mixer.out.weight), nn.init.zeros_(mixer.out.bias)
    model = transformers.BigBirdModel(config, add_pooling_layer=False).double().train()
    theirs = model.encoder.layer[0].attention.self
    assert isinstance(theirs, BigBirdBlockSparseAttention)
    drawn = []
    draw = theirs._bigbird_block_rand_mask_with_head

    def watched(*args: Any, **named: Any) -> Any:
        drawn.append(draw(*args, **named))
        return drawn[-1]

    monkeypatch.setattr(theirs, "_bigbird_block_rand_mask_with_head", watched)
    pairs = [(mixer.q, theirs.query), (mixer.k, theirs.key), (mixer.v, theirs.value)]
    for one, other in pairs:
        other.load_state_dict(one.state_dict())
    seen: list[Any] = []
    theirs.register_forward_hook(lambda module, inputs, output: seen.append((inputs, output)))
    model(inputs_embeds=random(2, length, 24), attention_mask=torch.ones(2, length))
    (x, *_), (expected, *_) = seen[0]
    order = torch.full_like(mixer.order, -1)
    for h, i in np.ndindex(H, n - 2):
        (j,) = drawn[0][h][i]
        assert j not in {0, i, i + 1, i + 2, n - 1}
        order[h, i + 1, j] = 1
    mixer.order = order
    y = mixer(x.detach(), context(length=length))
    near(array(y), array(expected), 1e-11)
    for output in (y, expected):
        (output * random(*y.shape, seed=4)).sum().backward()
    for one, other in pairs:
        assert one.weight.grad.abs().max() > 1e-3
        near(array(one.weight.grad), array(other.weight.grad), 1e-10)


def test_costs_of_a_bigbird() -> None:
    """(g + 3 + r) b keys a token in the blocks between the global ones."""
    cost = costs("bigbird", length=32, causal=False, block=2, random_blocks=3)
    assert cost.params_total == costs("attention", length=32).params_total
    rows = 2 * 32 * 2 + (2 + 3 + 3) * 2 * 2 * 12 + (1 + 3 + 3) * 2 * 2 * 2  # ends, between, beside an end
    assert needed(cost) * 32 == pytest.approx(rows, rel=1e-12)
    causal = costs("bigbird", length=32, block=2, random_blocks=3)
    assert needed(causal) * 32 == pytest.approx(
        sum(((t // 2 + 1 if t // 2 < 6 else 6) - 1) * 2 + t % 2 + 1 for t in range(32)), rel=1e-12
    )


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "no block": ({"name": "bigbird", "block": 0}, "mixer 'bigbird': block"),
    "less than nothing": ({"name": "bigbird", "random_blocks": -1}, "mixer 'bigbird': random_blocks"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    settings, message = REFUSALS[case]
    with pytest.raises(UserError, match=message):
        build_model(parse(ArchSpec, {**GPT, "sublayers": {"s": settings}}), 13, 12)
