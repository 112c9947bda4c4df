"""The Evolved Transformer's sublayers against loops over taps and heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from reference import SITE, B, T, array, context, jitter, make, near, random
from torch import Tensor

from ablate.build import build_model, build_on_meta
from ablate.contracts import Cache, Memory
from ablate.errors import UserError
from ablate.spec import ArchSpec, parse

ENCODER = {"g": "evolved_glu", "w": "evolved_encoder_conv", "f": {"name": "ffn", "activation": "relu"}}
DECODER = {"p": "evolved_parallel", "v": "evolved_decoder_conv"}
BLOCKS = {"encoder": True, "order": "pvscf", "encoder_order": "gwsf", "sublayers": {**ENCODER, **DECODER}}
TOKENS = torch.randint(0, 11, (B, T), generator=torch.Generator().manual_seed(3))


def offsets(kernel: int, causal: bool) -> list[int]:
    return list(range(1 - kernel, 1)) if causal else list(range(-(kernel // 2), kernel // 2 + 1))


def at(x_BTD: np.ndarray, t: int) -> np.ndarray:
    """The input at t, zero outside."""
    return x_BTD[:, t] if 0 <= t < x_BTD.shape[1] else np.zeros_like(x_BTD[:, 0])


def separable(module: Any, x: np.ndarray, kernel: int, causal: bool) -> np.ndarray:
    """Each channel with its own taps, then one matrix."""
    taps = array(module.taps)[:, 0]
    assert taps.shape == (x.shape[2], kernel)
    y = []
    for t in range(x.shape[1]):
        filtered = sum(at(x, t + offset) * taps[:, j] for j, offset in enumerate(offsets(kernel, causal)))
        y.append(filtered @ array(module.pointwise.weight).T + array(module.pointwise.bias))
    return np.stack(y, 1)


def filled(x: np.ndarray, width: int) -> np.ndarray:
    return np.concatenate((x, np.zeros((*x.shape[:2], width - x.shape[2]))), -1)


def normed(x: np.ndarray, norm: Any) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * array(norm.gain) + array(norm.shift)


def encoder_conv(mixer: Any, x: np.ndarray, causal: bool) -> np.ndarray:
    d = x.shape[2]
    left = np.maximum(0, x @ array(mixer.left.weight).T + array(mixer.left.bias))
    weights = array(mixer.right.weight).reshape(d // 2, 3, d)
    right = np.stack(
        [sum(at(x, t + o) @ weights[:, j].T for j, o in enumerate(offsets(3, causal))) for t in range(x.shape[1])], 1
    )
    right = np.maximum(0, right + array(mixer.right.bias))
    assert left.shape[2] == 4 * d
    hidden = normed(left + filled(right, 4 * d), mixer.norm)
    y = separable(mixer.out, hidden, 9, causal)
    assert y.shape[2] == d // 2
    return filled(y, d)


def decoder_conv(mixer: Any, x: np.ndarray, causal: bool) -> np.ndarray:
    d = x.shape[2]
    left = np.maximum(0, separable(mixer.left, x, 11, causal))
    right = separable(mixer.right, x, 7, causal)
    assert (left.shape[2], right.shape[2]) == (2 * d, d // 2)
    return separable(mixer.out, normed(left + filled(right, 2 * d), mixer.norm), 7, causal)


LOOPS: dict[str, Any] = {"evolved_encoder_conv": encoder_conv, "evolved_decoder_conv": decoder_conv}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 5, 16])
@pytest.mark.parametrize("name", LOOPS)
def test_convolutions(name: str, length: int, causal: bool) -> None:
    mixer = make("mixer", name, replace(SITE, causal=causal))
    x = random(B, length, 12)
    near(array(mixer(x, context(length=length))), LOOPS[name](mixer, x.numpy(), causal), atol=1e-11)


@pytest.mark.parametrize("name", LOOPS)
def test_convolutions_with_padding(name: str) -> None:
    mixer = make("mixer", name, replace(SITE, causal=False))
    x = random(B, T, 12)
    valid_BT = torch.arange(T)[None] < torch.tensor([[T], [4]])
    y = mixer(x, replace(context(), valid_BT=valid_BT))
    near(array(y[1:, :4]), LOOPS[name](mixer, x.numpy()[1:, :4], False), atol=1e-11)


@pytest.mark.parametrize(("name", "kept"), [("evolved_encoder_conv", (2, 8)), ("evolved_decoder_conv", (10, 6))])
def test_states(name: str, kept: tuple[int, int]) -> None:
    """10, 6 and 6 inputs back in the decoder, the first two of which are the same inputs."""
    mixer = make("mixer", name, SITE)
    cache = Cache()
    x = random(B, 16, 12)
    parts = []
    for start in range(0, 16, 3):
        piece = x[:, start : start + 3]
        ctx = replace(context(length=16), cache=cache, positions_T=torch.arange(start, start + piece.shape[1]))
        parts.append(mixer(piece, ctx))
        assert tuple(state.shape[1] for state in cache.states[0]) == kept
    near(array(torch.cat(parts, 1)), array(mixer(x, context(length=16))), atol=1e-11)


def test_odd_width() -> None:
    for name in LOOPS:
        mixer = make("mixer", name, replace(SITE, d_model=7))
        assert mixer(random(B, T, 7), context()).shape == (B, T, 7)


def test_start() -> None:
    """Filters N(0, 1/kernel)."""
    model = build_model(
        parse(ArchSpec, {"d_model": 256, "depth": 1, "sublayers": {"s": "evolved_decoder_conv"}}), 3, 8
    )
    mixer = model.tower.functions["0"][0]
    for conv, kernel in ((mixer.left, 11), (mixer.right, 7), (mixer.out, 7)):
        assert conv.taps.std().item() == pytest.approx(kernel**-0.5, rel=0.05)


def test_gate() -> None:
    channel = make("channel", "evolved_glu", SITE)
    x = random(B, T, 12).numpy()
    gate = 1 / (1 + np.exp(-(x @ array(channel.gate.weight).T + array(channel.gate.bias))))
    value = x @ array(channel.value.weight).T + array(channel.value.bias)
    near(array(channel(torch.from_numpy(x), context())), value * gate)


# --- attention with 2H heads


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("options", [{}, {"score": "dot"}])
def test_twice_the_heads(options: dict[str, Any], causal: bool) -> None:
    """Attention with 8 heads of 6."""
    mixer = make("mixer", "evolved_self", replace(SITE, causal=causal), **options)
    wide = make("mixer", "attention", replace(SITE, causal=causal, n_heads=8), **options)
    wide.load_state_dict(mixer.state_dict())
    assert mixer.q.weight.shape == (48, 12)
    x = random(B, T, 12)
    near(array(mixer(x, context())), array(wide(x, context())))
    valid_BT = torch.arange(T)[None] < torch.tensor([[T], [4]])
    padded = [each(x, replace(context(), valid_BT=valid_BT)) for each in (mixer, wide)]
    near(array(padded[0][1, :4]), array(padded[1][1, :4]))


@pytest.mark.parametrize("position", ["t5", "alibi", "rope"])
def test_positions_know_of_half_the_heads(position: str) -> None:
    """Two attentions of H heads, each with the position's heads, summed."""
    mixer = make("mixer", "evolved_self", replace(SITE, bias=False))
    y = 0
    where = make("position", position, SITE)
    x = random(B, T, 12)
    for half in (slice(0, 24), slice(24, 48)):
        one = make("mixer", "attention", replace(SITE, bias=False))
        for name in ("q", "k", "v"):
            getattr(one, name).weight.data.copy_(getattr(mixer, name).weight[half])
        one.out.weight.data.copy_(mixer.out.weight[:, half])
        y = y + array(one(x, context(where)))
    near(array(mixer(x, context(where))), y)


def test_parallel_is_a_sum() -> None:
    mixer = make("mixer", "evolved_parallel", replace(SITE, tower="decoder"))
    source = random(B, 5, 12, seed=3)
    ctx = replace(context(), memory=Memory(source, None, lambda layer: source))
    own, cross = make("mixer", "evolved_self", SITE), make("mixer", "cross", SITE)
    own.load_state_dict(mixer.own.state_dict())
    cross.load_state_dict(mixer.cross.state_dict())
    assert own.q.weight.shape == (48, 12) and cross.q.weight.shape == (24, 12)
    x = random(B, T, 12)
    near(array(mixer(x, ctx)), array(own(x, ctx) + cross(x, ctx)))


# --- blocks


def tower(**settings: Any) -> Any:
    tree = {"d_model": 12, "n_heads": 2, "depth": 2, "position": "t5", **settings}
    made = build_model(parse(ArchSpec, tree), 11, 16).double().eval()
    jitter(made, 6)
    return made


def test_encoder_decoder_decodes() -> None:
    model = tower(**BLOCKS)
    cache = Cache()
    parts = [model.log_probs(TOKENS, each, cache) for each in TOKENS.split([1, 5, 3], 1)]
    near(array(torch.cat(parts, 1)), array(model.log_probs(TOKENS, TOKENS)), atol=1e-10)


def test_decoder_without_encoder() -> None:
    """The cross items deleted: evolved_self alone, and no c. Nothing ahead is seen."""
    model = tower(order="pvsf", sublayers={"p": "evolved_self", "v": "evolved_decoder_conv"})
    cache = Cache()
    parts = [model.log_probs(each, cache) for each in TOKENS.split(2, 1)]
    full: Tensor = model.log_probs(TOKENS)
    near(array(torch.cat(parts, 1)), array(full), atol=1e-10)
    changed = TOKENS.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    difference = (model.log_probs(changed) - full).abs().amax((0, 2))
    assert difference[:5].max() < 1e-12 and difference[5:].min() > 1e-9
    with pytest.raises(UserError, match="'evolved_parallel' is for an encoder-decoder"):
        tower(order="pvsf", sublayers=DECODER)


def count(**settings: Any) -> int:
    tree = {"d_model": 768, "n_heads": 12, "norm": "none", "bias": False, "position": "none", "depth": 6, **settings}
    return sum(p.numel() for p in build_on_meta(parse(ArchSpec, tree), 32128, 512).parameters())


def test_parameters() -> None:
    """By the formulas, without norms and biases; 6 + 6 blocks have 216.09 M with one table for all embeddings."""
    d, table = 768, 32128 * 768
    block = 2 * d**2 + (4 * d**2 + 3 * d**2 // 2 + 36 * d + 2 * d**2) + 4 * d**2 + 8 * d**2
    assert count(order="gwsf", sublayers=ENCODER, depth=1) == table + block
    conv = 11 * d + 2 * d**2 + 7 * d + d**2 // 2 + 14 * d + 2 * d**2
    decoder = (8 * d**2 + 4 * d**2) + conv + 4 * d**2 + 4 * d**2 + 8 * d**2
    assert count(**BLOCKS) == 6 * (block + decoder) + table == 216_090_624
