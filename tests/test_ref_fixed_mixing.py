"""Fourier transforms and matrices over time, against matrices and loops, torch.fft, transformers, conv1d."""

from __future__ import annotations

import cmath
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import SITE, TABLE, B, T, array, context, decoded, make, near, random
from torch import Tensor

from ablate import registry
from ablate.build import build_model
from ablate.cost import count
from ablate.errors import UserError
from ablate.spec import ArchSpec, Component, parse

SEES = replace(SITE, causal=False)
FIXED = ("fnet", "gmlp", "mlp_mixer")
OURS = ("fnet_causal", "gmlp_causal")


def near_gradients(found: Tensor, expected: Tensor, wanted: list[Tensor]) -> None:
    upstream = random(*found.shape, seed=2)
    pairs = (torch.autograd.grad((y * upstream).sum(), wanted) for y in (found, expected))
    for one, other in zip(*pairs, strict=True):
        near(one, other)


def small(mixer: str, **settings: Any) -> ArchSpec:
    tree = {"d_model": 16, "n_heads": 4, "d_ff": 24, "depth": 1, "order": "s", "position": "none"}
    return parse(ArchSpec, {**tree, "sublayers": {"s": mixer}, **settings})


@pytest.mark.parametrize("name", FIXED)
def test_a_causal_model_refuses_them(name: str) -> None:
    with pytest.raises(UserError, match=f"mixer '{name}' sees the future and cannot be used in a causal model"):
        build_model(small(name), 13, 12)
    assert build_model(small(name), 13, 12, causal=False) is not None


# --- Fourier transforms


def dft(n: int) -> np.ndarray:
    return np.array([[cmath.exp(-2j * math.pi * t * s / n) for s in range(n)] for t in range(n)])


@pytest.mark.parametrize("length", [1, 8, T])
def test_fnet(length: int) -> None:
    """Re(F_n x F_d) by the matrices of the definition, with its gradient, and by torch.fft."""
    mixer, ctx = make("mixer", "fnet", SEES), context(length=length)
    x = random(B, length, 12).requires_grad_()
    over_time, over_features = (torch.from_numpy(dft(n)) for n in (length, 12))
    found = mixer(x, ctx)
    expected = (over_time @ x.to(torch.complex128) @ over_features).real
    near(array(found), array(expected), 1e-11)
    near_gradients(found, torch.fft.fftn(x, dim=(1, 2)).real, [x])
    near(array(found), array(torch.fft.fftn(x, dim=(1, 2)).real))
    assert not list(mixer.parameters())


def test_fnet_is_that_of_transformers() -> None:
    """A whole layer: post-norm, the transform without a matrix after it, gelu_tanh (their `gelu_new`)."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.fnet.modeling_fnet import FNetLayer

    config = transformers.FNetConfig(
        hidden_size=12, intermediate_size=20, layer_norm_eps=1e-5, hidden_dropout_prob=0.0
    )
    theirs = FNetLayer(config).double().eval()
    settings = {"order": "sf", "residual": "post", "d_model": 12, "d_ff": 20}
    arch = small("fnet", **settings)
    arch = parse(
        ArchSpec,
        {
            **settings,
            "n_heads": 4,
            "depth": 1,
            "position": "none",
            "sublayers": {"s": "fnet", "f": {"name": "ffn", "activation": "gelu_tanh"}},
        },
    )
    model = build_model(arch, 13, 16, causal=False).double().eval()
    ffn = model.tower.functions["0"][1]
    norms = [residual.norm for residual in model.tower.residuals["0"]]
    for norm, layernorm in zip(norms, (theirs.fourier.output.LayerNorm, theirs.output.LayerNorm), strict=True):
        norm.gain.data, norm.shift.data = random(12, seed=3), random(12, seed=4)
        layernorm.load_state_dict({"weight": norm.gain, "bias": norm.shift})
    theirs.intermediate.dense.load_state_dict(ffn.up.state_dict())
    theirs.output.dense.load_state_dict(ffn.down.state_dict())
    x = random(B, T, 12)
    near(array(model.tower(x, context())), array(theirs(x)[0]))
    near(array(model.tower.functions["0"][0](x, context())), array(theirs.fourier.self(x)[0]))


def test_fnet_refuses_padding() -> None:
    ctx = context()
    ctx.valid_BT = torch.arange(T)[None] < torch.tensor([[6], [T]])
    with pytest.raises(UserError, match="mixer 'fnet' mixes padding into every position"):
        make("mixer", "fnet", SEES)(random(B, T, 12), ctx)


@pytest.mark.parametrize("length", [1, T, 16])
def test_fnet_causal(length: int) -> None:
    """Re(tril(F_n) x F_d) / sqrt(n) with n = 16, of which shorter sequences have the first rows and columns."""
    mixer = make("mixer", "fnet_causal", SITE)
    x = random(B, length, 12).requires_grad_()
    over_time = torch.from_numpy(np.tril(dft(16))[:length, :length])
    expected = (over_time @ x.to(torch.complex128) @ torch.from_numpy(dft(12))).real / 4
    found = mixer(x, context(length=length))
    near(array(found), array(expected), 4 * TABLE)
    near(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected)), 60 * TABLE)
    assert not list(mixer.parameters()) and not mixer.state_dict()


def test_fnet_causal_ends_as_fnet() -> None:
    """The last of max_len positions has no future to leave out: it is FNet's, over sqrt(n)."""
    x = random(B, 16, 12)
    ours, fnet = (
        make("mixer", name, site)(x, context(length=16))
        for name, site in zip(("fnet_causal", "fnet"), (SITE, SEES), strict=True)
    )
    near(array(ours[:, -1]), array(fnet[:, -1] / 4), 4 * TABLE)
    assert (ours - fnet / 4)[:, :-1].abs().amax((0, 2)).min() > 0.1


def test_flops_of_transforms() -> None:
    """5 (log2 n + log2 d) d per token, and the same backward; ours has products of masked matrices over time."""
    head = 2 * 16 * 13
    fnet = count(small("fnet"), 13, 8, causal=False)
    assert fnet.flops_forward == fnet.flops_algorithmic == 5 * (3 + 4) * 16 + head
    assert fnet.flops_backward == 5 * (3 + 4) * 16 + 2 * head
    ours = count(small("fnet_causal"), 13, 8)
    assert ours.flops_forward == 5 * 4 * 16 + 4 * 8 * 16 + head
    assert ours.flops_algorithmic == 5 * 4 * 16 + 4 * 4.5 * 16 + head


# --- gMLP


def gelu(x: np.ndarray) -> Any:
    return np.vectorize(lambda z: 0.5 * z * (1 + math.erf(z / math.sqrt(2))))(x)


@pytest.mark.parametrize("length", [1, T, 16])
@pytest.mark.parametrize("hidden", [None, 14])
@pytest.mark.parametrize("name", ["gmlp", "gmlp_causal"])
def test_gmlp(name: str, hidden: int | None, length: int) -> None:
    """By a loop over positions."""
    mixer = make("mixer", name, SEES if name == "gmlp" else SITE, hidden=hidden)
    half = (hidden or 20) // 2
    x = random(B, length, 12).numpy()
    u, v = np.split(gelu(x @ array(mixer.up.weight).T + array(mixer.up.bias)), 2, -1)
    v = v - v.mean(-1, keepdims=True)
    v = v / np.sqrt((v**2).mean(-1, keepdims=True) + 1e-5) * array(mixer.norm.gain) + array(mixer.norm.shift)
    gate = np.zeros((B, length, half))
    for t in range(length):
        gate[:, t] = array(mixer.shift)[t]
        for s in range(t + 1 if name == "gmlp_causal" else length):
            gate[:, t] += array(mixer.over_time)[t, s] * v[:, s]
    expected = (u * gate) @ array(mixer.down.weight).T + array(mixer.down.bias)
    near(array(mixer(torch.from_numpy(x), context(length=length))), expected, 1e-11)


@pytest.mark.parametrize("name", ["gmlp", "gmlp_causal"])
def test_gmlp_is_pointwise_without_its_matrix(name: str) -> None:
    """W_s = 0, b = 1: W_o u, a feed-forward network with half of W."""
    mixer = make("mixer", name, SEES if name == "gmlp" else SITE)
    mixer.over_time.data.zero_()
    mixer.shift.data.fill_(1.0)
    x = random(B, T, 12)
    ffn = make("channel", "ffn", replace(SITE, d_ff=10))
    ffn.down.load_state_dict(mixer.down.state_dict())
    ffn.up.load_state_dict({name: value[:10] for name, value in mixer.up.state_dict().items()})
    near(array(mixer(x, context())), array(ffn(x, context())))


def test_start_of_gmlp() -> None:
    """W_s near zero, b one: nearly that feed-forward network."""
    for name, std in (("gmlp", 1e-3), ("gmlp_causal", 0.1)):
        site = replace(SITE, max_len=64)
        mixer = registry.make("mixer", Component(name, (("std", std),)), site)
        assert abs(mixer.over_time.std().item() / std - 1) < 5 / math.sqrt(2 * 64**2) and (mixer.shift == 1).all()
        assert mixer.over_time.abs().max() < 6 * std
        assert sum(p.numel() for p in mixer.parameters()) == 12 * 20 + 20 + 2 * 10 + 64 * 64 + 64 + 10 * 12 + 12
    assert registry.find("mixer", "gmlp").defaults == {"hidden": None, "std": 1e-3}


def test_flops_of_gmlp() -> None:
    """2 d f + 2 n f/2 + 2 d f/2 per token; ours needs the part of the products that is not masked."""
    linear, head = 2 * 16 * 24 + 2 * 16 * 12, 2 * 16 * 13
    for name, needed in (("gmlp", 8.0), ("gmlp_causal", 4.5)):
        cost = count(small(name), 13, 8, causal=name in OURS)
        assert cost.flops_forward == linear + 2 * 8 * 12 + head
        assert cost.flops_algorithmic == linear + 2 * needed * 12 + head


@pytest.mark.parametrize(
    ("site", "options", "words"),
    [
        (SITE, {"hidden": 7}, r"mixer 'gmlp_causal': hidden \(d_ff unless given\) 7 must be even"),
        (replace(SITE, d_ff=21), {}, r"hidden \(d_ff unless given\) 21 must be even"),
        (SITE, {"hidden": 0}, "hidden 0 must be at least 2"),
        (SITE, {"std": -1.0}, "std -1 must be at least 0"),
    ],
)
def test_refusals_of_gmlp(site: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make("mixer", "gmlp_causal", site, **options)


# --- MLP-Mixer


@pytest.mark.parametrize("hidden", [None, 5])
def test_mlp_mixer_is_a_convolution_over_features(hidden: int | None) -> None:
    """Positions are the channels of a conv1d of width 1: with gradients."""
    mixer = make("mixer", "mlp_mixer", SEES, hidden=hidden)
    assert mixer.up.weight.shape == (hidden or 6, 16)
    x = random(B, 16, 12).requires_grad_()
    found = mixer(x, context(length=16))
    middle = F.gelu(F.conv1d(x, mixer.up.weight[..., None], mixer.up.bias))
    expected = F.conv1d(middle, mixer.down.weight[..., None], mixer.down.bias)
    near(array(found), array(expected))
    near_gradients(found, expected, [x, *mixer.parameters()])


@pytest.mark.parametrize("name", ["mlp_mixer", "gmlp"])
def test_shorter_sequences_and_padding(name: str) -> None:
    """A sequence of T tokens is the beginning of one that is zero (or padding) from there on."""
    mixer = make("mixer", name, SEES)
    x = random(B, 16, 12)
    short = mixer(x[:, :T], context())
    ctx = context(length=16)
    ctx.valid_BT = (torch.arange(16) < T)[None].expand(B, -1)
    near(array(mixer(x, ctx)[:, :T]), array(short))
    if name == "mlp_mixer":
        zeros = torch.cat((x[:, :T], torch.zeros(B, 16 - T, 12).double()), 1)
        near(array(mixer(zeros, context(length=16))[:, :T]), array(short))


def test_counts_of_mlp_mixer() -> None:
    """2 T S weights, and S + T biases, which embed no position of the stream; 4 S d per token."""
    mixer = make("mixer", "mlp_mixer", SEES)
    assert sum(p.numel() for p in mixer.parameters()) == 2 * 16 * 6 + 6 + 16
    assert not [
        name for name, _ in make("mixer", "mlp_mixer", replace(SEES, bias=False)).named_parameters() if "bias" in name
    ]
    cost = count(small("mlp_mixer"), 13, 8, causal=False)
    assert cost.flops_forward == 4 * 8 * 16 + 2 * 16 * 13
    with pytest.raises(UserError, match="mixer 'mlp_mixer': hidden 0 must be at least 1"):
        make("mixer", "mlp_mixer", SEES, hidden=0)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("pieces", [[1] * T, [5, 4], [2, 7]])
def test_decoding(name: str, pieces: list[int]) -> None:
    mixer, x = make("mixer", name, SITE), random(B, T, 12)
    near(array(decoded(mixer, x, pieces)), array(mixer(x, context())))
