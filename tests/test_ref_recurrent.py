"""Recurrent mixers against torch.nn, loops from their equations, and how gradients fade with distance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from reference import SITE, B, T, array, context, decoded, make, near, random
from torch import Tensor, nn

from ablate import registry
from ablate.cost import count
from ablate.errors import UserError
from ablate.spec import ArchSpec, Component, parse

ALL: list[tuple[str, dict[str, Any]]] = [
    ("elman", {}),
    ("elman", {"nonlinearity": "relu"}),
    ("elman", {"nonlinearity": "sigmoid"}),
    ("gru", {}),
    ("gru", {"reset": "before"}),
    ("lstm", {}),
]


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
    "sigmoid": sigmoid,
}


def torch_s(mixer: Any, kind: type[nn.RNNBase], **how: Any) -> nn.RNNBase:
    cells = mixer.cells
    bias = len(list(cells.parameters())) == 4
    theirs = kind(12, cells.hidden_size, batch_first=True, bias=bias, dtype=torch.float64, **how)
    theirs.load_state_dict(cells.state_dict())
    return theirs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hidden", [None, 7])
@pytest.mark.parametrize(
    ("name", "options", "kind", "how"),
    [
        ("elman", {}, nn.RNN, {}),
        ("elman", {"nonlinearity": "relu"}, nn.RNN, {"nonlinearity": "relu"}),
        ("gru", {}, nn.GRU, {}),
        ("lstm", {}, nn.LSTM, {}),
    ],
)
def test_torch_s(name: str, options: dict[str, Any], kind: Any, how: Any, hidden: int | None, bias: bool) -> None:
    """With gradients; another width is mapped back."""
    mixer = make("mixer", name, replace(SITE, bias=bias), hidden=hidden, **options)
    theirs = torch_s(mixer, kind, **how)
    x, upstream = random(B, T, 12).requires_grad_(), random(B, T, 12, seed=2)
    found, expected = mixer(x, context()), theirs(x)[0]
    if hidden is not None:
        expected = mixer.out(expected)
    near(array(found), array(expected))
    one = torch.autograd.grad((found * upstream).sum(), [x, *mixer.cells.parameters()])
    two = torch.autograd.grad((expected * upstream).sum(), [x, *theirs.parameters()])
    for each, other in zip(one, two, strict=True):
        near(each, other)


def elman_loop(mixer: Any, x: np.ndarray, activation: str) -> np.ndarray:
    """h_t = act(W x_t + b + U h_{t-1} + b')."""
    w, u, b1, b2 = (array(p) for p in mixer.cells.parameters())
    h, outputs = np.zeros((len(x), len(u))), []
    for t in range(x.shape[1]):
        h = ACTIVATIONS[activation](x[:, t] @ w.T + b1 + h @ u.T + b2)
        outputs.append(h)
    return np.stack(outputs, 1)


def gru_loop(mixer: Any, x: np.ndarray, reset: str) -> np.ndarray:
    """h_t = (1 - z) n + z h_{t-1}, the reset gate before or after U_n."""
    w, u, b1, b2 = (array(p) for p in mixer.cells.parameters())
    n_hidden = u.shape[1]
    h, outputs = np.zeros((len(x), n_hidden)), []
    (w_r, w_z, w_n), (u_r, u_z, u_n) = np.split(w, 3), np.split(u, 3)
    (b_r, b_z, b_n), (c_r, c_z, c_n) = np.split(b1, 3), np.split(b2, 3)
    for t in range(x.shape[1]):
        r = sigmoid(x[:, t] @ w_r.T + b_r + h @ u_r.T + c_r)
        z = sigmoid(x[:, t] @ w_z.T + b_z + h @ u_z.T + c_z)
        inner = r * (h @ u_n.T + c_n) if reset == "after" else (r * h) @ u_n.T + c_n
        h = (1 - z) * np.tanh(x[:, t] @ w_n.T + b_n + inner) + z * h
        outputs.append(h)
    return np.stack(outputs, 1)


@pytest.mark.parametrize("hidden", [None, 7])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_elman(activation: str, hidden: int | None) -> None:
    mixer = make("mixer", "elman", SITE, nonlinearity=activation, hidden=hidden)
    x = random(B, T, 12)
    expected = elman_loop(mixer, x.numpy(), activation)
    if hidden is not None:
        expected = expected @ array(mixer.out.weight).T + array(mixer.out.bias)
    near(array(mixer(x, context())), expected)


@pytest.mark.parametrize("hidden", [None, 7])
@pytest.mark.parametrize("reset", ["after", "before"])
def test_gru(reset: str, hidden: int | None) -> None:
    mixer = make("mixer", "gru", SITE, reset=reset, hidden=hidden)
    x = random(B, T, 12)
    expected = gru_loop(mixer, x.numpy(), reset)
    if hidden is not None:
        expected = expected @ array(mixer.out.weight).T + array(mixer.out.bias)
    near(array(mixer(x, context())), expected)


def test_the_two_resets() -> None:
    """They agree where U_n is diagonal and without biases, and differ elsewhere."""
    site = replace(SITE, bias=False)
    after, before = (make("mixer", "gru", site, reset=reset) for reset in ("after", "before"))
    x = random(B, T, 12)
    assert (after(x, context()) - before(x, context())).abs().max() > 0.01
    for mixer in (after, before):
        mixer.cells.weight_hh_l0.data[24:] = torch.diag(random(12, seed=3))
    near(array(after(x, context())), array(before(x, context())))


def test_sigmoid_is_half_a_tanh() -> None:
    """sigmoid(z) = (1 + tanh(z / 2)) / 2: the sigmoid network is a tanh network of other weights."""
    one, other = make("mixer", "elman", SITE, nonlinearity="sigmoid"), make("mixer", "elman", SITE)
    w, u, b, c = one.cells.parameters()
    with torch.no_grad():  # h = (1 + k) / 2, k the tanh network's state
        for p, value in zip(other.cells.parameters(), (w / 2, u / 4, b / 2, c / 2 + u.sum(1) / 4), strict=True):
            p.copy_(value)
    x = random(B, T, 12)
    # h_0 = 0 is k_0 = -1
    k = other.cells(x, -torch.ones(1, B, 12).double())[0]
    near(array(one(x, context())), array((1 + k) / 2))


@pytest.mark.parametrize(("name", "options"), ALL)
@pytest.mark.parametrize("pieces", [[1] * T, [5, 4]])
def test_decoding(name: str, options: dict[str, Any], pieces: list[int]) -> None:
    mixer, x = make("mixer", name, SITE, hidden=7, **options), random(B, T, 12)
    near(array(decoded(mixer, x, pieces)), array(mixer(x, context())))


# --- gradients over distance


def gradients(mixer: Any, steps: int) -> list[float]:
    """|d h_last / d x_t| (Frobenius) at x = 0, for t = last, last - 1, ..."""
    x = torch.zeros(1, steps, 12, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: mixer(x, context(length=steps))[0, -1], x)
    return [jacobian[:, 0, t].norm().item() for t in reversed(range(steps))]


def set_weights(mixer: Any, w: Tensor, u: Tensor, bias: Tensor | None = None) -> None:
    with torch.no_grad():
        for p, value in zip(mixer.cells.parameters(), (w, u, bias if bias is not None else 0, 0), strict=True):
            p.copy_(torch.as_tensor(value, dtype=torch.float64))


@pytest.mark.parametrize("rho", [0.5, 1.0, 1.5])
def test_gradients_of_elman_vanish_or_explode_with_the_radius(rho: float) -> None:
    """At h = 0, tanh' = 1: U = rho times a rotation gives rho^k at distance k (Pascanu et al. 2013)."""
    mixer = make("mixer", "elman", SITE)
    rotation = torch.linalg.qr(random(12, 12))[0]
    set_weights(mixer, torch.eye(12), rho * rotation)
    near(gradients(mixer, 16), [math.sqrt(12) * rho**k for k in range(16)], 1e-9)


def test_gradients_of_sigmoid_fade_at_least_by_four() -> None:
    """sigmoid' <= 1/4: even a U of radius 1 loses three quarters a step."""
    mixer = make("mixer", "elman", SITE, nonlinearity="sigmoid")
    set_weights(mixer, torch.eye(12), torch.linalg.qr(random(12, 12))[0])
    norms = gradients(mixer, 12)
    assert all(later <= earlier / 4 + 1e-15 for earlier, later in pairwise(norms))


@pytest.mark.parametrize("forget", [0.0, 1.0, 4.0])
def test_gradients_of_lstm_fade_with_the_forget_gate(forget: float) -> None:
    """With U = 0 at x = 0: o i f^k W_g, which a forget bias keeps from fading."""
    mixer = make("mixer", "lstm", SITE)
    bias = torch.zeros(48)
    bias[12:24] = forget
    set_weights(mixer, torch.cat([torch.eye(12)] * 4), torch.zeros(48, 12), bias)
    f = 1 / (1 + math.exp(-forget))
    near(gradients(mixer, 16), [math.sqrt(12) / 4 * f**k for k in range(16)])


@pytest.mark.parametrize("reset", ["after", "before"])
@pytest.mark.parametrize("update", [0.0, 3.0])
def test_gradients_of_gru_fade_with_the_update_gate(update: float, reset: str) -> None:
    """With U = 0 at x = 0: (1 - z) z^k W_n."""
    mixer = make("mixer", "gru", SITE, reset=reset)
    bias = torch.zeros(36)
    bias[12:24] = update
    set_weights(mixer, torch.cat([torch.eye(12)] * 3), torch.zeros(36, 12), bias)
    z = 1 / (1 + math.exp(-update))
    near(gradients(mixer, 16), [math.sqrt(12) * (1 - z) * z**k for k in range(16)])


# --- counts, start, refusals


@pytest.mark.parametrize(("name", "options"), ALL)
def test_counts(name: str, options: dict[str, Any]) -> None:
    """g (dh + h^2 + 2h) parameters, 2g (dh + h^2) FLOPs a token, with g = 1, 3 or 4; 1,664 and 1,248 at 8 and 16."""
    gates = {"elman": 1, "gru": 3, "lstm": 4}[name]
    d, h = 8, 16
    part = {"name": name, "hidden": h, **options}
    mixer = make("mixer", name, replace(SITE, d_model=d), hidden=h, **options)
    found = sum(p.numel() for p in mixer.cells.parameters())
    assert found == gates * (d * h + h * h + 2 * h) == {"elman": 416, "gru": 1248, "lstm": 1664}[name]
    tree = {"d_model": d, "n_heads": 2, "depth": 1, "order": "s", "position": "none", "sublayers": {"s": part}}
    cost = count(parse(ArchSpec, tree), 13, 12)
    around = 2 * h * d + 2 * d * 13
    assert cost.flops_forward == cost.flops_algorithmic == 2 * gates * (d * h + h * h) + around
    assert cost.flops_backward == 2 * cost.flops_forward
    assert cost.cache_bytes == cost.state_bytes == 4 * h * (2 if name == "lstm" else 1)


@pytest.mark.parametrize(("name", "options"), ALL)
def test_start(name: str, options: dict[str, Any]) -> None:
    """U(+-1/sqrt(hidden))."""
    mixer = registry.make("mixer", Component(name, (("hidden", 100), *options.items())), SITE)
    for p in mixer.cells.parameters():
        assert 0.09 < p.abs().max() <= 0.1 and abs(p.std().item() / (0.1 / math.sqrt(3)) - 1) < 0.2


@pytest.mark.parametrize(("name", "options"), ALL)
def test_it_looks_back_alone(name: str, options: dict[str, Any]) -> None:
    """One direction, also where the task sees both sides: padding at a row's end moves nothing."""
    one, other = (make("mixer", name, replace(SITE, causal=causal), **options) for causal in (True, False))
    x = random(B, T, 12)
    assert torch.equal(one(x, context()), other(x, context()))


def test_refusals() -> None:
    for name, options, words in (
        ("elman", {"hidden": 0}, "mixer 'elman': hidden 0 must be at least 1"),
        ("gru", {"hidden": -1}, "mixer 'gru': hidden -1 must be at least 1"),
        ("lstm", {"hidden": 0}, "mixer 'lstm': hidden 0 must be at least 1"),
    ):
        with pytest.raises(UserError, match=words):
            make("mixer", name, SITE, **options)
    with pytest.raises(UserError, match=r"forget_bias 1 needs arch\.bias: true"):
        make("mixer", "lstm", replace(SITE, bias=False), forget_bias=1.0)
