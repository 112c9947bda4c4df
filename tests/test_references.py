"""Each component against something independent: loops written from the equations, torch.nn, transformers.

In float64 and to rounding, unless a test says why not.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import EXACT, SITE, TABLE, B, T, array, context, layer_norm, make, near, random, torch_attention
from torch import Tensor, nn

from ablate import registry
from ablate.build import build_model
from ablate.contracts import Cache, Context, Embedding, Head
from ablate.errors import UserError
from ablate.models import TokenModel
from ablate.spec import ArchSpec, Component, parse
from ablate.train.optim import decay_groups

# --- attention


def attention_loop(mixer: Any, x: np.ndarray, scale: float, bias_HTS: np.ndarray | None, causal: bool) -> np.ndarray:
    """softmax(q . k scale + bias) v, one query and one key at a time."""
    q, k, v = (x @ array(linear.weight).T + array(linear.bias) for linear in (mixer.q, mixer.k, mixer.v))
    n_heads = mixer.n_heads
    q, k, v = (each.reshape(*each.shape[:2], n_heads, -1) for each in (q, k, v))
    y = np.zeros((x.shape[0], x.shape[1], v.shape[2] * v.shape[3]))
    for b, t, h in np.ndindex(x.shape[0], x.shape[1], n_heads):
        keys = range(t + 1 if causal else x.shape[1])
        scores = [q[b, t, h] @ k[b, s, h] * scale + (0 if bias_HTS is None else bias_HTS[h, t, s]) for s in keys]
        weights = np.exp(scores) / np.sum(np.exp(scores))
        width = v.shape[3]
        y[b, t, h * width : (h + 1) * width] = sum(
            weight * v[b, s, h] for weight, s in zip(weights, keys, strict=True)
        )
    return y @ array(mixer.out.weight).T + array(mixer.out.bias)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("options", [{}, {"score": "dot"}, {"d_value": 5}, {"d_value": 9, "score": "dot"}])
def test_attention(options: dict[str, Any], causal: bool) -> None:
    """n_heads d_head is not d_model here, and the values have a width of their own."""
    mixer = make("mixer", "attention", replace(SITE, causal=causal), **options)
    assert mixer.v.weight.shape == (4 * options.get("d_value", 6), 12) and mixer.q.weight.shape == (24, 12)
    x = random(B, T, 12)
    scale = 1.0 if options.get("score") == "dot" else 6**-0.5
    near(array(mixer(x, context())), attention_loop(mixer, x.numpy(), scale, None, causal))


def test_attention_without_biases() -> None:
    mixer = make("mixer", "attention", replace(SITE, bias=False))
    assert {name for name, _ in mixer.named_parameters()} == {"q.weight", "k.weight", "v.weight", "out.weight"}
    x = random(B, T, 12)
    near(array(mixer(x, context())), attention_loop(mixer, x.numpy(), 6**-0.5, None, True))


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_torch_s(causal: bool) -> None:
    mixer = make("mixer", "attention", replace(SITE, d_head=3, causal=causal))
    theirs = torch_attention(mixer)
    x = random(B, T, 12)
    mask = torch.ones(T, T).triu(1).bool() if causal else None
    near(array(mixer(x, context())), array(theirs(x, x, x, attn_mask=mask, need_weights=False)[0]))


def test_dot_is_scaled_dot_with_longer_queries() -> None:
    """The two differ by a factor on the queries, which an initialisation can fold into their weights."""
    scaled, dot = make("mixer", "attention", SITE), make("mixer", "attention", SITE, score="dot")
    dot.load_state_dict(scaled.state_dict())
    x = random(B, T, 12)
    assert (dot(x, context()) - scaled(x, context())).abs().max() > 0.01
    with torch.no_grad():
        dot.q.weight /= 6**0.5
        dot.q.bias /= 6**0.5
    near(array(dot(x, context())), array(scaled(x, context())))


# --- feed-forward networks


def erf_gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


FORMULAS: dict[str, Callable[[float], float]] = {
    "relu": lambda x: max(0.0, x),
    "gelu": erf_gelu,
    "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "swish": lambda x: x / (1 + math.exp(-x)),
    "elu": lambda x: x if x > 0 else math.exp(x) - 1,
    "selu": lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * (math.exp(x) - 1)),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "softplus": lambda x: math.log(1 + math.exp(x)),
    "identity": lambda x: x,
}
X = np.linspace(-6, 6, 2 * 9 * 12).reshape(2, 9, 12)[:, ::-1].copy()


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("bias", [True, False])
def test_ffn(name: str, bias: bool) -> None:
    channel = make("channel", "ffn", replace(SITE, bias=bias), activation=name)
    assert len(list(channel.parameters())) == (4 if bias else 2)
    hidden = np.vectorize(FORMULAS[name])(X @ array(channel.up.weight).T + array(channel.up.bias))
    assert hidden.shape == (2, 9, 20) and np.abs(hidden).max() > 1 - (name == "sigmoid") * 0.1
    expected = hidden @ array(channel.down.weight).T + array(channel.down.bias)
    near(array(channel(torch.from_numpy(X), context())), expected, atol=1e-11)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize(("hidden", "width"), [("two_thirds", 13), ("full", 20)])
def test_glu(name: str, hidden: str, width: int) -> None:
    """W2 (act(Wg x) * (Wu x)), floor(2 d_ff / 3) or d_ff wide."""
    channel = make("channel", "glu", SITE, activation=name, hidden=hidden)
    gate = np.vectorize(FORMULAS[name])(X @ array(channel.gate.weight).T + array(channel.gate.bias))
    value = X @ array(channel.up.weight).T + array(channel.up.bias)
    assert gate.shape == (2, 9, width)
    expected = (gate * value) @ array(channel.down.weight).T + array(channel.down.bias)
    near(array(channel(torch.from_numpy(X), context())), expected, atol=1e-11)


def test_glu_is_torch_s() -> None:
    """torch's F.glu takes the value first and the gate second."""
    channel = make("channel", "glu", SITE)
    x = random(B, T, 12)
    expected = channel.down(F.glu(torch.cat((channel.up(x), channel.gate(x)), -1)))
    near(array(channel(x, context())), array(expected))


@pytest.mark.parametrize(("d_ff", "width"), [(3072, 2048), (96, 64), (100, 66), (2, 1), (1, 1)])
def test_glu_width(d_ff: int, width: int) -> None:
    channel = make("channel", "glu", replace(SITE, d_ff=d_ff))
    assert channel.gate.weight.shape == channel.up.weight.shape == (width, 12)
    assert channel.down.weight.shape == (12, width)


@pytest.mark.parametrize("name", ["ffn", "glu"])
def test_hidden_dropout(name: str) -> None:
    """In training mode each hidden unit is zero or doubled: with W2 = 1, seen one by one."""
    site = replace(SITE, d_model=20, d_ff=20, bias=False)
    options = {"hidden": "full"} if name == "glu" else {}
    channel = make("channel", name, site, dropout=0.5, activation="relu", **options)
    channel.down.weight.data = torch.eye(20).double()
    x = random(B, T, 20)
    plain = channel(x, context())
    channel.train()
    ratio = (channel(x, context()) / plain)[plain != 0]
    assert {round(each, 9) for each in ratio.tolist()} == {0.0, 2.0} and 0.4 < (ratio == 0).double().mean() < 0.6


# --- norms and residuals


@pytest.mark.parametrize("options", [{}, {"eps": 1e-2}, {"shift": False}])
def test_layernorm(options: dict[str, Any]) -> None:
    norm = make("norm", "layernorm", 12, **options)
    x = random(B, T, 12, scale=0.1).numpy() + 3
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + options.get("eps", 1e-5))
    near(array(norm(torch.from_numpy(x))), scaled * array(norm.gain) + array(norm.shift))
    theirs = nn.LayerNorm(12, eps=options.get("eps", 1e-5), bias="shift" not in options, dtype=torch.float64)
    theirs.load_state_dict({{"gain": "weight", "shift": "bias"}[name]: p for name, p in norm.state_dict().items()})
    near(array(norm(torch.from_numpy(x))), array(theirs(torch.from_numpy(x))))


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_rmsnorm(eps: float) -> None:
    norm = make("norm", "rmsnorm", 12, eps=eps)
    assert norm.eps == eps and registry.find("norm", "rmsnorm").defaults == {"eps": 1e-6}
    x = random(B, T, 12, scale=0.1).numpy() + 3
    near(array(norm(torch.from_numpy(x))), x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * array(norm.gain))
    theirs = nn.RMSNorm(12, eps=eps, dtype=torch.float64)
    theirs.load_state_dict({"weight": norm.gain})
    near(array(norm(torch.from_numpy(x))), array(theirs(torch.from_numpy(x))))


@pytest.mark.parametrize("name", ["layernorm", "rmsnorm"])
def test_norms_take_their_statistics_in_float32(name: str) -> None:
    """A bfloat16 input gives the float32 result, rounded once: relative errors of half a unit in the last place."""
    norm = registry.make("norm", Component(name), 256)
    x = (random(4, 256) + 20).to(torch.bfloat16)
    y = norm.to(torch.bfloat16)(x) if name == "layernorm" else norm(x)
    assert y.dtype == torch.bfloat16
    expected = registry.make("norm", Component(name), 256).double()(x.double())
    assert ((y.double() - expected).abs() <= 2**-8 * expected.abs() + 1e-6).all()


def test_no_norm() -> None:
    norm = make("norm", "none", 12)
    x = random(B, T, 12)
    assert torch.equal(norm(x), x) and not list(norm.parameters())


def test_residuals() -> None:
    """Placement of the norm, for f(x) = x^2."""
    x = random(B, T, 12)

    def joined(residual: Any) -> np.ndarray:
        return array(residual(x, torch.square))

    pre, post, sandwich, none = (make("residual", name, SITE) for name in ("pre", "post", "sandwich", "none"))
    near(joined(pre), x.numpy() + layer_norm(x.numpy(), pre.norm) ** 2)
    near(joined(post), layer_norm((x + x**2).numpy(), post.norm))
    near(joined(sandwich), x.numpy() + layer_norm(layer_norm(x.numpy(), sandwich.before) ** 2, sandwich.after))
    near(joined(none), layer_norm(x.numpy(), none.norm) ** 2)
    bare = make("residual", "none", replace(SITE, norm=Component("none")))
    near(joined(bare), x**2)


def small(**settings: Any) -> ArchSpec:
    return parse(ArchSpec, {"d_model": 12, "n_heads": 2, "d_ff": 20, "depth": 3, **settings})


def model_of(arch: ArchSpec, **options: Any) -> TokenModel:
    """A model in float64 whose parameters are away from zeros and ones."""
    model = build_model(arch, 11, 16, **options).double().eval()
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


TOKENS = torch.randint(0, 11, (B, T), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("residual", "norms"), [("pre", 7), ("post", 6), ("sandwich", 13), ("none", 6)])
def test_norms_of_a_tower(residual: str, norms: int) -> None:
    """2L norms, 4L of the sandwich, and a final one where the stream is not normalised at its end."""
    model = model_of(small(residual=residual))
    gains = [p for name, p in model.named_parameters() if name.endswith("gain")]
    assert len(gains) == norms and (model.tower.final_norm is not None) == (residual in ("pre", "sandwich"))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("residual", ["pre", "post"])
def test_the_tower_is_torch_s(residual: str, causal: bool) -> None:
    """nn.TransformerEncoder with the same weights: attention, ffn, placement of norms, the final norm."""
    model = model_of(small(residual=residual, position="none"), causal=causal)
    tower = model.tower
    layer = nn.TransformerEncoderLayer(
        12, 2, 20, dropout=0.0, activation="gelu", batch_first=True, norm_first=residual == "pre"
    )
    final = nn.LayerNorm(12) if residual == "pre" else None
    theirs = nn.TransformerEncoder(layer, 3, norm=final, enable_nested_tensor=False).double().eval()
    for theirs_layer, ours in zip(theirs.layers, tower.layers, strict=True):
        attention, ffn = ours.functions
        state = {
            "self_attn.in_proj_weight": torch.cat([getattr(attention, each).weight for each in "qkv"]),
            "self_attn.in_proj_bias": torch.cat([getattr(attention, each).bias for each in "qkv"]),
        }
        parts = {"self_attn.out_proj": attention.out, "linear1": ffn.up, "linear2": ffn.down}
        for name, linear in parts.items():
            state |= {f"{name}.weight": linear.weight, f"{name}.bias": linear.bias}
        for name, residual_ in zip(("norm1", "norm2"), ours.residuals, strict=True):
            state |= {f"{name}.weight": residual_.norm.gain, f"{name}.bias": residual_.norm.shift}
        theirs_layer.load_state_dict(state)
    if final is not None:
        theirs.norm.load_state_dict({"weight": tower.final_norm.gain, "bias": tower.final_norm.shift})
    x = F.embedding(TOKENS, model.embedding.table.weight)
    mask = nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64) if causal else None
    near(array(model(TOKENS)[0]), array(theirs(x, mask=mask)))


# --- positions


@pytest.mark.parametrize(("d", "base"), [(12, 10000.0), (7, 10000.0), (8, 100.0)])
def test_sinusoidal(d: int, base: float) -> None:
    position = make("position", "sinusoidal", replace(SITE, d_model=d), base=base)
    x = random(B, T, d)
    expected = x.numpy().copy()
    for t in range(T):
        for i in range(d // 2):
            angle = t / base ** (2 * i / d)
            expected[:, t, 2 * i] += math.sin(angle)
            expected[:, t, 2 * i + 1] += math.cos(angle)
    near(array(position.embed(x, context(position))), expected, TABLE)


def test_learned() -> None:
    position = make("position", "learned", SITE)
    assert position.table.shape == (16, 12)
    x = random(B, T, 12)
    expected = x.numpy() + np.stack([array(position.table)[t] for t in range(T)])
    near(array(position.embed(x, context(position))), expected)


@pytest.mark.parametrize("name", ["learned", "sinusoidal", "rope"])
def test_decoding_continues_the_positions(name: str) -> None:
    """With a cache the tokens' own positions count, not their place in the piece."""
    position = make("position", name, SITE)
    later = Context(position, torch.arange(5, T), Cache(length=5))
    if name == "rope":
        q, k = random(B, 4, T, 6), random(B, 4, T, 6, seed=1)
        full, piece = position.rotate(q, k, context(position)), position.rotate(q[:, :, 5:], k[:, :, 5:], later)
        assert all(torch.equal(one[:, :, 5:], other) for one, other in zip(full, piece, strict=True))
    else:
        x = random(B, T, 12)
        assert torch.equal(position.embed(x, context(position))[:, 5:], position.embed(x[:, 5:], later))


@pytest.mark.parametrize(("d_head", "base"), [(6, 10000.0), (2, 10000.0), (8, 50.0)])
def test_rope_is_a_rotation_of_complex_numbers(d_head: int, base: float) -> None:
    """z_i = x_i + i x_{i + K/2} is multiplied by e^{i t theta_i}, theta_i = base^(-2i/K)."""
    position = make("position", "rope", replace(SITE, d_head=d_head), base=base)
    q, k = random(B, 4, T, d_head), random(B, 4, T, d_head, seed=1)
    for x, y in zip((q, k), position.rotate(q, k, context(position)), strict=True):
        expected = x.numpy().copy()
        for t in range(T):
            for i in range(d_head // 2):
                turn = cmath.exp(1j * t * base ** (-2 * i / d_head))
                z = (x[:, :, t, i] + 1j * x[:, :, t, i + d_head // 2]).numpy() * turn
                expected[:, :, t, i], expected[:, :, t, i + d_head // 2] = z.real, z.imag
        near(array(y), expected, TABLE)


def test_rope_is_relative() -> None:
    """One query and one key at all places: the score depends on the distance alone."""
    position = make("position", "rope", SITE)
    q, k = (random(1, 1, 1, 6, seed=seed).expand(1, 1, T, 6) for seed in (0, 1))
    q, k = position.rotate(q, k, context(position))
    scores_TS = array(q @ k.transpose(-1, -2))[0, 0]
    for distance in range(-T + 1, T):
        near(np.ptp(np.diagonal(scores_TS, distance)), 0, TABLE)
    assert np.ptp(scores_TS[0]) > 0.1


def test_rope_needs_pairs() -> None:
    with pytest.raises(UserError, match="d_head 5 must be even"):
        make("position", "rope", replace(SITE, d_head=5))


SLOPES = {  # Press et al. 2022: 2^(-8/H) and its powers; else those of the lower power, and every second of the next
    1: [2**-8],
    2: [2**-4, 2**-8],
    8: [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256],
    16: [2 ** (-h / 2) for h in range(1, 17)],
    3: [2**-4, 2**-8, 2**-2],
    6: [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3],
    12: [2**-1, 2**-2, 2**-3, 2**-4, 2**-5, 2**-6, 2**-7, 2**-8, 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5],
}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n_heads", SLOPES)
def test_alibi(n_heads: int, causal: bool) -> None:
    """-m_h |t - s| where a key is visible; one instance serves the tower, and computes its bias once."""
    site = replace(SITE, n_heads=n_heads, causal=causal)
    position = make("position", "alibi", site)
    ctx = context(position)
    bias = position.bias(random(B, n_heads, T, 6), random(B, n_heads, T, 6), torch.arange(T), ctx)
    for h, t, s in np.ndindex(n_heads, T, T):
        if s <= t or not causal:
            near(bias[h, t, s], -SLOPES[n_heads][h] * abs(t - s), TABLE)
    assert position.bias(None, None, torch.arange(T), ctx) is bias


def scalar_bucket(relative: int, buckets: int, max_distance: int, causal: bool) -> int:
    """T5's bucket of key minus query in whole numbers: spaced bucket i begins where n^m >= e^(m-i) max^i."""
    if causal:
        first, distance = 0, max(-relative, 0)
    else:
        buckets //= 2
        first, distance = (buckets if relative > 0 else 0), abs(relative)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    spaced = buckets - exact
    reached = [i for i in range(spaced) if distance**spaced >= exact ** (spaced - i) * max_distance**i]
    return first + exact + reached[-1]


SIZES = [(32, 128), (16, 40), (8, 1000)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), SIZES)
def test_t5(buckets: int, max_distance: int, causal: bool) -> None:
    """All distances up to 300, through the bias that attention gets."""
    length = 301
    site = replace(SITE, n_heads=2, max_len=length, causal=causal)
    position = make("position", "t5", site, buckets=buckets, max_distance=max_distance)
    assert position.table.shape == (buckets, 2)
    position.table.data = torch.arange(2.0 * buckets).view(buckets, 2).double()
    bias = position.bias(None, None, torch.arange(length), context(position, length)).detach()
    assert bias.shape == (2, length, length)
    for relative in range(-length + 1, length):
        bucket = scalar_bucket(relative, buckets, max_distance, causal)
        assert (bias[0].diagonal(relative) == 2 * bucket).all() and (
            bias[1].diagonal(relative) == 2 * bucket + 1
        ).all()
    assert scalar_bucket(-max_distance, buckets, max_distance, True) == buckets - 1


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), SIZES)
def test_t5_buckets_are_transformers_(buckets: int, max_distance: int, causal: bool) -> None:
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    relative = torch.arange(-400, 401)
    theirs = t5.T5Attention._relative_position_bucket(relative, not causal, buckets, max_distance)
    ours = [scalar_bucket(each, buckets, max_distance, causal) for each in relative.tolist()]
    assert theirs.tolist() == ours


@pytest.mark.parametrize("name", ["rope", "alibi", "t5"])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_with_positions(name: str, causal: bool) -> None:
    """The loop of attention, with rotated queries and keys or with the bias added to the scores."""
    site = replace(SITE, causal=causal)
    mixer, position = make("mixer", "attention", site), make("position", name, site)
    x = random(B, T, 12)
    y = array(mixer(x, context(position)))
    if name == "rope":
        frozen = {linear: linear(x) for linear in (mixer.q, mixer.k)}
        q, k = position.rotate(*(mixer.split(each) for each in frozen.values()), context(position))
        scores = (q @ k.transpose(-1, -2) * 6**-0.5).masked_fill(
            torch.ones(T, T).triu(1).bool() if causal else torch.zeros(T, T).bool(), -math.inf
        )
        expected = array(mixer.out((scores.softmax(-1) @ mixer.split(mixer.v(x))).transpose(1, 2).flatten(2)))
    else:
        bias = array(position.bias(None, None, torch.arange(T), context(position)))
        expected = attention_loop(mixer, x.numpy(), 6**-0.5, bias, causal)
    near(y, expected)
    assert np.abs(y - array(mixer(x, context()))).max() > 1e-3


POSITIONS = ["none", "learned", "sinusoidal", "rope", "alibi", "t5"]


def by_explicit(position: Any) -> Any:
    """The same position asking for attention's weights: attention then computes them one by one."""
    cls = type(position)

    def value(self: Any, weights_BHTS: Tensor, pos_S: Tensor, ctx: Context) -> None:
        self.asked = True

    position.__class__ = type(cls.__name__, (cls,), {"value": value, "asked": False})
    return position


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("score", ["scaled_dot", "dot"])
@pytest.mark.parametrize("name", POSITIONS)
def test_explicit_attention_is_the_fast_one(name: str, score: str, causal: bool) -> None:
    """Outputs and all gradients of attention as written and of the fused kernel, for every position."""
    site = replace(SITE, causal=causal)
    found = []
    for explicit in (False, True):
        mixer, position = make("mixer", "attention", site, score=score), make("position", name, site)
        x = random(B, T, 12).requires_grad_()
        ctx = context(by_explicit(position) if explicit else position)
        y = mixer(position.embed(x, ctx), ctx)
        assert not explicit or position.asked
        (y * random(B, T, 12, seed=4)).sum().backward()
        gradients = [p.grad for p in (x, *mixer.parameters(), *position.parameters())]
        assert all(each is not None and each.any() for each in gradients)
        found.append([y.detach(), *gradients])
    for one, other in zip(*found, strict=True):
        near(one, other, 1e-11)


@pytest.mark.parametrize("explicit", [False, True])
def test_attention_dropout_acts_on_the_weights(explicit: bool) -> None:
    """In training mode alone. Then weights are zero or doubled: the mean over many masks is what it was without."""
    mixer = make("mixer", "attention", SITE, dropout=0.5)
    plain = make("mixer", "attention", SITE)
    position = make("position", "none", SITE)
    x = random(1, T, 12)
    expected = plain(x, context())[0]
    ask = by_explicit(position) if explicit else position
    near(array(mixer(x, context(ask))), array(expected)[None])
    torch.manual_seed(0)
    mixer.train()
    with torch.no_grad():
        drawn = mixer(x.expand(20_000, T, 12), context(ask))
    first = mixer.split(mixer.v(x))[0, :, 0]  # the first query sees one key: each head's value twice, or nothing
    heads = torch.cartesian_prod(*[torch.tensor([0.0, 2.0]).double()] * 4)
    possible = mixer.out((heads[:, :, None] * first).flatten(1))
    near(array(torch.cdist(drawn[:200, 0], possible).min(1).values), 0, 1e-6)
    error = (drawn.mean(0) - expected) / (drawn.std(0) / 20_000**0.5)
    assert error.abs().max() < 4.5  # of 108 normal deviates


def test_a_position_may_add_to_the_values() -> None:
    """sum_s w_ts (v_s + a_{t - s}), as in Shaw et al. 2018: what `value` returns is added before W_O."""
    mixer, position = make("mixer", "attention", SITE), make("position", "none", SITE)
    table_TSK = random(T, T, 6, seed=2)

    def value(self: Any, weights_BHTS: Tensor, pos_S: Tensor, ctx: Context) -> Tensor:
        return torch.einsum("bhts,tsk->bhtk", weights_BHTS, table_TSK[:, pos_S])

    position.__class__ = type("Values", (type(position),), {"value": value})
    x = random(B, T, 12)
    q, k, v = (mixer.split(linear(x)) for linear in (mixer.q, mixer.k, mixer.v))
    weights = (q @ k.mT * 6**-0.5).masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1)
    expected = torch.zeros(B, 4, T, 6).double()
    for t, s in np.ndindex(T, T):
        expected[:, :, t] += weights[:, :, t, s, None] * (v[:, :, s] + table_TSK[t, s])
    near(array(mixer(x, context(position))), array(mixer.out(expected.transpose(1, 2).flatten(2))))


@pytest.mark.parametrize("name", POSITIONS)
def test_explicit_attention_decodes(name: str) -> None:
    mixer, position = make("mixer", "attention", SITE), make("position", name, SITE)
    x = random(B, T, 12)
    full = mixer(position.embed(x, context(position)), context(position))
    for ask in (position, by_explicit(position)):
        cache, parts = Cache(), []
        for piece in (slice(0, 4), slice(4, 5), slice(5, T)):
            ctx = Context(ask, torch.arange(T)[piece], cache)
            cache.length = piece.start
            parts.append(mixer(ask.embed(x[:, piece], ctx), ctx))
        near(array(torch.cat(parts, 1)), array(full))


@pytest.mark.parametrize("name", POSITIONS)
def test_attention_in_bfloat16(name: str) -> None:
    """Under autocast the error is that of six roundings to 8 bits: x, W, q and k, the weights, v, the output."""
    mixer, position = make("mixer", "attention", SITE), make("position", name, SITE)
    x = random(B, T, 12)
    exact = mixer(position.embed(x, context(position)), context(position))
    mixer.float(), position.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ctx = context(position)
        y = mixer(position.embed(x.float(), ctx), ctx)
    assert y.dtype == torch.bfloat16
    error = (y.double() - exact).abs().max() / exact.abs().max()
    assert 2**-14 < error < 6 * 2**-9


# --- recurrence and convolution


def lstm_loop(mixer: Any, x: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """i, f, g, o = W x + U h + b; c = sigmoid(f) c + sigmoid(i) tanh(g); h = sigmoid(o) tanh(c)."""
    w, u, b1, b2 = (array(p) for p in mixer.cells.parameters())
    hidden, outputs = u.shape[1], []

    def sigmoid(z: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-z))

    for t in range(x.shape[1]):
        gates = x[:, t] @ w.T + h @ u.T + b1 + b2
        i, f, g, o = (gates[:, n * hidden : (n + 1) * hidden] for n in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h if mixer.out is None else h @ array(mixer.out.weight).T + array(mixer.out.bias))
    return np.stack(outputs, 1), h, c


@pytest.mark.parametrize(("options", "hidden"), [({}, 12), ({"hidden": 7}, 7), ({"forget_bias": 1.0}, 12)])
def test_lstm(options: dict[str, Any], hidden: int) -> None:
    mixer = make("mixer", "lstm", SITE, **options)
    x, zero = random(B, T, 12), np.zeros((B, hidden))
    expected, h, c = lstm_loop(mixer, x.numpy(), zero, zero)
    cache = Cache()
    near(array(mixer(x, Context(None, torch.arange(T), cache))), expected)  # type: ignore[arg-type]
    state = cache.states[0]
    near(array(state[0])[:, 0], h)
    near(array(state[1])[:, 0], c)
    assert {name.split(".")[0] for name, _ in mixer.named_parameters()} == {"cells"} | (
        {"out"} if hidden != 12 else set()
    )


def test_forget_bias() -> None:
    """Added to the forget gate's bias and to nothing else, on top of U(+-1/sqrt(hidden))."""
    torch.manual_seed(0)
    plain = registry.make("mixer", Component("lstm"), SITE)
    torch.manual_seed(0)
    biased = registry.make("mixer", Component("lstm", (("forget_bias", 1.0),)), SITE)
    for (name, p), q in zip(plain.named_parameters(), biased.parameters(), strict=True):
        assert p.abs().max() <= 12**-0.5
        added = torch.zeros_like(p)
        if name == "cells.bias_ih_l0":
            added[12:24] = 1.0
        assert torch.allclose(q, p + added, atol=1e-7)


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (2, 1), (3, 1), (4, 2), (3, 5)])
@pytest.mark.parametrize("causal", [True, False])
def test_convolution(kernel: int, dilation: int, causal: bool) -> None:
    """By loops over the taps, and by F.conv1d. Centred where the task sees both sides, an even kernel backwards."""
    mixer = make("mixer", "convolution", replace(SITE, causal=causal), kernel=kernel, dilation=dilation)
    x = random(B, T, 12)
    taps = mixer.taps.weight.detach().view(12, kernel, 12)  # oldest first
    ahead = 0 if causal else (kernel - 1) // 2 * dilation
    expected = np.zeros((B, T, 12)) + array(mixer.taps.bias)
    for t in range(T):
        for j in range(kernel):  # W_j acts on the input j dilations before the newest one
            s = t + ahead - j * dilation
            if 0 <= s < T:
                expected[:, t] += x[:, s].numpy() @ taps[:, kernel - 1 - j].numpy().T
    y = array(mixer(x, context()))
    near(y, expected)
    reach = (kernel - 1) * dilation
    padded = F.pad(x.transpose(1, 2), (reach - ahead, ahead))
    near(y, F.conv1d(padded, taps.permute(0, 2, 1), mixer.taps.bias, dilation=dilation).transpose(1, 2).detach())


@pytest.mark.parametrize("options", [{"kernel": 0}, {"dilation": 0}])
def test_a_convolution_needs_a_window(options: dict[str, int]) -> None:
    with pytest.raises(UserError, match="must be at least 1"):
        make("mixer", "convolution", SITE, **options)


# --- embeddings, heads


@pytest.mark.parametrize("scaled", [False, True])
def test_embedding(scaled: bool) -> None:
    embedding = make("embedding", "table", SITE, scaled=scaled)
    expected = array(embedding.table.weight)[TOKENS.numpy()] * (12**0.5 if scaled else 1)
    near(array(embedding(TOKENS)), expected)
    assert embedding.rows() is embedding.table.weight and embedding.rows().shape == (11, 12)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_softmax_head(tied: bool, scaled: bool) -> None:
    embedding = make("embedding", "table", SITE)
    head = make("head", "softmax", SITE, embedding, tied=tied, scaled=scaled)
    assert len(list(head.parameters())) == (0 if tied else 1)
    weight = embedding.table.weight if tied else head.project.weight
    x = random(B, T, 12)
    logits = (x.numpy() @ array(weight).T) * (12**-0.5 if scaled else 1)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    near(array(head.log_probs(x)), expected)
    nll = -np.take_along_axis(expected, TOKENS.numpy()[..., None], -1)[..., 0]
    near(array(head.nll(x, TOKENS)), nll)


def test_a_tied_table_gets_both_gradients() -> None:
    """As an input and as an output: the sum of what two tables would get."""
    tied, untied = model_of(small(depth=1)), model_of(small(depth=1, head={"name": "softmax", "tied": False}))
    untied.load_state_dict({**tied.state_dict(), "head.project.weight": tied.embedding.table.weight})
    for model in (tied, untied):
        model.nll(TOKENS, TOKENS.flip(1)).sum().backward()
    both = untied.embedding.table.weight.grad + untied.head.project.weight.grad
    near(tied.embedding.table.weight.grad, both, 1e-11)


def test_tying_needs_a_table() -> None:
    with pytest.raises(UserError, match=r"set arch\.head\.tied to false"):
        make("head", "softmax", SITE, Embedding(SITE))


@pytest.mark.parametrize("default", [False, True], ids=["softmax", "the contract's default"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_objective(smoothing: float, z_loss: float, default: bool) -> None:
    """Label smoothing is torch's, z-loss adds z log(Z)^2, and the plain nll stands beside them."""
    embedding = make("embedding", "table", SITE)
    head = make("head", "softmax", SITE, embedding)
    x = random(B, T, 12).requires_grad_()
    logits = x @ embedding.table.weight.T
    cross_entropy = F.cross_entropy(
        logits.flatten(0, 1), TOKENS.flatten(), reduction="none", label_smoothing=smoothing
    )
    log_z = logits.exp().sum(-1).log()
    if default and z_loss:
        with pytest.raises(NotImplementedError, match="z_loss is undefined"):
            Head.objective(head, x, TOKENS, smoothing, z_loss)
        return
    objective = Head.objective if default else type(head).objective
    loss, nll = objective(head, x, TOKENS, smoothing, z_loss)
    near(array(loss), array(cross_entropy.view(B, T) + z_loss * log_z**2))
    near(array(nll), array(F.cross_entropy(logits.flatten(0, 1), TOKENS.flatten(), reduction="none").view(B, T)))
    (expected,) = torch.autograd.grad((cross_entropy.view(B, T) + z_loss * log_z**2).sum(), x)
    near(torch.autograd.grad(loss.sum(), x)[0], expected)


# --- initialisations


def branches(name: str) -> bool:
    return name.endswith((".out.weight", ".down.weight"))


def deviation(init: str, name: str, d_in: int, d_out: int, fold: float) -> float:
    """The deviation of a matrix, from the definitions; `fold` multiplies the queries of an unscaled attention."""
    gain = fold if name.endswith(".q.weight") else 1.0
    table = name == "embedding.table.weight"
    return {
        "vaswani": d_out**-0.5 if table else gain * math.sqrt(2 / (d_in + d_out)),
        "t5": 1.0 if table else gain * d_in**-0.5,
        "lecun": d_out**-0.5 if table else gain * d_in**-0.5 / (math.sqrt(6) if branches(name) else 1),
        "gpt2": 0.02 * (gain / (math.sqrt(6) if branches(name) else 1) if not table else 1),
    }[init]


@pytest.mark.parametrize("score", ["scaled_dot", "dot"])
@pytest.mark.parametrize("init", ["vaswani", "t5", "lecun", "gpt2"])
def test_initialisation(init: str, score: str) -> None:
    """Mean 0 and the definition's deviation, to five standard errors; biases 0, norms 1 and 0; six branches."""
    settings = {"d_model": 256, "n_heads": 4, "d_head": 48, "d_ff": 320, "depth": 3, "init": init, "position": "none"}
    arch = parse(ArchSpec, {**settings, "sublayers": {"s": {"name": "attention", "score": score}}})
    model = build_model(replace(arch, head=Component("softmax", (("tied", False),))), 500, 4)
    fold = 48**-0.5 if score == "dot" else 1.0
    matrices = 0
    for name, p in model.named_parameters():
        if p.ndim == 1:
            assert torch.equal(p, torch.ones_like(p) if name.endswith("gain") else torch.zeros_like(p)), name
            continue
        matrices += 1
        d_out, d_in = p.shape
        d_out = d_in if name == "embedding.table.weight" else d_out
        expected = deviation(init, name, d_in, d_out, fold)
        uniform = init == "vaswani" and name != "embedding.table.weight"
        error = math.sqrt(0.2 if uniform else 0.5) / math.sqrt(p.numel())  # of a relative deviation
        assert abs(p.std().item() / expected - 1) < 5 * error, name
        assert abs(p.mean().item()) < 5 * expected / math.sqrt(p.numel()), name
        largest = p.abs().max().item() / expected
        assert 1.7 < largest <= 3**0.5 + 1e-6 if uniform else 3.5 < largest < 6.5, name
    assert matrices == 3 * 6 + 2


def test_own_initialisations() -> None:
    """Tables of positions, which inits do not know: N(0, 0.02^2) learned, N(0, 1/d_model) of T5."""
    wide = replace(SITE, d_model=256, max_len=400, n_heads=64)
    for name, options, expected in (("learned", {}, 0.02), ("learned", {"std": 0.3}, 0.3), ("t5", {}, 1 / 16)):
        position = registry.make("position", Component(name, tuple(options.items())), wide)
        table = position.table
        assert abs(table.std().item() / expected - 1) < 5 / math.sqrt(2 * table.numel())


def test_variants_start_from_the_same_values() -> None:
    """Modules of the same name and shape have the same values, whatever stands beside them."""
    one, other = (
        build_model(small(), 11, 16, seed=3),
        build_model(small(position="rope", norm="rmsnorm"), 11, 16, seed=3),
    )
    state, shared = one.state_dict(), 0
    for name, value in other.state_dict().items():
        if name in state and value.ndim == 2:
            assert torch.equal(value, state[name])
            shared += 1
    assert shared == 3 * 6 + 1


# --- order and sharing


def hand_run(model: TokenModel, order: str) -> Tensor:
    """x + f(N(x)) along the letters, with the modules of a one-layer tower."""
    ctx = Context(model.position, torch.arange(T))
    x = model.position.embed(model.embedding(TOKENS), ctx)
    functions, residuals = model.tower.functions["0"], model.tower.residuals["0"]
    assert len(functions) == len(residuals) == len(order)
    for letter, function, residual in zip(order, functions, residuals, strict=True):
        assert function.component == {"s": "mixer/attention", "f": "channel/ffn"}[letter]
        x = x + function(residual.norm(x), ctx)
    return model.tower.final_norm(x)


@pytest.mark.parametrize("order", ["s", "f", "sf", "fs", "sssfsfff", "ssffsf"])
def test_order(order: str) -> None:
    model = model_of(small(order=order, depth=1))
    near(array(model(TOKENS)[0]), array(hand_run(model, order)))
    by_letter = {"s": 4 * 12 * 12 + 4 * 12, "f": 2 * 12 * 20 + 20 + 12}
    expected = sum(by_letter[letter] for letter in order) + (len(order) + 1) * 24 + 11 * 12 + 16 * 12
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("coefficient", [0, 1, 2])
def test_sandwich_order(coefficient: int) -> None:
    """s^k (sf)^(n-k) f^k (Press et al. 2020): with k = 0 it is the interleaved model, layer by layer."""
    order = "s" * coefficient + "sf" * (3 - coefficient) + "f" * coefficient
    sandwich, interleaved = model_of(small(order=order, depth=1)), model_of(small(depth=3))
    assert sum(p.numel() for p in sandwich.parameters()) == sum(p.numel() for p in interleaved.parameters())
    state = sandwich.state_dict()
    for name, value in interleaved.state_dict().items():
        if name.startswith(("tower.functions", "tower.residuals")):
            group, layer, place, rest = name.removeprefix("tower.").split(".", 3)
            name = f"tower.{group}.0.{2 * int(layer) + int(place)}.{rest}"
        if coefficient == 0:
            state[name] = value
    sandwich.load_state_dict(state)
    difference = (sandwich.log_probs(TOKENS) - interleaved.log_probs(TOKENS)).abs().max()
    assert difference < EXACT if coefficient == 0 else difference > 0.1


@pytest.mark.parametrize(
    ("sharing", "functions", "norms"),
    [("none", 3, 6), ("all", 1, 2), ({"name": "all", "norms": False}, 1, 6)],
)
def test_sharing(sharing: Any, functions: int, norms: int) -> None:
    """What is held once, and that a shared tower is the unshared one with equal weights, gradients summed."""
    shared, free = model_of(small(sharing=sharing)), model_of(small())
    layer = 4 * 12 * 12 + 4 * 12 + 2 * 12 * 20 + 20 + 12
    in_tower = sum(p.numel() for p in shared.tower.parameters())
    assert in_tower == functions * layer + norms * 24 + 24
    first, last = shared.tower.layers[0], shared.tower.layers[-1]
    assert (first.functions[0].q.weight is last.functions[0].q.weight) == (functions == 1)
    assert (first.residuals[1].norm.gain is last.residuals[1].norm.gain) == (norms == 2)

    def origin(name: str) -> str:
        """The shared model's parameter behind one of the free model's."""
        for group, owners in (("functions", functions), ("residuals", norms // 2)):
            if owners == 1 and name.startswith(f"tower.{group}."):
                return f"tower.{group}.0." + name.split(".", 3)[3]
        return name

    state = shared.state_dict()
    free.load_state_dict({name: state[origin(name)] for name in free.state_dict()})
    near(array(shared(TOKENS)[0]), array(free(TOKENS)[0]))
    for model in (shared, free):
        model.nll(TOKENS, TOKENS.flip(1)).sum().backward()
    summed: dict[str, Tensor] = {}
    for name, p in free.named_parameters():
        summed[origin(name)] = summed.get(origin(name), torch.zeros_like(p)) + p.grad
    assert summed.keys() == dict(shared.named_parameters()).keys()
    for name, p in shared.named_parameters():
        near(p.grad, summed[name], 1e-10)


def test_dropout_of_a_model() -> None:
    """On the embedded tokens and on every sublayer's output before it is added, in training mode alone."""
    model = model_of(small(order="f", depth=1, residual="none", norm="none"), dropout=0.5)
    plain = model(TOKENS)[0]
    near(array(plain), array(model(TOKENS)[0]))
    model.train()
    for parameter in model.tower.functions.parameters():
        parameter.data.zero_()
    model.tower.functions["0"][0].down.bias.data.fill_(1.0)
    outputs = model(TOKENS)[0]
    assert set(outputs.unique().tolist()) == {0.0, 2.0}
    bare = model_of(small(order="f", depth=1, residual="pre", norm="none", position="none"), dropout=0.5).train()
    for parameter in bare.tower.functions.parameters():
        parameter.data.zero_()
    ratio = bare(TOKENS)[0] / F.embedding(TOKENS, bare.embedding.table.weight)
    assert {round(each, 9) for each in ratio.unique().tolist()} == {0.0, 2.0}


# --- schedules


def factors(name: str, steps: int, **options: Any) -> list[float]:
    schedule = make("schedule", name, **options)
    return [schedule.factor(step, steps) for step in range(steps)]


def half_cosine(p: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * p))


SCHEDULES: dict[str, tuple[list[float], list[float]]] = {
    "constant": (factors("constant", 4), [1, 1, 1, 1]),
    "constant, warm-up of 2 steps": (factors("constant", 4, warmup=2), [0.5, 1, 1, 1]),
    "constant, warm-up of half the run": (factors("constant", 4, warmup=0.5), [0.5, 1, 1, 1]),
    "warm-up longer than the run": (factors("constant", 4, warmup=8), [0.25, 0.5, 0.75, 1]),
    "cosine": (
        factors("cosine", 5, warmup=0.0),
        [0.1 + 0.9 * half_cosine(p) for p in (0, 0.25, 0.5, 0.75, 1)],
    ),
    "cosine to zero after a warm-up": (
        factors("cosine", 7, warmup=2, final=0.0),
        [0.5, 1, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0],
    ),
    "cosine, defaults": (  # warm-up of 5 steps in 100: the peak at step 5, a half way at 52
        [make("schedule", "cosine").factor(step, 100) for step in (0, 4, 5, 52, 99)],
        [0.2, 1, 1, 0.55, 0.1],
    ),
    "linear": (factors("linear", 5, warmup=0.0), [1, 0.75, 0.5, 0.25, 0]),
    "linear to a fifth after a warm-up": (
        factors("linear", 6, warmup=2, final=0.2),
        [0.5, 1, 1, 2.2 / 3, 1.4 / 3, 0.2],
    ),
    "inverse square root": (
        factors("inverse_sqrt", 20, warmup=4)[:9] + factors("inverse_sqrt", 20, warmup=4)[15:16],
        [0.25, 0.5, 0.75, 1, *(math.sqrt(4 / s) for s in (5, 6, 7, 8, 9)), 0.5],
    ),
    "wsd": (
        factors("wsd", 10, warmup=2, decay=4),
        [0.5, 1, 1, 1, 1, 1, 1, 1 - math.sqrt(1 / 3), 1 - math.sqrt(2 / 3), 0],
    ),
    "wsd, linear to a tenth": (
        factors("wsd", 10, warmup=0.2, decay=0.3, shape="linear", final=0.1),
        [0.5, 1, 1, 1, 1, 1, 1, 1, 0.55, 0.1],
    ),
    "one step": ([x for name in ("constant", "cosine", "linear") for x in factors(name, 1, warmup=0.0)], [1, 1, 1]),
}


@pytest.mark.parametrize("case", SCHEDULES)
def test_schedule(case: str) -> None:
    found, expected = SCHEDULES[case]
    near(found, expected)


def test_inverse_sqrt_is_the_paper_s_up_to_its_peak() -> None:
    """d^-0.5 min(s^-0.5, s w^-1.5) with s from 1, over its value at s = w."""
    warm = 40
    noam = [min(s**-0.5, s * warm**-1.5) / warm**-0.5 for s in range(1, 301)]
    near(factors("inverse_sqrt", 300, warmup=warm), noam)


# --- optimizers


def descend(optimizer: torch.optim.Optimizer, w: Tensor, steps: int = 12) -> np.ndarray:
    """Steps on sum(a (w - 1)^4 + w), whose gradient changes size and sign on the way."""
    a = torch.linspace(0.1, 2, w.numel(), dtype=torch.float64).view_as(w)
    for _ in range(steps):
        optimizer.zero_grad()
        (a * (w - 1) ** 4 + w).sum().backward()
        optimizer.step()
    return w.detach().numpy()


def adam_loop(
    steps: int, lr: float, beta1: float, beta2: float, decay: float, *, decoupled: bool, rectify: bool
) -> Any:
    """Algorithm 2 of Loshchilov and Hutter, or Adam with L2, or RAdam's rectified step, in numpy."""
    w, a = np.linspace(-1, 2, 12), np.linspace(0.1, 2, 12)
    m = v = np.zeros(12)
    for t in range(1, steps + 1):
        g = 4 * a * (w - 1) ** 3 + 1
        if decoupled:
            w = w - lr * decay * w
        else:
            g = g + decay * w
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        if not rectify:
            w = w - lr * m_hat / (np.sqrt(v_hat) + 1e-8)
            continue
        limit = 2 / (1 - beta2) - 1
        rho = limit - 2 * t * beta2**t / (1 - beta2**t)
        if rho > 5:  # the paper says 4; torch takes 5, as the authors' code does
            r = math.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
            w = w - lr * r * m_hat * math.sqrt(1 - beta2**t) / (np.sqrt(v) + 1e-8)
        else:
            w = w - lr * m_hat
    return w


def sgd_loop(steps: int, lr: float, momentum: float, decay: float, nesterov: bool) -> Any:
    w, a = np.linspace(-1, 2, 12), np.linspace(0.1, 2, 12)
    v = np.zeros(12)
    for _ in range(steps):
        g = 4 * a * (w - 1) ** 3 + 1 + decay * w
        v = momentum * v + g
        w = w - lr * (g + momentum * v if nesterov else v)
    return w


OPTIMIZERS: dict[str, tuple[str, dict[str, Any], Callable[[], Any], Callable[..., torch.optim.Optimizer]]] = {
    "adamw": (
        "adamw",
        {},
        lambda: adam_loop(12, 0.01, 0.9, 0.95, 0.1, decoupled=True, rectify=False),
        lambda p: torch.optim.AdamW(p, 0.01, (0.9, 0.95), weight_decay=0.1, foreach=False),
    ),
    "adamw, other betas": (
        "adamw",
        {"beta1": 0.8, "beta2": 0.999},
        lambda: adam_loop(12, 0.01, 0.8, 0.999, 0.1, decoupled=True, rectify=False),
        lambda p: torch.optim.AdamW(p, 0.01, (0.8, 0.999), weight_decay=0.1, foreach=False),
    ),
    "adam": (
        "adam",
        {},
        lambda: adam_loop(12, 0.01, 0.9, 0.999, 0.1, decoupled=False, rectify=False),
        lambda p: torch.optim.Adam(p, 0.01, (0.9, 0.999), weight_decay=0.1, foreach=False),
    ),
    "sgd": (
        "sgd",
        {},
        lambda: sgd_loop(12, 0.01, 0.9, 0.1, False),
        lambda p: torch.optim.SGD(p, 0.01, 0.9, weight_decay=0.1, foreach=False),
    ),
    "sgd, nesterov": (
        "sgd",
        {"momentum": 0.5, "nesterov": True},
        lambda: sgd_loop(12, 0.01, 0.5, 0.1, True),
        lambda p: torch.optim.SGD(p, 0.01, 0.5, weight_decay=0.1, nesterov=True, foreach=False),
    ),
    "radam": (
        "radam",
        {},
        lambda: adam_loop(12, 0.01, 0.9, 0.999, 0.1, decoupled=True, rectify=True),
        lambda p: torch.optim.RAdam(p, 0.01, weight_decay=0.1, decoupled_weight_decay=True, foreach=False),
    ),
}


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_optimizer(case: str) -> None:
    """The published algorithm in numpy, and torch's plain loop."""
    name, options, by_hand, by_torch = OPTIMIZERS[case]
    found = []
    for build in (
        lambda p: make("optimizer", name, **options).build([{"params": p, "weight_decay": 0.1}], 0.01),
        by_torch,
    ):
        w = torch.linspace(-1, 2, 12, dtype=torch.float64).requires_grad_()
        found.append(descend(build([w]), w))
    near(found[0], by_hand(), 1e-9)  # the placement of eps
    near(found[0], found[1])


def norm_and_bias_names(model: nn.Module) -> Iterator[str]:
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            if "bias" in name or getattr(module, "component", "").startswith("norm/"):
                yield f"{prefix}.{name}"


@pytest.mark.parametrize("mixer", ["attention", "lstm", "convolution"])
def test_decay_skips_norms_and_biases(mixer: str) -> None:
    model = build_model(small(sublayers={"s": mixer}), 11, 16)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, spared = decay_groups(model, 0.3)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert {names[id(p)] for p in spared["params"]} == set(norm_and_bias_names(model))
    assert sorted(map(id, decayed["params"] + spared["params"])) == sorted(names)
    assert [group["weight_decay"] for group in decay_groups(nn.Linear(2, 2, bias=False), 0.3)] == [0.3]
