"""Convolutional mixers against loops, F.conv1d, and what they reduce to. In float64 and to rounding."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import SITE, B, T, array, context, make, near, random
from torch import Tensor

from ablate import registry
from ablate.build import build_model
from ablate.contracts import Cache, Context
from ablate.cost import count
from ablate.errors import UserError
from ablate.spec import ArchSpec, Component, parse

KERNELS = [1, 2, 3, 4, 7, 20]  # 20 is longer than the sequence
BOTH = ("lightweight_conv", "dynamic_conv")
GROUP = 3  # channels of a head: 12 / 4


def ahead_of(kernel: int, causal: bool) -> int:
    """How far the window reaches forward: an even one looks one step further back."""
    return 0 if causal else (kernel - 1) // 2


def gated(mixer: Any, x: Tensor) -> Tensor:
    """The values first, the gate second."""
    values, gate = mixer.gated(x).split(12, -1)
    return values * torch.sigmoid(gate)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
def test_lightweight_conv(kernel: int, causal: bool) -> None:
    """F.conv1d with a group for each channel; channels 0-2 have the first head's weights, 3-5 the second's..."""
    mixer = make("mixer", "lightweight_conv", replace(SITE, causal=causal), kernel=kernel)
    x, weight = random(B, T, 12).requires_grad_(), random(B, T, 12, seed=2)
    found = mixer(x, context())
    rows = torch.stack([mixer.weight[channel // GROUP].softmax(0) for channel in range(12)])
    a = gated(mixer, x)
    conv = F.conv1d(F.pad(a.mT, (kernel - 1, kernel - 1)), rows[:, None], groups=12)  # all places that overlap
    start = ahead_of(kernel, causal)
    expected = mixer.out(conv[..., start : start + T].mT)
    near(array(found), array(expected))
    wanted = [x, mixer.weight, mixer.gated.weight]
    pairs = (torch.autograd.grad((y * weight).sum(), wanted) for y in (found, expected))
    for one, other in zip(*pairs, strict=True):
        near(one, other)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", BOTH)
def test_loop(name: str, kernel: int, causal: bool) -> None:
    """y_{t,c} = sum_j softmax(.)_j a_{t - (K-1) + j + ahead, c}; inputs that do not exist keep their share."""
    mixer = make("mixer", name, replace(SITE, causal=causal), kernel=kernel)
    x = random(B, T, 12)
    a = array(gated(mixer, x))
    y = np.zeros((B, T, 12))
    for b, t, c in np.ndindex(B, T, 12):
        head = c * 4 // 12
        logits = array(mixer.weight)[head] if name == "lightweight_conv" else None
        if logits is None:
            logits = (array(mixer.query.weight) @ a[b, t]).reshape(4, kernel)[head]
        shares = np.exp(logits) / np.exp(logits).sum()
        for j in range(kernel):
            s = t - (kernel - 1) + j + ahead_of(kernel, causal)
            if 0 <= s < T:
                y[b, t, c] += shares[j] * a[b, s, c]
    near(array(mixer(x, context())), y @ array(mixer.out.weight).T + array(mixer.out.bias))


@pytest.mark.parametrize("kernel", [1, 3, 4])
def test_dynamic_conv_is_an_unfolded_einsum(kernel: int) -> None:
    """With its gradients."""
    mixer = make("mixer", "dynamic_conv", SITE, kernel=kernel)
    x, weight = random(B, T, 12).requires_grad_(), random(B, T, 12, seed=2)
    a = gated(mixer, x)
    windows_BTDJ = F.pad(a, (0, 0, kernel - 1, 0)).unfold(1, kernel, 1)
    shares_BTHJ = (a @ mixer.query.weight.T).reshape(B, T, 4, kernel).softmax(-1)
    y = torch.einsum("bthrj,bthj->bthr", windows_BTDJ.reshape(B, T, 4, GROUP, kernel), shares_BTHJ)
    found, expected = mixer(x, context()), mixer.out(y.reshape(B, T, 12))
    near(array(found), array(expected))
    wanted = [x, mixer.query.weight, mixer.gated.weight, mixer.out.weight]
    pairs = (torch.autograd.grad((y * weight).sum(), wanted) for y in (found, expected))
    for one, other in zip(*pairs, strict=True):
        near(one, other)


def test_gradcheck_of_dynamic_conv() -> None:
    mixer = make("mixer", "dynamic_conv", replace(SITE, d_model=4, n_heads=2), kernel=3)
    parameters = dict(mixer.named_parameters())

    def run(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(mixer, given, (x, context(length=4)))

    assert torch.autograd.gradcheck(run, (random(1, 4, 4).requires_grad_(), *parameters.values()))


def test_a_window_of_one_is_a_gated_linear_unit() -> None:
    x = random(B, T, 12)
    for name in BOTH:
        mixer = make("mixer", name, SITE, kernel=1)
        near(array(mixer(x, context())), array(mixer.out(F.glu(mixer.gated(x), -1))))


def test_dynamic_conv_without_queries_is_a_moving_average() -> None:
    mixer = make("mixer", "dynamic_conv", SITE, kernel=4)
    mixer.query.weight.data.zero_()
    x = random(B, T, 12)
    mean = F.avg_pool1d(F.pad(gated(mixer, x).mT, (3, 0)), 4, stride=1).mT
    near(array(mixer(x, context())), array(mixer.out(mean)))


def test_lightweight_is_dynamic_with_the_same_weights_everywhere() -> None:
    """Where a is the same at every step, W_Q a is one set of logits."""
    dynamic, light = (make("mixer", name, SITE, kernel=5) for name in reversed(BOTH))
    light.gated.load_state_dict(dynamic.gated.state_dict())
    light.out.load_state_dict(dynamic.out.state_dict())
    x = random(1, 1, 12).expand(B, T, 12)
    light.weight.data = dynamic.query(gated(dynamic, x)[0, 0]).view(4, 5).detach()
    near(array(light(x, context())), array(dynamic(x, context())))


@pytest.mark.parametrize("name", BOTH)
def test_weight_dropout(name: str) -> None:
    """Normalised weights are dropped or doubled, in training alone."""
    mixer = make("mixer", name, SITE, kernel=5, weight_dropout=0.5)
    logits = random(4, 5)
    assert torch.equal(mixer.normalise(logits), logits.softmax(-1))
    mixer.train()
    ratio = mixer.normalise(random(40, 50)) / random(40, 50).softmax(-1)
    assert {round(each, 9) for each in ratio.unique().tolist()} == {0.0, 2.0} and 0.45 < (
        ratio == 0
    ).double().mean() < 0.55
    defaults = registry.find("mixer", name).defaults
    assert (defaults["kernel"], defaults["weight_dropout"]) == (7, 0.0)


@pytest.mark.parametrize("name", [*BOTH, "gated_conv", "bytenet", "convolution"])
def test_padding_is_zero_before_the_convolution(name: str) -> None:
    """Also where biases would make something of zeros: the last valid position sees as if the row ended."""
    mixer = make("mixer", name, replace(SITE, causal=False), kernel=5)
    x = random(B, T, 12)
    ctx = context()
    ctx.valid_BT = torch.arange(T)[None] < torch.tensor([[6], [T]])
    padded = mixer(x, ctx)
    near(array(padded[0, :6]), array(mixer(x[:1, :6], context(length=6))[0]))
    near(array(padded[1]), array(mixer(x[1:], context())[0]))


def test_start_of_the_lightweight_weights() -> None:
    mixer = registry.make(
        "mixer", Component("lightweight_conv", (("kernel", 31),)), replace(SITE, d_model=64, n_heads=32)
    )
    bound = math.sqrt(6 / (32 + 31))
    assert mixer.weight.shape == (32, 31) and 0.98 * bound < mixer.weight.abs().max() <= bound
    assert abs(mixer.weight.std() / (bound / math.sqrt(3)) - 1) < 0.1


COUNTS = {"lightweight_conv": 3 * 144 + 4 * 7, "dynamic_conv": 3 * 144 + 12 * 4 * 7, "gated_conv": 2 * 3 * 144}
COUNTS |= {"bytenet": 144 + 3 * 36 + 2 * 12, "convolution": 3 * 144}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters(name: str) -> None:
    mixer = make("mixer", name, replace(SITE, bias=False))
    assert sum(p.numel() for p in mixer.parameters()) == COUNTS[name]


@pytest.mark.parametrize(
    ("name", "forward"),
    [
        ("lightweight_conv", 6 * 256 + 2 * 7 * 16),
        ("dynamic_conv", 6 * 256 + 2 * 16 * 4 * 7 + 2 * 7 * 16),
        ("gated_conv", 4 * 3 * 256),
        ("bytenet", 2 * 256 + 2 * 3 * 64),
    ],
)
def test_flops(name: str, forward: int) -> None:
    """Per token, whatever the length: 6d^2 + 2Kd, 2dHK more for made weights; 2K d 2d. Backward twice that."""
    for length in (12, 20):
        tree = {"d_model": 16, "n_heads": 4, "depth": 1, "order": "s", "position": "none", "sublayers": {"s": name}}
        cost = count(parse(ArchSpec, tree), 13, length)
        head = 2 * 16 * 13
        assert cost.flops_forward == cost.flops_algorithmic == forward + head
        assert cost.flops_backward == pytest.approx(2 * (forward + head))


def test_cache_is_the_last_inputs() -> None:
    """kernel - 1 outputs of the gate, of d_model each, however long the sequence."""
    for name in BOTH:
        mixer, cache = make("mixer", name, SITE, kernel=5), Cache()
        x = random(B, T, 12)
        mixer(x, Context(None, torch.arange(T), cache))  # type: ignore[arg-type]
        near(array(cache.states[0]), array(gated(mixer, x)[:, -4:]))


@pytest.mark.parametrize(
    ("name", "site", "options", "words"),
    [
        ("lightweight_conv", replace(SITE, n_heads=5), {}, "d_model 12 is not a multiple of n_heads 5"),
        ("dynamic_conv", SITE, {"kernel": 0}, "mixer 'dynamic_conv': kernel 0 must be at least 1"),
        ("dynamic_conv", SITE, {"weight_dropout": 2.0}, "weight_dropout 2 must be from 0 to 1"),
        ("gated_conv", SITE, {"kernel": 0}, "mixer 'gated_conv': kernel 0 must be at least 1"),
        ("bytenet", SITE, {"cycle": 0}, "mixer 'bytenet': cycle 0 must be at least 1"),
        ("convolution", SITE, {"dilation": 0}, "mixer 'convolution': dilation 0 must be at least 1"),
    ],
)
def test_refusals(name: str, site: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make("mixer", name, site, **options)


# --- gated convolutions and ByteNet


def conv1d(x: Tensor, weight: Tensor, bias: Tensor, kernel: int, dilation: int, causal: bool) -> Tensor:
    """F.conv1d with a matrix on concatenated taps, oldest first."""
    reach, ahead = (kernel - 1) * dilation, ahead_of(kernel, causal) * dilation
    taps = weight.unflatten(1, (kernel, -1)).permute(0, 2, 1)
    return F.conv1d(F.pad(x.mT, (reach - ahead, ahead)), taps, bias, dilation=dilation).mT


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("options", [{}, {"kernel": 1}, {"kernel": 4}, {"weight_norm": True}])
def test_gated_conv(options: dict[str, Any], causal: bool) -> None:
    """(X * W + b) sigmoid(X * V + c) as two convolutions, with gradients; weight norm by torch's own."""
    mixer = make("mixer", "gated_conv", replace(SITE, causal=causal), **options)
    x, upstream = random(B, T, 12).requires_grad_(), random(B, T, 12, seed=2)
    weight, kernel = mixer.taps.weight, options.get("kernel", 3)
    if mixer.length is not None:
        weight = torch._weight_norm(weight, mixer.length[:, None], 0)
    values, gate = (
        conv1d(x, w, b, kernel, 1, causal) for w, b in zip(weight.split(12), mixer.taps.bias.split(12), strict=True)
    )
    expected, found = values * gate.sigmoid(), mixer(x, context())
    near(array(found), array(expected))
    pairs = (torch.autograd.grad((y * upstream).sum(), [x, *mixer.parameters()]) for y in (found, expected))
    for one, other in zip(*pairs, strict=True):
        near(one, other)


@pytest.mark.parametrize("weight_norm", [False, True])
def test_start_of_gated_conv(weight_norm: bool) -> None:
    """N(0, 4 / (kernel d)) under `lecun`; weight norm changes nothing at first."""
    tree = {"d_model": 64, "n_heads": 2, "depth": 1, "order": "s", "init": "lecun"}
    part = {"name": "gated_conv", "weight_norm": weight_norm}
    mixer = build_model(parse(ArchSpec, {**tree, "sublayers": {"s": part}}), 11, 16).tower.functions["0"][0]
    expected = math.sqrt(4 / (3 * 64))
    assert abs(mixer.taps.weight.std().item() / expected - 1) < 5 / math.sqrt(2 * 128 * 192)
    if weight_norm:
        near(array(mixer.length), array(mixer.taps.weight.norm(dim=1)))
        x = torch.randn(1, T, 64)
        plain = F.glu(mixer.taps(mixer.window.taps(x, context())), -1)
        near(array(mixer(x, context())), array(plain), 1e-5)  # float32


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("layer", [0, 1, 2, 4, 5, 11])
def test_bytenet(layer: int, causal: bool) -> None:
    """Dilations 1, 2, 4, 8, 16, 1, ... by layer."""
    site = replace(SITE, layer=layer, causal=causal)
    mixer = make("mixer", "bytenet", site)
    dilation = [1, 2, 4, 8, 16][layer % 5]
    x, upstream = random(B, T, 12).requires_grad_(), random(B, T, 12, seed=2)

    def norm(y: Tensor, layernorm: Any) -> Tensor:
        return F.layer_norm(y, (6,), layernorm.gain, layernorm.shift, 1e-5)

    y = F.relu(norm(F.linear(F.relu(x), mixer.narrow.weight, mixer.narrow.bias), mixer.before))
    y = F.relu(norm(conv1d(y, mixer.taps.weight, mixer.taps.bias, 3, dilation, causal), mixer.after))
    expected, found = F.linear(y, mixer.widen.weight, mixer.widen.bias), mixer(x, context())
    near(array(found), array(expected))
    pairs = (torch.autograd.grad((y * upstream).sum(), [x, *mixer.parameters()]) for y in (found, expected))
    for one, other in zip(*pairs, strict=True):
        near(one, other)


def test_bytenet_s_cycle_and_kernel() -> None:
    x = random(B, T, 12)
    one = make("mixer", "bytenet", replace(SITE, layer=3), cycle=3)
    other = make("mixer", "bytenet", SITE)
    near(array(one(x, context())), array(other(x, context())))
    wide = make("mixer", "bytenet", replace(SITE, layer=2), kernel=2)
    changed = x.clone()
    changed[:, 0] += 1
    moved = (wide(changed, context()) - wide(x, context())).abs().amax((0, 2)) > 0
    assert moved.tolist() == [t in (0, 4) for t in range(T)]


def test_lightweight_filters_of_every_channel() -> None:
    """As many heads as channels, by another name."""
    site = replace(SITE, n_heads=SITE.d_model)
    ours, heads = (
        make("mixer", "lightweight_conv", at, **how) for at, how in ((SITE, {"filters": "channels"}), (site, {}))
    )
    ours.load_state_dict(heads.state_dict())
    near(array(ours(random(B, T, 12), context())), array(heads(random(B, T, 12), context())))


def test_lightweight_pointwise_matrix() -> None:
    """Between convolution and W_out: two matrices that could be one. At width 768 its layer is the mesh code's."""
    two, one = (make("mixer", "lightweight_conv", SITE, pointwise=each) for each in (True, False))
    x = random(B, T, 12)
    with torch.no_grad():
        for name in ("gated", "out"):
            getattr(one, name).load_state_dict(getattr(two, name).state_dict())
        one.weight.copy_(two.weight)
        one.out.weight.copy_(two.out.weight @ two.pointwise.weight)
        one.out.bias.copy_(two.out.bias + two.out.weight @ two.pointwise.bias)
    near(array(two(x, context())), array(one(x, context())), 1e-11)
    d = 768
    with torch.device("meta"):
        site = replace(SITE, d_model=d, n_heads=12, d_head=64, bias=False)
        layer = make("mixer", "lightweight_conv", site, kernel=9, filters="channels", pointwise=True)
    assert sum(p.numel() for p in layer.parameters()) == 4 * d * d + 9 * d + d
