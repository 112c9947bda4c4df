"""Attention to the tokens nearby: transformers, rules in the place of masks, blocks, and identities."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from reference import SITE, B, T, array, context, make, near, random
from reference_attention import GPT, PROJECTIONS, costs, finish, masked, needed
from torch import Tensor, nn

from ablate.build import build_model
from ablate.contracts import Cache, Context
from ablate.errors import UserError
from ablate.spec import ArchSpec, parse

K, H = SITE.d_head, SITE.n_heads


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 7, 9, 30])
def test_sliding_window(window: int, causal: bool) -> None:
    mixer = make("mixer", "sliding_window", replace(SITE, causal=causal), window=window)
    x = random(B, T, 12)

    def rule(h: int, t: int, s: int) -> bool:
        return t - window < s <= t if causal else abs(t - s) <= window / 2

    near(array(mixer(x, context())), finish(mixer, masked(mixer, x.numpy(), rule)))


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


def test_costs_of_a_window() -> None:
    """4 w H k a token, but for the first ones; all scores are executed, or on long sequences those of the blocks."""
    cost, plain = costs("sliding_window", window=5), costs("attention")
    assert cost.params_total == plain.params_total and cost.flops_forward == plain.flops_forward
    assert needed(cost) == pytest.approx((24 * 5 - 10) / 24, rel=1e-12)
    assert needed(costs("sliding_window", causal=False, window=4)) == pytest.approx((24 * 5 - 6) / 24, rel=1e-12)
    long, everything = costs("sliding_window", length=300, window=20), costs("attention", length=300)
    assert needed(long) == pytest.approx((300 * 20 - 190) / 300, rel=1e-12)
    assert long.flops_forward == PROJECTIONS + 4 * 16 * 64 * 320 / 300
    assert long.flops_forward < 0.4 * everything.flops_forward
    assert (cost.cache_bytes, plain.cache_bytes) == (4 * 4 * 2 * 16, 4 * 24 * 2 * 16)
    assert cost.state_bytes == cost.cache_bytes


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "no window": ({"name": "sliding_window", "window": 0}, "mixer 'sliding_window': window"),
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


@pytest.mark.parametrize("name", ["attention", "sliding_window", "longformer", "bigbird", "additive", "gaussian"])
def test_a_row_of_padding_gives_numbers(name: str) -> None:
    mixer = make("mixer", name, replace(SITE, causal=False))
    ctx = context()
    ctx.valid_BT = torch.arange(T)[None] < torch.tensor([T, 0])[:, None]
    x = random(B, T, 12).requires_grad_()
    y = mixer(x, ctx)
    y.sum().backward()
    assert y.isfinite().all() and x.grad is not None and x.grad.isfinite().all()
