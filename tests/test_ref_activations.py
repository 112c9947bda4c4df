"""Feed-forward networks against torch.nn.functional, transformers and x-transformers, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import SITE, B, T, array, context, make, near, random
from torch import Tensor, nn

from ablate.cost import params_only
from ablate.overlays import overlays
from ablate.spec import ArchSpec, parse

BARE = replace(SITE, bias=False)
TORCH: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": lambda x: F.gelu(x, approximate="none"),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "swish": F.silu,
    "elu": lambda x: F.elu(x, alpha=1.0),
    "selu": F.selu,
    "sigmoid": F.sigmoid,
    "softplus": lambda x: F.softplus(x, beta=1, threshold=20),
    "identity": nn.Identity(),
}
THEIRS = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new", "swish": "silu", "sigmoid": "sigmoid"}
NARANG = ("relu", "gelu", "swish", "elu", "selu", "sigmoid", "softplus", "glu", "reglu", "geglu", "swiglu", "liglu")


def gradients(y: Tensor, wrt: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad((y * random(*y.shape, seed=8)).sum(), wrt))


def same(ours: nn.Module, theirs: Any, pairs: list[tuple[Tensor, Tensor]], atol: float = 1e-11) -> None:
    """Outputs, and gradients of the input and of every parameter, once theirs has our values."""
    with torch.no_grad():
        for mine, other in pairs:
            other.copy_(mine)
    assert len(pairs) == len(list(ours.parameters()))
    x = random(B, T, 12, scale=3.0).requires_grad_()
    y, expected = ours(x, context()), theirs(x)
    near(array(y), array(expected), atol)
    found = gradients(y, [x, *(mine for mine, _ in pairs)])
    for one, other in zip(found, gradients(expected, [x, *(other for _, other in pairs)]), strict=True):
        near(array(one), array(other), 10 * atol)


def linear_pairs(ours: Any, theirs: Any, names: dict[str, str]) -> list[tuple[Tensor, Tensor]]:
    """Our parameters and theirs, by the names of the matrices."""
    return [
        (getattr(getattr(ours, mine), part), getattr(theirs.get_submodule(other), part))
        for mine, other in names.items()
        for part in ("weight", "bias")
        if getattr(getattr(ours, mine), part) is not None
    ]


@pytest.mark.parametrize("activation", TORCH)
def test_ffn_is_torch_s(activation: str) -> None:
    ours = make("channel", "ffn", SITE, activation=activation)
    act = TORCH[activation]

    class Theirs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(12, 20).double(), nn.Linear(20, 12).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.two(act(self.one(x)))

    theirs = Theirs()
    same(ours, theirs, linear_pairs(ours, theirs, {"up": "one", "down": "two"}))


@pytest.mark.parametrize("activation", TORCH)
def test_glu_is_torch_s(activation: str) -> None:
    ours = make("channel", "glu", SITE, activation=activation)
    act = TORCH[activation]

    class Theirs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.value = nn.Linear(12, 13).double(), nn.Linear(12, 13).double()
            self.out = nn.Linear(13, 12).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.out(act(self.gate(x)) * self.value(x))

    theirs = Theirs()
    same(ours, theirs, linear_pairs(ours, theirs, {"gate": "gate", "up": "value", "down": "out"}))


# --- transformers and x-transformers


@pytest.mark.parametrize(
    ("activation", "gated"),
    [(name, gated) for name in THEIRS for gated in (False, True) if (name, gated) != ("gelu", True)],
)
def test_t5(activation: str, gated: bool) -> None:
    """T5's ffn, plain (v1.0, ReLU) and gated (v1.1, `gated-gelu`, which is the tanh approximation)."""
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    feed = ("gated-" if gated else "") + THEIRS[activation]
    config = pytest.importorskip("transformers").T5Config(
        d_model=12, d_ff=13 if gated else 20, dropout_rate=0.0, feed_forward_proj=feed
    )
    ours = make("channel", "glu" if gated else "ffn", BARE, activation=activation)
    theirs = (t5.T5DenseGatedActDense if gated else t5.T5DenseActDense)(config).double()
    names = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if gated else {"up": "wi", "down": "wo"}
    same(ours, theirs, linear_pairs(ours, theirs, names))


def test_t5_s_gated_gelu_is_the_tanh_approximation() -> None:
    """By the name that its checkpoints carry."""
    transformers = pytest.importorskip("transformers")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    config = transformers.T5Config(d_model=12, d_ff=13, dropout_rate=0.0, feed_forward_proj="gated-gelu")
    ours = make("channel", "glu", BARE, activation="gelu_tanh")
    theirs = t5.T5DenseGatedActDense(config).double()
    same(ours, theirs, linear_pairs(ours, theirs, {"gate": "wi_0", "up": "wi_1", "down": "wo"}))


@pytest.mark.parametrize("bias", [False, True])
def test_llama(bias: bool) -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = pytest.importorskip("transformers").LlamaConfig(
        hidden_size=12, intermediate_size=20, mlp_bias=bias, num_attention_heads=4
    )
    ours = make("channel", "glu", replace(SITE, bias=bias), activation="swish", hidden="full")
    theirs = llama.LlamaMLP(config).double()
    same(ours, theirs, linear_pairs(ours, theirs, {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}))


@pytest.mark.parametrize("activation", ["swish", "gelu"])
def test_x_transformers(activation: str) -> None:
    """The value in the first half of its projection, the gate in the second; biases on it even with `no_bias`."""
    x_transformers = pytest.importorskip("x_transformers.x_transformers")
    ours = make("channel", "glu", SITE, activation=activation, hidden="full")
    theirs = x_transformers.FeedForward(12, mult=20 / 12, glu=True, swish=activation == "swish").double()
    projection, out = theirs.ff[0].proj, theirs.ff[2]
    assert projection.weight.shape == (40, 12) and out.weight.shape == (12, 20)
    with torch.no_grad():
        projection.weight.copy_(torch.cat((ours.up.weight, ours.gate.weight)))
        projection.bias.copy_(torch.cat((ours.up.bias, ours.gate.bias)))
        out.load_state_dict(ours.down.state_dict())
    x = random(B, T, 12).requires_grad_()
    y, expected = ours(x, context()), theirs(x)
    near(array(y), array(expected))
    found = gradients(y, [x, ours.up.weight, ours.gate.weight, ours.up.bias, ours.gate.bias, ours.down.weight])
    theirs_x, weight, bias, down = gradients(expected, [x, projection.weight, projection.bias, out.weight])
    for one, other in zip(found, (theirs_x, *weight.split(20), *bias.split(20), down), strict=True):
        near(array(one), array(other), 1e-11)


# --- identities


@pytest.mark.parametrize("hidden", ["two_thirds", "multiple_of_8", "full"])
def test_liglu_with_a_gate_of_one_is_a_linear_ffn(hidden: str) -> None:
    """W2 ((Wg x + bg) * (Wu x)) with Wg x + bg = 1."""
    gated = make("channel", "glu", SITE, activation="identity", hidden=hidden)
    gated.gate.weight.data.zero_()
    gated.gate.bias.data.fill_(1.0)
    plain = make("channel", "ffn", replace(SITE, d_ff=gated.up.out_features), activation="identity")
    plain.up.load_state_dict(gated.up.state_dict())
    plain.down.load_state_dict(gated.down.state_dict())
    x = random(B, T, 12)
    near(array(gated(x, context())), array(plain(x, context())))
    near(array(plain(x, context())), array(plain.down(plain.up(x))))


def test_swish_and_sigmoid_gates() -> None:
    """swish(x) = x sigmoid(x): a swish gate is a sigmoid gate times the gate's own input."""
    swish, sigmoid = (make("channel", "glu", SITE, activation=name) for name in ("swish", "sigmoid"))
    x = random(B, T, 12)
    expected = sigmoid.down(torch.sigmoid(swish.gate(x)) * swish.gate(x) * swish.up(x))
    near(array(swish(x, context())), array(expected))


# --- widths and rows


@pytest.mark.parametrize(("d_ff", "width"), [(3072, 2048), (96, 64), (100, 72), (512, 344), (20, 16), (2, 8), (1, 8)])
def test_width_of_a_multiple_of_8(d_ff: int, width: int) -> None:
    """Two thirds, rounded down to a whole number, then up to a multiple of 8."""
    channel = make("channel", "glu", replace(SITE, d_ff=d_ff), hidden="multiple_of_8")
    assert channel.gate.weight.shape == channel.up.weight.shape == (width, 12)


@pytest.mark.parametrize("d_ff", [96, 100, 512])
@pytest.mark.parametrize("hidden", ["two_thirds", "multiple_of_8"])
def test_the_gates_parameters(hidden: str, d_ff: int) -> None:
    """3 d f' against 2 d f: none more at multiples of 24; else at most 2 d fewer, or 21 d more."""
    sizes = {"d_model": 16, "n_heads": 4, "d_ff": d_ff, "depth": 1, "order": "f", "bias": False}
    plain, gated = (
        params_only(parse(ArchSpec, {**sizes, "sublayers": {"f": part}}), 11, 12)
        for part in ("ffn", {"name": "glu", "hidden": hidden})
    )
    low, high = (-2, 0) if hidden == "two_thirds" else (-2, 21)
    assert low * 16 <= gated - plain <= high * 16
    assert gated == plain or d_ff % 24


@pytest.mark.parametrize("row", NARANG)
def test_the_rows_of_narang_et_al_are_there(row: str) -> None:
    """By their names among the variants, each another channel, GELU as its tanh approximation."""
    settings = overlays()[row].settings["arch.sublayers.f"]
    assert settings["name"] == ("glu" if row.endswith("glu") else "ffn")
    gates = {"glu": "sigmoid", "reglu": "relu", "geglu": "gelu_tanh", "swiglu": "swish", "liglu": "identity"}
    assert settings["activation"] == {**gates, "gelu": "gelu_tanh"}.get(row, row)
