"""Attention to some of the tokens: transformers' implementations, masks written as rules, and identities."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from reference import SITE, B, T, array, context, make, near, random
from torch import Tensor, nn

from ablate import registry
from ablate.build import build_model
from ablate.checks import model as model_checks
from ablate.checks import time as time_checks
from ablate.components.mixers.sliding import SlidingWindow
from ablate.contracts import Cache, Context
from ablate.cost import count
from ablate.errors import UserError
from ablate.spec import ArchSpec, Component, parse
from ablate.subject import Subject

K, H = SITE.d_head, SITE.n_heads
Rule = Callable[[int, int, int], bool]  # head, query, key -> seen


def heads_of(x: np.ndarray, linear: Any) -> np.ndarray:
    y = x @ array(linear.weight).T + array(linear.bias)
    return y.reshape(*y.shape[:2], H, -1)


def masked(mixer: Any, x: np.ndarray, rule: Rule, projections: Any = None) -> np.ndarray:
    """softmax over the keys that the rule lets each query see, (B, T, H, K)."""
    q, k, v = (heads_of(x, getattr(projections or mixer, name)) for name in "qkv")
    y = np.zeros((*x.shape[:2], H, v.shape[3]))
    for b, t, h in np.ndindex(x.shape[0], x.shape[1], H):
        seen = [s for s in range(x.shape[1]) if rule(h, t, s)]
        weights = np.exp(k[b, seen, h] @ q[b, t, h] * mixer.scale)
        y[b, t, h] = weights @ v[b, seen, h] / weights.sum()
    return y


def out(mixer: Any, y: np.ndarray) -> np.ndarray:
    return y.reshape(*y.shape[:2], -1) @ array(mixer.out.weight).T + array(mixer.out.bias)


def full(like: Any, causal: bool, x: Tensor) -> np.ndarray:
    """Plain attention with another mixer's matrices."""
    plain = make("mixer", "attention", replace(SITE, causal=causal))
    plain.load_state_dict(like.state_dict(), strict=False)
    return array(plain(x, context()))


def gradients_agree(y: Tensor, expected: Tensor, pairs: list[tuple[Any, Any]], atol: float = 1e-11) -> None:
    for output in (y, expected):
        (output * random(*y.shape, seed=4)).sum().backward()
    for ours, theirs in pairs:
        assert ours.abs().max() > 1e-4
        near(array(ours), array(theirs), atol)


# --- sliding windows


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 7, 9, 30])
def test_sliding_window(window: int, causal: bool) -> None:
    mixer = make("mixer", "sliding_window", replace(SITE, causal=causal), window=window)
    x = random(B, T, 12)

    def rule(h: int, t: int, s: int) -> bool:
        return t - window < s <= t if causal else abs(t - s) <= window / 2

    near(array(mixer(x, context())), out(mixer, masked(mixer, x.numpy(), rule)))


@pytest.mark.parametrize(("causal", "window"), [(True, 9), (True, 50), (False, 16), (False, 18)])
@pytest.mark.parametrize("score", ["scaled_dot", "dot"])
def test_a_window_over_everything_is_attention(causal: bool, window: int, score: str) -> None:
    site = replace(SITE, causal=causal)
    mixer, plain = make("mixer", "sliding_window", site, window=window, score=score), None
    plain = make("mixer", "attention", site, score=score)
    plain.load_state_dict(mixer.state_dict())
    x = random(B, T, 12)
    near(array(mixer(x, context())), array(plain(x, context())))


def test_sliding_window_is_mistral_s() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MistralConfig(
        vocab_size=11,
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=6,
        sliding_window=4,
        attn_implementation="sdpa",
        max_position_embeddings=16,
    )
    theirs = transformers.MistralModel(config).double().eval()
    layer = theirs.layers[0]
    mixer = make("mixer", "sliding_window", replace(SITE, bias=False), window=4)
    names = {"q_proj": mixer.q, "k_proj": mixer.k, "v_proj": mixer.v, "o_proj": mixer.out}
    for name, linear in names.items():
        getattr(layer.self_attn, name).load_state_dict(linear.state_dict())
    layer.input_layernorm = nn.Identity()
    seen: list[Tensor] = []
    layer.self_attn.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    position = make("position", "rope", SITE)
    cos, sin = theirs.rotary_emb(random(1, T, 12).float(), torch.arange(T)[None])
    position.cos[:T].copy_(cos[0])
    position.sin[:T].copy_(torch.cat((-sin[0, :, :3], sin[0, :, 3:]), -1))
    x = random(B, T, 12)
    theirs.rotary_emb.forward = lambda *args, **named: (
        cos.double(),
        sin.double(),
    )  # it would round to the table's type
    theirs(inputs_embeds=x)
    y = mixer(x, context(position))
    near(array(y), array(seen[0]))
    weights = [(linear.weight, getattr(layer.self_attn, name).weight) for name, linear in names.items()]
    for output in (y, seen[0]):
        (output * random(*y.shape, seed=4)).sum().backward()
    for ours, other in weights:
        near(array(ours.grad), array(other.grad), 1e-11)


def test_sliding_window_is_gpt_neo_s() -> None:
    """It scales nothing: `score: dot`."""
    pytest.importorskip("transformers")
    from transformers import GPTNeoConfig
    from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

    config = GPTNeoConfig(
        hidden_size=24,
        num_heads=4,
        num_layers=1,
        attention_types=[[["local"], 1]],
        window_size=3,
        attention_dropout=0.0,
        resid_dropout=0.0,
        max_position_embeddings=16,
        attn_implementation="eager",
    )
    mixer = make("mixer", "sliding_window", replace(SITE, d_model=24), window=3, score="dot")
    nn.init.zeros_(mixer.q.bias), nn.init.zeros_(mixer.k.bias), nn.init.zeros_(mixer.v.bias)
    theirs = GPTNeoSelfAttention(config, "local", 0).double().eval()
    for name, linear in {"q_proj": mixer.q, "k_proj": mixer.k, "v_proj": mixer.v}.items():
        getattr(theirs, name).weight.data.copy_(linear.weight)
    theirs.out_proj.load_state_dict(mixer.out.state_dict())
    x = random(B, T, 24)
    later = torch.full((T, T), torch.finfo(torch.float64).min, dtype=torch.float64).triu(1)
    near(array(mixer(x, context())), array(theirs(x, later[None, None])[0]), 1e-6)  # their scores are float32


LONG = 150


def long_context(lengths: tuple[int, ...] | None = None) -> Context:
    ctx = context(length=LONG)
    if lengths:
        ctx.valid_BT = torch.arange(LONG)[None] < torch.tensor(lengths)[:, None]
    return ctx


BANDED: list[tuple[str, dict[str, Any]]] = [
    ("sliding_window", {"window": 1}),
    ("sliding_window", {"window": 2}),
    ("sliding_window", {"window": 6}),
    ("sliding_window", {"window": 7, "d_value": 3}),
    ("sliding_window", {"window": 9, "score": "dot"}),
    ("longformer", {"window": 5, "global_tokens": 3}),
    ("longformer", {"window": 1, "global_tokens": 9}),
]


@pytest.mark.parametrize("lengths", [None, (LONG, 17)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("name", "options"), BANDED)
def test_blocks_are_the_mask(
    name: str, options: dict[str, Any], causal: bool, lengths: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long sequences are taken in blocks of queries: the same values and gradients as all scores with a mask."""
    monkeypatch.setattr("ablate.components.mixers.sliding.BLOCK", 8)
    mixer = make("mixer", name, replace(SITE, causal=causal, max_len=LONG), **options)
    found = []
    for banded in (True, False):
        if not banded:
            monkeypatch.setattr(type(mixer), "banded", lambda *args: False)
        assert mixer.banded(LONG, long_context()) == banded
        mixer.zero_grad()
        x = random(B, LONG, 12).requires_grad_()
        ctx = long_context(lengths)
        y = ctx.zero_padding(mixer(x, ctx))
        (y * random(*y.shape, seed=3)).sum().backward()
        found.append([y, x.grad, *(p.grad.clone() for p in mixer.parameters())])
    for one, other in zip(*found, strict=True):
        near(array(one), array(other), 1e-11)


def test_a_position_s_bias_takes_all_scores() -> None:
    mixer = make("mixer", "sliding_window", replace(SITE, max_len=LONG), window=2)
    for position in ("alibi", "t5"):
        ctx = Context(make("position", position, replace(SITE, max_len=LONG)), torch.arange(LONG))
        assert not mixer.banded(LONG, ctx)
        x = random(1, LONG, 12)
        bias = ctx.position.bias(random(1, H, LONG, K), random(1, H, LONG, K), torch.arange(LONG), ctx)
        near(array(mixer(x, ctx)[:, 1:]), array(expected_pair(mixer, x, bias)[:, 1:]))


def expected_pair(mixer: Any, x: Tensor, bias: Tensor) -> Tensor:
    """A window of two, by torch."""
    q, k, v = (mixer.split(each(x)) for each in (mixer.q, mixer.k, mixer.v))
    scores = (q @ k.mT * mixer.scale + bias).masked_fill(~torch.ones(LONG, LONG).bool().tril().triu(-1), -math.inf)
    return mixer.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


# --- longformer


def longformer_rule(mixer: Any, options: dict[str, Any], causal: bool) -> Rule:
    window, g = options.get("window", 4), options.get("global_tokens", 1)
    dilated, step = options.get("dilated_heads", 0), options.get("dilation", 2)

    def rule(h: int, t: int, s: int) -> bool:
        if causal and s > t:
            return False
        delta = step if h >= H - dilated else 1
        near = t - window * delta < s <= t if causal else abs(t - s) <= window * delta / 2
        return (near and (t - s) % delta == 0) or s < g

    return rule


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 3, "global_tokens": 0},
        {"window": 2, "global_tokens": 3},
        {"window": 2, "global_tokens": 0, "dilated_heads": 2, "dilation": 3},
        {"window": 3, "global_tokens": 2, "dilated_heads": 1},
        {"window": 3, "global_tokens": 12},
    ],
)
def test_longformer(options: dict[str, Any], causal: bool) -> None:
    """Rows of global tokens with projections of their own, the others with the local ones."""
    mixer = make("mixer", "longformer", replace(SITE, causal=causal), **options)
    x = random(B, T, 12)
    y = masked(mixer, x.numpy(), longformer_rule(mixer, options, causal))
    if g := options.get("global_tokens", 1):
        everything = masked(mixer, x.numpy(), lambda h, t, s: s <= t or not causal, mixer.globals)
        y[:, :g] = everything[:, :g]
    near(array(mixer(x, context())), out(mixer, y))


@pytest.mark.parametrize(("causal", "window"), [(True, 9), (False, 16)])
def test_a_longformer_that_sees_everything_is_attention(causal: bool, window: int) -> None:
    mixer = make("mixer", "longformer", replace(SITE, causal=causal), window=window, global_tokens=2)
    x = random(B, T, 12)
    expected = full(mixer, causal, x)
    assert np.abs(array(mixer(x, context())) - expected)[:, :2].max() > 0.01
    near(array(mixer(x, context()))[:, 2:], expected[:, 2:])
    mixer.reset_parameters()  # the global projections start as the local ones
    near(array(mixer(x, context())), expected)


def test_longformer_starts_with_equal_projections() -> None:
    arch = {"d_model": 16, "n_heads": 4, "depth": 2, "sublayers": {"s": {"name": "longformer", "window": 3}}}
    model = build_model(parse(ArchSpec, arch), 13, 12)
    for layer in ("0", "1"):
        mixer = model.tower.functions[layer][0]
        for name in ("q", "k", "v"):
            assert torch.equal(getattr(mixer, name).weight, getattr(mixer.globals, name).weight)
    assert not torch.equal(mixer.q.weight, model.tower.functions["0"][0].q.weight)


@pytest.mark.parametrize("tokens", [0, 1, 3])
@pytest.mark.parametrize("lengths", [(12, 12), (12, 7)])
def test_longformer_is_theirs(tokens: int, lengths: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides, global tokens, padding: forward and gradients. Their softmax is in float32, but for here."""
    monkeypatch.setattr(nn.functional, "softmax", lambda x, dim, dtype=None: x.softmax(dim))
    transformers = pytest.importorskip("transformers")
    config = transformers.LongformerConfig(
        vocab_size=11,
        hidden_size=24,
        num_attention_heads=4,
        num_hidden_layers=1,
        intermediate_size=20,
        attention_window=4,
        max_position_embeddings=40,
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )
    theirs = transformers.LongformerModel(config, add_pooling_layer=False).double().eval()
    attention = theirs.encoder.layer[0].attention.self
    site = replace(SITE, d_model=24, causal=False)
    mixer = make("mixer", "longformer", site, window=4, global_tokens=tokens)
    nn.init.eye_(mixer.out.weight), nn.init.zeros_(mixer.out.bias)  # theirs follows outside
    pairs = [(mixer.q, attention.query), (mixer.k, attention.key), (mixer.v, attention.value)]
    if tokens:
        ours = mixer.globals
        pairs += [(ours.q, attention.query_global), (ours.k, attention.key_global), (ours.v, attention.value_global)]
    for one, other in pairs:
        other.load_state_dict(one.state_dict())
    valid = torch.arange(12)[None] < torch.tensor(lengths)[:, None]
    seen: list[Any] = []
    attention.register_forward_hook(lambda module, inputs, output: seen.append((inputs, output)), with_kwargs=False)
    embedded = random(2, 12, 24)
    mask, first = valid.long(), (torch.arange(12) < tokens).long().expand(2, -1)
    theirs(inputs_embeds=embedded, attention_mask=mask, global_attention_mask=first)
    (x, *_), (expected, *_) = seen[0]
    ctx = context(length=12)
    ctx.valid_BT = None if lengths == (12, 12) else valid
    y = mixer(x[:, :12].detach(), ctx)
    weigh = valid[..., None].double()
    near(array(y * weigh), array(expected[:, :12] * weigh))
    for output in (y, expected[:, :12]):
        (output * weigh * random(2, 12, 24, seed=4)).sum().backward()
    for one, other in pairs:
        assert one.weight.grad.abs().max() > 1e-3
        near(array(one.weight.grad), array(other.weight.grad), 1e-11)


# --- bigbird


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
    near(array(mixer(x, context(length=length))), out(mixer, masked(mixer, x.numpy(), rule)))


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


@pytest.mark.parametrize("lengths", [(16, 16), (16, 12)])
def test_bigbird_is_theirs(lengths: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
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
    lengths = tuple(2 * each for each in lengths)
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
    gradients = [(one.weight, other.weight) for one, other in pairs]
    for output in (y, expected):
        (output * random(*y.shape, seed=4)).sum().backward()
    for one, other in gradients:
        near(array(one.grad), array(other.grad), 1e-10)


# --- costs


GPT = {"d_model": 16, "n_heads": 4, "depth": 1, "d_ff": 24, "bias": False, "order": "s", "position": "none"}


def costs(name: str, length: int = 24, causal: bool = True, **options: Any) -> Any:
    return count(parse(ArchSpec, {**GPT, "sublayers": {"s": {"name": name, **options}}}), 13, length, causal)


HEAD, PROJECTIONS = 2 * 16 * 13, 8 * 16 * 16


def products(cost: Any) -> float:
    """Scores and weighted sums that the definition needs, over the 4 H k of one: keys per token."""
    return (cost.flops_algorithmic - HEAD - PROJECTIONS) / (4 * 16)


def test_costs_of_a_window() -> None:
    """4 w H k a token, but for the first ones; all scores are executed, or on long sequences those of the blocks."""
    cost, plain = costs("sliding_window", window=5), costs("attention")
    assert cost.params_total == plain.params_total and cost.flops_forward == plain.flops_forward
    assert products(cost) == pytest.approx((24 * 5 - 10) / 24, rel=1e-12)
    assert products(costs("sliding_window", causal=False, window=4)) == pytest.approx((24 * 5 - 6) / 24, rel=1e-12)
    long, everything = costs("sliding_window", length=300, window=20), costs("attention", length=300)
    assert products(long) == pytest.approx((300 * 20 - 190) / 300, rel=1e-12)
    assert long.flops_forward == HEAD + PROJECTIONS + 4 * 16 * 64 * 320 / 300
    assert long.flops_forward < 0.4 * everything.flops_forward
    assert (cost.cache_bytes, plain.cache_bytes) == (4 * 4 * 2 * 16, 4 * 24 * 2 * 16)
    assert cost.state_bytes == cost.cache_bytes


def test_costs_of_a_longformer() -> None:
    """Another three matrices; window and global keys for the local tokens, everything for the global ones."""
    options = {"window": 5, "global_tokens": 3}
    for causal in (True, False):
        cost = costs("longformer", causal=causal, **options)
        assert cost.params_total - costs("attention").params_total == 3 * 16 * 16
        rule = longformer_rule(None, options, causal)
        local = sum(rule(0, t, s) for t in range(3, 24) for s in range(24))
        ends = 6 if causal else 3 * 24
        own = (2 * 3 + 4 * (3 if causal else 24)) * 16 * 16  # queries of the three, keys and values of what they see
        local_queries = -2 * 3 * 16 * 16
        assert products(cost) * 24 * 64 == pytest.approx((local + ends) * 64 + own + local_queries, rel=1e-12)
    wide = costs("longformer", window=5, global_tokens=0, dilated_heads=2, dilation=2)
    assert wide.params_total == costs("attention").params_total
    assert products(wide) == pytest.approx(((24 * 5 - 10) + (24 * 5 - 20)) / 2 / 24, rel=1e-12)


def test_costs_of_a_bigbird() -> None:
    """(g + 3 + r) b keys a token in the blocks between the global ones."""
    cost = costs("bigbird", length=32, causal=False, block=2, random_blocks=3)
    assert cost.params_total == costs("attention", length=32).params_total
    rows = 2 * 32 * 2 + (2 + 3 + 3) * 2 * 2 * 12 + (1 + 3 + 3) * 2 * 2 * 2  # ends, between, beside an end
    assert products(cost) * 32 == pytest.approx(rows, rel=1e-12)
    causal = costs("bigbird", length=32, block=2, random_blocks=3)
    assert products(causal) * 32 == pytest.approx(
        sum(((t // 2 + 1 if t // 2 < 6 else 6) - 1) * 2 + t % 2 + 1 for t in range(32)), rel=1e-12
    )


# --- options and contracts


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "no window": ({"name": "sliding_window", "window": 0}, "mixer 'sliding_window': window"),
    "no window of a longformer": ({"name": "longformer", "window": 0}, "mixer 'longformer': window"),
    "too many heads": ({"name": "longformer", "dilated_heads": 5}, "mixer 'longformer': dilated_heads"),
    "no dilation": ({"name": "longformer", "dilation": 0}, "mixer 'longformer': dilation"),
    "all global": ({"name": "longformer", "global_tokens": 12}, "leave no local one of max_len 12: choose 0 to 11"),
    "no block": ({"name": "bigbird", "block": 0}, "mixer 'bigbird': block"),
    "less than nothing": ({"name": "bigbird", "random_blocks": -1}, "mixer 'bigbird': random_blocks"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    settings, message = REFUSALS[case]
    with pytest.raises(UserError, match=message):
        build_model(parse(ArchSpec, {**GPT, "sublayers": {"s": settings}}), 13, 12)


def test_a_window_s_cache_is_a_ring() -> None:
    """window - 1 keys are kept; positions that depend on distance still agree with the full pass."""
    for position in ("rope", "alibi", "t5", "shaw"):
        arch = {**GPT, "position": position, "sublayers": {"s": {"name": "sliding_window", "window": 3}}}
        model = build_model(parse(ArchSpec, arch), 13, 12).double().eval()
        tokens = torch.arange(12)[None] % 13
        cache = Cache()
        parts = [model.log_probs(piece, cache=cache) for piece in tokens.split([4, 1, 5, 1, 1], 1)]
        near(array(torch.cat(parts, 1)), array(model.log_probs(tokens)), 1e-10)
        assert [state.shape[2] for state in cache.states[0]] == [2, 2]


CHECKED: list[tuple[str, dict[str, Any]]] = [
    ("sliding_window", {"window": 2}),
    ("sliding_window", {"window": 30}),
    ("longformer", {"window": 4, "global_tokens": 3}),
    ("longformer", {"global_tokens": 7, "dilated_heads": 2}),
    ("longformer", {"global_tokens": 0, "dilated_heads": 4, "dilation": 3}),
    ("longformer", {"global_tokens": 11}),
    ("bigbird", {"block": 3, "random_blocks": 1}),
    ("bigbird", {"block": 2, "random_blocks": 0, "global_blocks": 5}),
]


@pytest.mark.parametrize(("name", "options"), CHECKED)
def test_contracts_with_other_options(name: str, options: dict[str, Any]) -> None:
    subject = Subject(registry.find("mixer", name), Component(name, tuple(options.items())))
    for each in ("shape", "gradient", "rows", "meta", "bf16", "effect"):
        getattr(model_checks, f"check_{each}")(subject)
    for each in ("lengths", "causal", "mixes", "cache", "padding"):
        getattr(time_checks, f"check_{each}")(subject)


@pytest.mark.parametrize("name", ["attention", "sliding_window", "longformer", "bigbird", "additive", "gaussian"])
def test_a_row_of_padding_gives_numbers(name: str) -> None:
    mixer = make("mixer", name, replace(SITE, causal=False))
    ctx = context()
    ctx.valid_BT = torch.arange(T)[None] < torch.tensor([T, 0])[:, None]
    x = random(B, T, 12).requires_grad_()
    y = mixer(x, ctx)
    y.sum().backward()
    assert y.isfinite().all() and x.grad is not None and x.grad.isfinite().all()
    assert issubclass(registry.load(registry.find("mixer", "longformer")), SlidingWindow)
