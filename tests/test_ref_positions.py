"""Positions that are added to embeddings or scores, or rotate: loops from the equations, transformers' functions.

In float64 and to rounding, unless a test says why not.
"""

from __future__ import annotations

import cmath
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from reference import SITE, TABLE, B, T, array, context, make, near, random
from torch import Tensor

from ablate.build import build_model, build_on_meta
from ablate.contracts import Cache, Context
from ablate.errors import UserError
from ablate.spec import ArchSpec, parse
from ablate.train.optim import decay_groups

WIDE = 1e-6  # transformers' tables of angles up to 16 are made in float32


def embedded(position: Any, d: int = 12, length: int = T) -> Tensor:
    """What the position makes of zeros, without the batch."""
    made: Tensor = position.embed(torch.zeros(1, length, d, dtype=torch.float64), context(position, length))
    return made[0].detach()


# --- sinusoids


@pytest.mark.parametrize(("d", "base"), [(12, 10000.0), (7, 10000.0), (8, 100.0), (2, 10000.0)])
def test_t2t_sinusoids(d: int, base: float) -> None:
    """sin(t base^(-i / (d/2 - 1))), all of them before all cosines, a zero in an odd last column."""
    position = make("position", "sinusoidal", replace(SITE, d_model=d), style="t2t", base=base)
    expected = np.zeros((T, d))
    for t in range(T):
        for i in range(d // 2):
            angle = t * base ** (-i / max(d // 2 - 1, 1))
            expected[t, i], expected[t, d // 2 + i] = math.sin(angle), math.cos(angle)
    near(array(embedded(position, d)), expected, TABLE)


@pytest.mark.parametrize("d", [12, 7])
def test_t2t_sinusoids_are_transformers_(d: int) -> None:
    theirs = pytest.importorskip("transformers.models.m2m_100.modeling_m2m_100").M2M100SinusoidalPositionalEmbedding
    position = make("position", "sinusoidal", replace(SITE, d_model=d), style="t2t")
    near(array(embedded(position, d)), array(theirs.get_embedding(T, d)), WIDE)


def test_sinusoids_are_marian_s_up_to_an_order_of_columns() -> None:
    marian = pytest.importorskip("transformers.models.marian.modeling_marian")
    theirs = marian.MarianSinusoidalPositionalEmbedding(T, 12).create_weight()
    ours = embedded(make("position", "sinusoidal", SITE))
    near(array(torch.cat((ours[:, 0::2], ours[:, 1::2]), -1)), array(theirs), WIDE)


@pytest.mark.parametrize("d", [12, 7])
def test_learned_sinusoidal(d: int) -> None:
    """Waves of its own frequencies, and their derivative: t cos(w t) of the sine, -t sin(w t) of the cosine."""
    position = make("position", "learned_sinusoidal", replace(SITE, d_model=d))
    omega = array(position.omega)
    assert omega.shape == (d // 2,)
    t = np.arange(T)[:, None]
    expected = np.zeros((T, d))
    expected[:, 0 : d - 1 : 2], expected[:, 1::2] = np.sin(t * omega), np.cos(t * omega)
    x, weights = random(B, T, d), random(B, T, d, seed=1)
    y = position.embed(x, context(position))
    near(array(y), x.numpy() + expected)
    (y * weights).sum().backward()
    summed = weights.numpy().sum(0)
    slope = summed[:, 0 : d - 1 : 2] * t * np.cos(t * omega) - summed[:, 1::2] * t * np.sin(t * omega)
    near(position.omega.grad, slope.sum(0), 1e-11)


@pytest.mark.parametrize("d", [12, 7])
def test_learned_sinusoidal_starts_as_the_fixed_one(d: int) -> None:
    site = replace(SITE, d_model=d)
    learned = make("position", "learned_sinusoidal", site)
    learned.reset_parameters()
    near(array(embedded(learned, d)), array(embedded(make("position", "sinusoidal", site), d)), TABLE)


def test_learned_frequencies_are_not_decayed() -> None:
    for position in ("learned_sinusoidal", "learned_sinusoidal_relative"):
        model = build_model(parse(ArchSpec, {"d_model": 16, "n_heads": 2, "depth": 2, "position": position}), 11, 16)
        spared = decay_groups(model, 0.1)[1]
        assert any(each is model.position.omega for each in spared["params"])


@pytest.mark.parametrize(
    ("name", "options"),
    [("sinusoidal", {"style": "t2t"}), ("learned_sinusoidal", {})]
    + [("binary", {"how": how}) for how in ("projected", "concatenated", "tiled")],
)
def test_decoding_continues_the_positions(name: str, options: dict[str, Any]) -> None:
    position = make("position", name, SITE, **options)
    x = random(B, T, 12)
    later = Context(position, torch.arange(5, T), Cache(length=5))
    near(array(position.embed(x, context(position))[:, 5:]), array(position.embed(x[:, 5:], later)))


# --- binary digits


@pytest.mark.parametrize(("max_len", "digits"), [(1, 1), (2, 1), (3, 2), (16, 4), (17, 5), (32, 5)])
def test_binary_digits(max_len: int, digits: int) -> None:
    """0000, 0001, ..., 1111: each position its own, the lowest digit changing at every step."""
    position = make("position", "binary", replace(SITE, max_len=max_len), how="tiled")
    found = ["".join(str(int(digit > 0)) for digit in row[:digits]) for row in position.digits.tolist()]
    assert found == [format(t, f"0{digits}b") for t in range(max_len)] and len(set(found)) == max_len


def test_binary_projected() -> None:
    position = make("position", "binary", SITE)
    assert [p.shape for p in position.parameters()] == [(12, 4)]
    bits = np.array([[int(each) for each in format(t, "04b")] for t in range(T)])
    near(array(embedded(position)), bits @ array(position.project.weight).T)


@pytest.mark.parametrize("bias", [True, False])
def test_binary_concatenated(bias: bool) -> None:
    position = make("position", "binary", replace(SITE, bias=bias), how="concatenated")
    assert position.project.weight.shape == (12, 16) and (position.project.bias is not None) == bias
    bits = np.array([[int(each) for each in format(t, "04b")] for t in range(T)])
    x = random(B, T, 12)
    both = np.concatenate((x.numpy(), np.broadcast_to(bits, (B, T, 4))), -1)
    expected = both @ array(position.project.weight).T + array(position.project.bias)
    near(array(position.embed(x, context(position))), expected)


def test_binary_tiled() -> None:
    """-1 and +1, three times four of them into thirteen and a zero."""
    position = make("position", "binary", replace(SITE, d_model=13), how="tiled")
    signs = np.array([[2 * int(each) - 1 for each in format(t, "04b") * 3] + [0] for t in range(T)])
    near(array(embedded(position, 13)), signs)
    with pytest.raises(UserError, match="'tiled' needs d_model of 4 or more, not 3"):
        make("position", "binary", replace(SITE, d_model=3), how="tiled")


# --- rotations


@pytest.mark.parametrize("pairs", ["halves", "interleaved"])
@pytest.mark.parametrize(("d_head", "fraction", "rotated"), [(6, 1.0, 6), (8, 0.5, 4), (8, 0.3, 2), (7, 0.9, 6)])
def test_rope_is_a_rotation_of_complex_numbers(pairs: str, d_head: int, fraction: float, rotated: int) -> None:
    position = make("position", "rope", replace(SITE, d_head=d_head), pairs=pairs, fraction=fraction)
    q, k = random(B, 4, T, d_head), random(B, 4, T, d_head, seed=1)
    for x, y in zip((q, k), position.rotate(q, k, context(position)), strict=True):
        expected = x.numpy().copy()
        for t in range(T):
            for i in range(rotated // 2):
                one, two = (i, i + rotated // 2) if pairs == "halves" else (2 * i, 2 * i + 1)
                z = (x[:, :, t, one] + 1j * x[:, :, t, two]).numpy()
                z = z * cmath.exp(1j * t * 10000 ** (-2 * i / rotated))
                expected[:, :, t, one], expected[:, :, t, two] = z.real, z.imag
        near(array(y), expected, TABLE)


def test_rope_of_halves_and_of_neighbours_differ_by_an_order_of_features() -> None:
    order = torch.arange(6).view(2, 3).T.flatten()  # 0 3 1 4 2 5: partners beside each other
    q, k = random(B, 4, T, 6), random(B, 4, T, 6, seed=1)
    halves, interleaved = make("position", "rope", SITE), make("position", "rope", SITE, pairs="interleaved")
    for one, other in zip(
        halves.rotate(q, k, context()), interleaved.rotate(q[..., order], k[..., order], context()), strict=True
    ):
        near(array(one[..., order]), array(other))


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_rope_is_gpt_neox_s(fraction: float) -> None:
    """GPT-NeoX rotates the first part in halves, as Llama rotates all."""
    neox = pytest.importorskip("transformers.models.gpt_neox.modeling_gpt_neox")
    config = neox.GPTNeoXConfig(hidden_size=32, num_attention_heads=4, rotary_pct=fraction)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": fraction}
    q, k = random(B, 4, T, 8), random(B, 4, T, 8, seed=1)
    cos, sin = neox.GPTNeoXRotaryEmbedding(config)(q, torch.arange(T)[None])
    assert cos.shape[-1] == int(8 * fraction)
    position = make("position", "rope", replace(SITE, d_head=8), fraction=fraction)
    ours = position.rotate(q, k, context(position))
    for one, other in zip(ours, neox.apply_rotary_pos_emb(q, k, cos, sin), strict=True):
        near(array(one), array(other), 4 * WIDE)


def test_interleaved_rope_is_gpt_j_s() -> None:
    gptj = pytest.importorskip("transformers.models.gptj.modeling_gptj")
    sin, cos = gptj.create_sinusoidal_positions(T, 6).chunk(2, -1)
    q, k = random(B, 4, T, 6), random(B, 4, T, 6, seed=1)
    position = make("position", "rope", SITE, pairs="interleaved")
    for one, x in zip(position.rotate(q, k, context(position)), (q, k), strict=True):
        theirs = gptj.apply_rotary_pos_emb(x.transpose(1, 2), sin[None], cos[None]).transpose(1, 2)
        near(array(one), array(theirs), 4 * WIDE)


@pytest.mark.parametrize("options", [{"pairs": "interleaved"}, {"fraction": 0.5, "pairs": "interleaved"}])
def test_rope_while_decoding(options: dict[str, Any]) -> None:
    position = make("position", "rope", replace(SITE, d_head=8), **options)
    q, k = random(B, 4, T, 8), random(B, 4, T, 8, seed=1)
    later = Context(position, torch.arange(5, T), Cache(length=5))
    full, piece = position.rotate(q, k, context(position)), position.rotate(q[:, :, 5:], k[:, :, 5:], later)
    assert all(torch.equal(one[:, :, 5:], other) for one, other in zip(full, piece, strict=True))


@pytest.mark.parametrize(("d_head", "fraction"), [(6, 0.5), (6, 0.1), (8, 0.4)])
def test_rope_refuses_odd_parts(d_head: int, fraction: float) -> None:
    with pytest.raises(UserError, match=f"fraction {fraction:g} of d_head {d_head} must be even and at least 2"):
        make("position", "rope", replace(SITE, d_head=d_head), fraction=fraction)


# --- biases


@pytest.mark.parametrize("causal", [True, False])
def test_t5_is_transformers_(causal: bool) -> None:
    """The whole bias on copied tables, and x-transformers' beside it."""
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    x_transformers = pytest.importorskip("x_transformers.x_transformers")
    position = make("position", "t5", replace(SITE, causal=causal, max_len=200))
    config = t5.T5Config(d_model=12, d_kv=6, num_heads=4, is_decoder=causal)
    theirs = t5.T5Attention(config, has_relative_attention_bias=True, layer_idx=0).double()
    another = x_transformers.RelativePositionBias(1.0, causal=causal, heads=4).double()
    for each in (theirs, another):
        each.relative_attention_bias.weight.data = position.table.data
    ours = position.bias(None, None, torch.arange(200), context(position, 200))
    near(array(ours), array(theirs.compute_bias(200, 200)[0]))
    near(array(ours), array(another(200, 200)))


@pytest.mark.parametrize("causal", [True, False])
def test_t5_per_layer(causal: bool) -> None:
    """Each layer looks into its own table, computed once a pass; a layer run again into the same one."""
    site = replace(SITE, causal=causal)
    one, many = make("position", "t5", site), make("position", "t5", site, per_layer=True)
    assert one.table.shape == (32, 4) and many.table.shape == (2, 32, 4)
    ctx, found = context(many), []
    for layer in range(4):
        ctx.layer = layer
        found.append(many.bias(None, None, torch.arange(T), ctx))
        one.table.data = many.table.data[layer % 2]
        near(array(found[-1]), array(one.bias(None, None, torch.arange(T), context(one))))
    assert found[0] is found[2] and found[1] is found[3] and not torch.equal(found[0], found[1])


def test_t5_tables_are_counted() -> None:
    """32 H of them shared, 32 H L where every layer has its own."""
    sizes: dict[str, Any] = {"d_model": 48, "n_heads": 6, "depth": 5}
    for options, expected in (({}, 32 * 6), ({"per_layer": True}, 32 * 6 * 5)):
        model = build_on_meta(parse(ArchSpec, {**sizes, "position": {"name": "t5", **options}}), 11, 16)
        assert sum(p.numel() for p in model.position.parameters()) == expected


@pytest.mark.parametrize("n_heads", [1, 2, 3, 6, 8, 12])
def test_alibi_is_mpt_s_and_bloom_s(n_heads: int) -> None:
    """Theirs depend on the key alone: under the causal rule a constant of every row apart, which softmax removes."""
    mpt = pytest.importorskip("transformers.models.mpt.modeling_mpt")
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    position = make("position", "alibi", replace(SITE, n_heads=n_heads))
    bias = position.bias(None, None, torch.arange(T), context(position)).tril()
    theirs = mpt.build_mpt_alibi_tensor(n_heads, T)
    another = bloom.build_alibi_tensor(torch.ones(1, T), n_heads, torch.float64)
    hidden = torch.ones(T, T).triu(1).bool()
    scores = random(n_heads, T, T)
    weights = [(scores + each).masked_fill(hidden, -math.inf).softmax(-1) for each in (bias, theirs, another)]
    near(array(weights[0]), array(weights[1]), TABLE)
    near(array(weights[0]), array(weights[2]), TABLE)


# --- none


def test_an_encoder_without_positions_does_not_see_order() -> None:
    """Permuted tokens give permuted outputs; with any position they do not."""
    tokens = torch.arange(T)[None] % 11
    order = torch.randperm(T, generator=torch.Generator().manual_seed(0))
    for name in ("none", "binary", "shaw", "t5", "sinusoidal_relative", "learned_sinusoidal"):
        arch = parse(ArchSpec, {"d_model": 16, "n_heads": 2, "depth": 2, "position": name})
        model = build_model(arch, 11, 16, causal=False).double().eval()
        for parameter in model.parameters():
            parameter.data += 0.2 * random(*parameter.shape, seed=3)
        moved = (model(tokens[:, order])[0] - model(tokens)[0][:, order]).abs().max().item()
        assert moved < 1e-12 if name == "none" else moved > 1e-3
