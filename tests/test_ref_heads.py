"""Heads of any number and width, heads that share: transformers, torch.nn, loops, and identities."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from reference import SITE, B, T, array, context, make, near, random, torch_attention
from reference_attention import GPT, costs
from torch import nn

from ablate import registry
from ablate.build import build_model, build_on_meta
from ablate.cost import params_by_slot
from ablate.errors import UserError
from ablate.spec import ArchSpec, Component, parse

K, H = SITE.d_head, SITE.n_heads


def copied(name: str, like: Any, site: Any = SITE, **options: Any) -> Any:
    """A mixer with another's matrices."""
    mixer = make("mixer", name, site, **options)
    mixer.load_state_dict(like.state_dict(), strict=False)
    return mixer


# --- heads: Table 3 of Vaswani et al. 2017, with biases nowhere

TABLE_3 = {  # heads, d_k, d_v -> parameters of one attention at d_model 512
    "base": (8, 64, 64, 4 * 512 * 512),
    "A, 1 head": (1, 512, 512, 4 * 512 * 512),
    "A, 32 heads": (32, 16, 16, 4 * 512 * 512),
    "B, d_k 16": (8, 16, 64, 2 * 512 * 128 + 2 * 512 * 512),
    "B, d_k 32": (8, 32, 64, 2 * 512 * 256 + 2 * 512 * 512),
}


def mixer_parameters(d: int, depth: int, heads: int, d_head: int, d_value: int) -> int:
    arch = {"d_model": d, "n_heads": heads, "d_head": d_head, "depth": depth, "order": "s", "bias": False}
    settings = {**arch, "sublayers": {"s": {"name": "attention", "d_value": d_value}}}
    return params_by_slot(build_on_meta(parse(ArchSpec, settings), 11, 8))["mixer"]


@pytest.mark.parametrize("row", TABLE_3)
def test_heads_of_vaswani_s_table(row: str) -> None:
    heads, d_head, d_value, expected = TABLE_3[row]
    assert mixer_parameters(512, 1, heads, d_head, d_value) == expected


def test_differences_between_vaswani_s_rows() -> None:
    """N 6 -> 8 adds 14.7M: per pair of blocks three attentions of 4 d^2 and two networks of 2 d f."""
    attention = mixer_parameters(512, 2, 8, 64, 64) - mixer_parameters(512, 1, 8, 64, 64)
    assert 2 * (3 * attention + 2 * 2 * 512 * 2048) == 14_680_064
    narrow = mixer_parameters(512, 1, 8, 16, 64) - mixer_parameters(512, 1, 8, 64, 64)
    assert 18 * narrow == -7_077_888  # printed: 58M against 65M


def test_heads_of_any_width_are_t5_s() -> None:
    """n_heads d_head is not d_model, no scale, no biases; their relative bias is zero. Forward and gradients."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.t5.modeling_t5 import T5Attention

    config = transformers.T5Config(d_model=12, d_kv=6, num_heads=4, dropout_rate=0.0)
    config._attn_implementation = "eager"
    mixer = make("mixer", "attention", replace(SITE, bias=False, causal=False), score="dot")
    theirs = T5Attention(config, has_relative_attention_bias=True).double().eval()
    nn.init.zeros_(theirs.relative_attention_bias.weight)
    pairs = [(mixer.q, theirs.q), (mixer.k, theirs.k), (mixer.v, theirs.v), (mixer.out, theirs.o)]
    for ours, other in pairs:
        other.load_state_dict(ours.state_dict())
    x = random(B, T, 12)
    y, expected = mixer(x, context()), theirs(x)[0]
    near(array(y), array(expected), 1e-6)  # their softmax is in float32
    for output in (y, expected):
        (output * random(*y.shape, seed=4)).sum().backward()
    for ours, other in pairs:
        near(array(ours.weight.grad), array(other.weight.grad), 1e-5)


# --- grouped queries


def grouped_loop(mixer: Any, x: np.ndarray, causal: bool) -> np.ndarray:
    q = (x @ array(mixer.q.weight).T + array(mixer.q.bias)).reshape(*x.shape[:2], H, -1)
    k, v = (x @ array(each.weight).T + array(each.bias) for each in (mixer.k, mixer.v))
    k, v = (each.reshape(*each.shape[:2], mixer.kv_heads, -1) for each in (k, v))
    y = np.zeros((*x.shape[:2], H, v.shape[3]))
    for b, t, h in np.ndindex(x.shape[0], x.shape[1], H):
        stop, g = t + 1 if causal else x.shape[1], h * mixer.kv_heads // H
        weights = np.exp(k[b, :stop, g] @ q[b, t, h] / math.sqrt(K))
        y[b, t, h] = weights @ v[b, :stop, g] / weights.sum()
    return y.reshape(*x.shape[:2], -1) @ array(mixer.out.weight).T + array(mixer.out.bias)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("d_value", [None, 5])
def test_grouped_query(kv_heads: int, d_value: int | None, causal: bool) -> None:
    mixer = make("mixer", "grouped_query", replace(SITE, causal=causal), kv_heads=kv_heads, d_value=d_value)
    assert mixer.k.out_features == kv_heads * K and mixer.v.out_features == kv_heads * (d_value or K)
    x = random(B, T, 12)
    near(array(mixer(x, context())), grouped_loop(mixer, x.numpy(), causal))


def test_as_many_groups_as_heads_is_attention() -> None:
    plain = make("mixer", "attention", SITE)
    mixer = copied("grouped_query", plain, kv_heads=4)
    x = random(B, T, 12)
    assert torch.equal(mixer(x, context()), plain(x, context()))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_query_is_llama_s(kv_heads: int) -> None:
    """Forward and every gradient, with rotary positions as they have them."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

    config = transformers.LlamaConfig(
        hidden_size=12,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=6,
        attention_bias=False,
        attn_implementation="sdpa",
        max_position_embeddings=16,
    )
    mixer = make("mixer", "grouped_query", replace(SITE, bias=False), kv_heads=kv_heads)
    theirs = LlamaAttention(config, 0).double().eval()
    names = {"q_proj": mixer.q, "k_proj": mixer.k, "v_proj": mixer.v, "o_proj": mixer.out}
    for name, linear in names.items():
        getattr(theirs, name).load_state_dict(linear.state_dict())
    position = make("position", "rope", SITE)
    cos, sin = LlamaRotaryEmbedding(config)(random(1, T, 12).float(), torch.arange(T)[None])
    position.cos[:T].copy_(cos[0])
    position.sin[:T].copy_(torch.cat((-sin[0, :, :3], sin[0, :, 3:]), -1))
    x = random(B, T, 12)
    y = mixer(x, context(position))
    expected = theirs(x, (cos.double(), sin.double()), None)[0]
    near(array(y), array(expected))
    for output in (y, expected):
        (output * random(*y.shape, seed=4)).sum().backward()
    for name, linear in names.items():
        near(array(linear.weight.grad), array(getattr(theirs, name).weight.grad))


def test_costs_of_groups() -> None:
    """Keys and values 2 d H_kv k of 2 d H k; products as before; a cache of H_kv / H."""
    plain = costs("attention")
    for kv_heads in (1, 2, 4):
        ours = costs("grouped_query", kv_heads=kv_heads)
        assert plain.params_total - ours.params_total == 2 * 16 * 4 * (4 - kv_heads)
        assert plain.flops_forward - ours.flops_forward == 4 * 16 * 4 * (4 - kv_heads)
        assert ours.cache_bytes * 4 == plain.cache_bytes * kv_heads
        assert ours.flops_forward - ours.flops_algorithmic == plain.flops_forward - plain.flops_algorithmic


# --- collaborative


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shared", [None, 1, 7])
def test_collaborative(shared: int | None, causal: bool) -> None:
    mixer = make("mixer", "collaborative", replace(SITE, causal=causal), shared=shared)
    x = random(B, T, 12)
    q, k, v = (array(each(x)) for each in (mixer.q, mixer.k, mixer.v))
    v = v.reshape(B, T, H, -1)
    y = np.zeros((B, T, H, K))
    for b, t, h in np.ndindex(B, T, H):
        stop = t + 1 if causal else T
        weights = np.exp(k[b, :stop] @ np.diag(array(mixer.mixing)[h]) @ q[b, t] / math.sqrt(K))
        y[b, t, h] = weights @ v[b, :stop][:, h] / weights.sum()
    expected = y.reshape(B, T, -1) @ array(mixer.out.weight).T + array(mixer.out.bias)
    near(array(mixer(x, context())), expected)


def test_collaborative_with_heads_of_their_own_is_torch_s() -> None:
    mixer = make("mixer", "collaborative", replace(SITE, d_head=3, causal=False), start="heads")
    mixer.reset_parameters()
    near(array(mixer.mixing), np.kron(np.eye(4), np.ones((1, 3))))
    theirs = torch_attention(mixer)
    x = random(B, T, 12)
    near(array(mixer(x, context())), array(theirs(x, x, x, need_weights=False)[0]))


def test_starts_of_collaborative() -> None:
    site = replace(SITE, n_heads=100, d_head=10)
    normal = registry.make("mixer", Component("collaborative"), site).mixing
    assert normal.std().item() == pytest.approx(0.2, rel=0.02) and abs(normal.mean().item()) < 0.003
    assert (registry.make("mixer", Component("collaborative", (("start", "ones"),)), site).mixing == 1).all()
    uneven = make("mixer", "collaborative", SITE, start="heads", shared=6)
    uneven.reset_parameters()
    assert uneven.mixing.sum(0).eq(1).all() and uneven.mixing.sum(1).tolist() == [2, 1, 2, 1]


def test_costs_of_collaborative() -> None:
    """2 d S + H S in the place of 2 d H k; a cache of one head of keys."""
    plain, ours = costs("attention"), costs("collaborative", shared=8)
    assert ours.params_total - plain.params_total == 2 * 16 * 8 + 4 * 8 - 2 * 16 * 16
    assert ours.flops_forward - plain.flops_forward == 4 * 16 * (8 - 16) + 2 * 24 * 4 * (8 - 4)
    assert ours.cache_bytes == 4 * 24 * (8 + 16)


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "no divisor": ({"name": "grouped_query", "kv_heads": 3}, "kv_heads 3 does not divide n_heads 4: one of 1, 2, 4"),
    "no heads": ({"name": "grouped_query", "kv_heads": 0}, "kv_heads 0 does not divide"),
    "nothing shared": ({"name": "collaborative", "shared": 0}, "mixer 'collaborative': shared"),
    "too few": ({"name": "collaborative", "shared": 3, "start": "heads"}, "needs a feature for each of n_heads 4"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    settings, message = REFUSALS[case]
    with pytest.raises(UserError, match=message):
        build_model(parse(ArchSpec, {**GPT, "sublayers": {"s": settings}}), 13, 12)


@pytest.mark.parametrize("position", ["rope", "shaw"])
def test_positions_of_other_features(position: str) -> None:
    """A position made for heads of d_head features meets shared ones: refused, unless they are as many."""
    arch = {**GPT, "position": position, "sublayers": {"s": {"name": "collaborative"}}}
    x = torch.zeros(1, 12, dtype=torch.long)
    with pytest.raises(UserError, match=f"position '{position}' .* shares 16: set shared to 4"):
        build_model(parse(ArchSpec, arch), 13, 12).log_probs(x)
    arch["sublayers"] = {"s": {"name": "collaborative", "shared": 4}}
    assert build_model(parse(ArchSpec, arch), 13, 12).log_probs(x).isfinite().all()
