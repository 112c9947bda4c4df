"""DeepNorm, ReZero, Fixup and the scaled residual: loops from the equations, the rezero package, identities."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import SITE, B, T, array, context, jitter, layer_norm, make, near, random
from torch import Tensor, nn

from ablate.build import build_model, build_on_meta
from ablate.components.residuals_scaled import deepnorm_constants
from ablate.contracts import Memory
from ablate.errors import UserError
from ablate.spec import ArchSpec, Component, parse

TOKENS = torch.randint(0, 11, (B, T), generator=torch.Generator().manual_seed(3))
FIXUP_PARTS = {"s": "fixup_attention", "f": "fixup_ffn"}


def arch_of(**settings: Any) -> ArchSpec:
    return parse(ArchSpec, {"d_model": 12, "n_heads": 2, "d_ff": 20, "depth": 3, **settings})


def model_of(*, jittered: bool = True, causal: bool = True, **settings: Any) -> Any:
    """A model in float64; its parameters away from zeros and ones, unless it is wanted as it starts."""
    model = build_model(arch_of(**settings), 11, 16, causal=causal, classes=5).double().eval()
    if jittered:
        jitter(model, seed=6)
    return model


# --- the update rules


def test_residuals() -> None:
    """For f(x) = x^2; four sublayers make alpha 4^(1/4)."""
    x = random(B, T, 12)

    def joined(residual: Any) -> np.ndarray:
        return array(residual(x, torch.square))

    bare = replace(SITE, norm=Component("none"))
    deepnorm, rezero, scaled = (make("residual", name, SITE) for name in ("deepnorm", "rezero", "scaled"))
    near(joined(deepnorm), layer_norm((math.sqrt(2) * x + x**2).numpy(), deepnorm.norm))
    near(joined(rezero), x.numpy() + array(rezero.scale) * layer_norm(x.numpy(), rezero.norm) ** 2)
    near(joined(scaled), (x.numpy() + layer_norm(x.numpy(), scaled.norm) ** 2) * 0.5**0.5)
    rezero, scaled, fixup = (make("residual", name, bare) for name in ("rezero", "scaled", "fixup"))
    near(joined(rezero), x + rezero.scale.item() * x**2)
    near(joined(scaled), (x + x**2) * 0.5**0.5)
    near(joined(fixup), x + fixup.scale.item() * (x + fixup.shift.item()) ** 2)
    assert [residual.needs_final_norm for residual in (deepnorm, rezero, fixup, scaled)] == [False, True, False, True]


def test_where_the_scalars_start() -> None:
    model = build_model(arch_of(residual="rezero"), 11, 16)
    assert [p.item() for name, p in model.named_parameters() if name.endswith("scale")] == [0.0] * 6
    model = build_model(arch_of(residual="fixup", norm="none", sublayers=FIXUP_PARTS), 11, 16)
    scalars = {name.split(".")[-1]: p.item() for name, p in model.named_parameters() if p.ndim == 0}
    assert scalars == {"scale": 1.0, "shift": 0.0, "before_activation": 0.0, "before_down": 0.0}
    assert sum(p.ndim == 0 for p in model.parameters()) == 3 * (2 + 1 + 2 + 2)


def test_a_scaled_residual_keeps_the_variance() -> None:
    residual = make("residual", "scaled", replace(SITE, norm=Component("none")))
    y = residual(random(100, 100, 12), lambda x: random(100, 100, 12, seed=1))
    assert abs(y.var().item() - 1) < 0.02


# --- DeepNorm


@pytest.mark.parametrize(
    ("depth", "alpha", "beta"), [(6, 1.861, 0.380), (12, 2.213, 0.319), (18, 2.449, 0.289), (100, 200**0.25, 0.188)]
)
@pytest.mark.parametrize("causal", [True, False])
def test_deepnorm_constants_of_one_tower(depth: int, alpha: float, beta: float, causal: bool) -> None:
    """(2N)^(1/4) and (8N)^(-1/4), an encoder's and a decoder's alike; the paper's numbers to their digits."""
    head = "softmax" if causal else "classify"
    arch = arch_of(residual="deepnorm", depth=depth, head=head)
    tower = build_on_meta(arch, 11, 16, causal, classes=5).tower
    assert {round(r.alpha, 3) for layer in tower.layers for r in layer.residuals} == {round(alpha, 3)}
    assert round(deepnorm_constants(tower.site)[1], 3) == beta
    near(deepnorm_constants(tower.site), ((2 * depth) ** 0.25, (8 * depth) ** -0.25))


@pytest.mark.parametrize(("N", "M"), [(6, 6), (12, 3), (2, 5)])
def test_deepnorm_constants_of_two_towers(N: int, M: int) -> None:
    model = build_on_meta(arch_of(residual="deepnorm", encoder=True, encoder_depth=N, depth=M), 11, 16)
    for side, alpha in ((model.encoder, 0.81 * (N**4 * M) ** (1 / 16)), (model.decoder, (3 * M) ** 0.25)):
        near([r.alpha for layer in side.tower.layers for r in layer.residuals], alpha)
    assert [len(side.tower.layers[0].residuals) for side in (model.encoder, model.decoder)] == [2, 3]


def test_deepnorm_with_alpha_one_is_post_norm() -> None:
    one = replace(SITE, sublayers=1)
    deepnorm, post = make("residual", "deepnorm", one), make("residual", "post", one)
    assert deepnorm.alpha == 1.0
    post.load_state_dict(deepnorm.state_dict())
    x = random(B, T, 12)
    assert torch.equal(deepnorm(x, torch.square), post(x, torch.square))
    assert sum(p.numel() for p in deepnorm.parameters()) == 24


@pytest.mark.parametrize("causal", [True, False])
def test_a_deepnorm_tower_is_torch_s_with_a_longer_stream(causal: bool) -> None:
    """N(alpha x + f(x)) layer by layer, with torch's attention, linear layers and norms."""
    model = model_of(residual="deepnorm", causal=causal, head="softmax" if causal else "classify")
    tower, alpha = model.tower, 6**0.25
    assert tower.final_norm is None
    x = random(B, T, 12)
    ctx = context(model.position)
    mask = torch.ones(T, T).triu(1).bool() if causal else None
    expected = x
    for layer in tower.layers:
        attention, ffn = layer.functions
        y = F.multi_head_attention_forward(
            *(expected.transpose(0, 1),) * 3,
            embed_dim_to_check=12,
            num_heads=2,
            in_proj_weight=torch.cat([getattr(attention, each).weight for each in "qkv"]),
            in_proj_bias=torch.cat([getattr(attention, each).bias for each in "qkv"]),
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=attention.out.weight,
            out_proj_bias=attention.out.bias,
            attn_mask=mask,
            need_weights=False,
        )[0].transpose(0, 1)
        for residual, branch in zip(layer.residuals, (y, None), strict=True):
            if branch is None:
                branch = F.linear(F.gelu(F.linear(expected, ffn.up.weight, ffn.up.bias)), ffn.down.weight)
                branch = branch + ffn.down.bias
            norm = residual.norm
            expected = F.layer_norm(alpha * expected + branch, (12,), norm.gain, norm.shift)
    near(array(tower(x, ctx)), array(expected))


# --- ReZero


def rezero_package_layers(tower: Any) -> list[nn.Module]:
    rezero = pytest.importorskip("rezero.transformer")
    layers = []
    for ours in tower.layers:
        theirs = rezero.RZTXEncoderLayer(12, 2, 20, dropout=0.0, activation="gelu").double()
        attention, ffn = ours.functions
        state = {
            "self_attn.in_proj_weight": torch.cat([getattr(attention, each).weight for each in "qkv"]),
            "self_attn.in_proj_bias": torch.cat([getattr(attention, each).bias for each in "qkv"]),
            "resweight": ours.residuals[0].scale.reshape(1),
        }
        parts = {"self_attn.out_proj": attention.out, "linear1": ffn.up, "linear2": ffn.down}
        for name, linear in parts.items():
            state |= {f"{name}.weight": linear.weight, f"{name}.bias": linear.bias}
        theirs.load_state_dict(state)
        layers.append(theirs)
    return layers


@pytest.mark.parametrize("causal", [True, False])
def test_rezero_is_its_package_s(causal: bool) -> None:
    """RZTXEncoderLayer, one scalar to a layer: outputs and the gradients of scalars, matrices and input."""
    residual = {"name": "rezero", "granularity": "layer"}
    model = model_of(residual=residual, norm="none", causal=causal, head="softmax" if causal else "classify")
    layers = rezero_package_layers(model.tower)
    x = random(B, T, 12).requires_grad_()
    x2 = x.detach().clone().requires_grad_()
    mask = nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64) if causal else None
    y2 = x2.transpose(0, 1)
    for layer in layers:
        y2 = layer(y2, src_mask=mask)
    y = model.tower(x, context(model.position))
    near(array(y), array(y2.transpose(0, 1)), 1e-11)
    weights = random(B, T, 12, seed=2)
    (y * weights).sum().backward()
    (y2.transpose(0, 1) * weights).sum().backward()
    near(x.grad, x2.grad, 1e-10)
    for ours, theirs in zip(model.tower.layers, layers, strict=True):
        near(ours.residuals[0].scale.grad, theirs.resweight.grad[0], 1e-10)
        near(ours.functions[0].out.weight.grad, theirs.self_attn.out_proj.weight.grad, 1e-10)
        near(ours.functions[1].up.weight.grad, theirs.linear1.weight.grad, 1e-10)


@pytest.mark.parametrize("granularity", ["sublayer", "layer"])
@pytest.mark.parametrize("encoder", [False, True])
def test_scalars_of_rezero(granularity: str, encoder: bool) -> None:
    """L or 2L of them, 3L in a decoder with cross-attention; held once in the state, the copy's own in a copy."""
    residual = {"name": "rezero", "granularity": granularity}
    model = model_of(residual=residual, norm="none", encoder=encoder)
    plain = model_of(residual="pre", norm="none", encoder=encoder)
    extra = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters())
    each = 1 if granularity == "layer" else 2
    assert extra == 3 * each + (3 * (1 if granularity == "layer" else 3) if encoder else 0)
    assert len(model.state_dict()) == len(list(model.parameters()))
    inputs = (TOKENS, TOKENS) if encoder else (TOKENS,)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in other.named_parameters():
            if name.endswith("scale"):
                p.zero_()
        x = random(B, T, 12)
        tower = other.decoder.tower if encoder else other.tower
        if not encoder:
            assert torch.equal(tower(x, context(other.position)), x)
        assert not torch.equal(model.log_probs(*inputs), other.log_probs(*inputs))
        model.load_state_dict(other.state_dict())
        assert torch.equal(model.log_probs(*inputs), other.log_probs(*inputs))


def test_one_scalar_to_a_layer_gets_the_gradients_of_its_sublayers() -> None:
    one = model_of(residual={"name": "rezero", "granularity": "layer"})
    free = model_of(residual="rezero")
    state = one.state_dict()
    for name in free.state_dict():
        if name not in state:
            assert name.endswith(".1.scale")
            state[name] = state[name.replace(".1.scale", ".0.scale")]
    free.load_state_dict(state)
    for model in (one, free):
        model.nll(TOKENS, TOKENS.flip(1)).sum().backward()
    near(array(one.log_probs(TOKENS)), array(free.log_probs(TOKENS)))
    for ours, theirs in zip(one.tower.layers, free.tower.layers, strict=True):
        near(ours.residuals[0].scale.grad, theirs.residuals[0].scale.grad + theirs.residuals[1].scale.grad, 1e-11)


@pytest.mark.parametrize("norm", ["none", "layernorm", "rmsnorm"])
def test_rezero_starts_as_the_identity(norm: str) -> None:
    """The tower is its final norm at most; of the layers, only the scalars get a gradient in the first step."""
    model = model_of(residual="rezero", norm=norm, jittered=False)
    x = random(B, T, 12)
    y = model.tower(x, context(model.position))
    assert torch.equal(y, model.tower.final_norm(x)) and torch.equal(y, x) == (norm == "none")
    model.nll(TOKENS, TOKENS.flip(1)).sum().backward()
    for name, p in model.tower.named_parameters():
        assert bool(p.grad.any()) == name.startswith("final_norm") or name.endswith("scale"), name
        if name.endswith("scale"):
            assert p.grad.abs() > 0


# --- Fixup


def hand(channel: Any, x: np.ndarray) -> np.ndarray:
    hidden = x @ array(channel.up.weight).T + array(channel.up.bias) + channel.before_activation.item()
    hidden = np.maximum(hidden, 0) + channel.before_down.item()
    return hidden @ array(channel.down.weight).T + array(channel.down.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_fixup_ffn(bias: bool) -> None:
    channel = make("channel", "fixup_ffn", replace(SITE, bias=bias), activation="relu")
    x = random(B, T, 12)
    near(array(channel(x, context())), hand(channel, x.numpy()), 1e-11)
    assert abs(channel.before_activation.item()) > 0.01 and abs(channel.before_down.item()) > 0.01
    plain = make("channel", "ffn", replace(SITE, bias=bias), activation="relu")
    state = channel.state_dict()
    plain.load_state_dict({name: p for name, p in state.items() if not name.startswith("before")})
    with torch.no_grad():
        channel.before_activation.zero_()
        channel.before_down.zero_()
    assert torch.equal(channel(x, context()), plain(x, context()))


@pytest.mark.parametrize("name", ["attention", "cross"])
def test_fixup_attention(name: str) -> None:
    """A scalar on the concatenated values adds W_O 1 b to the output of plain attention."""
    fixup, plain = make("mixer", f"fixup_{name}", SITE, d_value=5), make("mixer", name, SITE, d_value=5)
    plain.load_state_dict({key: p for key, p in fixup.state_dict().items() if key != "shift"})
    ctx = context()
    source = random(B, 5, 12, seed=4)
    ctx.memory = Memory(source, None, lambda layer: source)
    x = random(B, T, 12)
    expected = array(plain(x, ctx)) + fixup.shift.item() * array(fixup.out.weight).sum(1)
    assert abs(fixup.shift.item()) > 0.01
    near(array(fixup(x, ctx)), expected)


@pytest.mark.parametrize("parts", [{}, FIXUP_PARTS])
@pytest.mark.parametrize("attention", ["glorot", "he"])
def test_fixup_starts_as_the_identity(parts: dict[str, str], attention: str) -> None:
    """Every branch is exactly 0, and the model's logits are its head's on the embedded tokens."""
    init = {"name": "fixup", "attention": attention}
    model = model_of(residual="fixup", norm="none", init=init, sublayers=parts, jittered=False)
    x = random(B, T, 12)
    ctx = context(model.position)
    for layer in model.tower.layers:
        for function in layer.functions:
            assert not function(x, ctx).any()
    assert model.tower.final_norm is None and torch.equal(model.tower(x, ctx), x)
    embedded = model.position.embed(model.embedding(TOKENS), ctx)
    near(model.log_probs(TOKENS).detach(), (embedded @ model.embedding.rows().T).log_softmax(-1).detach())
    pair = {**parts, "c": "fixup_cross"} if parts else {}
    model = model_of(residual="fixup", norm="none", init=init, encoder=True, sublayers=pair, jittered=False)
    memory, _ = model.encode(TOKENS)
    near(memory.x_BSD.detach(), model.encoder.position.embed(model.decoder.embedding(TOKENS), ctx).detach())
    assert sum(p.ndim == 0 for p in model.parameters()) == (3 * (5 * 2 + 2 * 1 + 1 + 2 * 2) if parts else 3 * 10)


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm", {"name": "batchnorm", "train_stats_leak": True}])
def test_fixup_refuses_norms(norm: Any) -> None:
    for settings in ({"residual": "fixup"}, {"init": "fixup"}):
        for build in (build_model, build_on_meta):
            with pytest.raises(UserError, match=r"set arch\.norm to none"):
                build(arch_of(norm=norm, **settings), 11, 16)


def test_fixup_refuses_folded_queries() -> None:
    parts = {"s": {"name": "attention", "score": "dot"}}
    with pytest.raises(UserError, match="contradicts score 'dot'"):
        build_model(arch_of(init="fixup", residual="fixup", norm="none", sublayers=parts), 11, 16)


# --- another implementation of the sandwich's norms


def test_sandwich_is_x_transformers() -> None:
    """Encoder(sandwich_norm=True): norms without a shift around every branch, and a last one; their gains are
    stored less one, their softmax is in float32 unless replaced."""
    x_transformers = pytest.importorskip("x_transformers")
    norm = {"name": "layernorm", "shift": False}
    model = model_of(residual="sandwich", norm=norm, bias=False, causal=False, head="classify", position="none")
    theirs = x_transformers.Encoder(
        dim=12, depth=3, heads=2, attn_dim_head=6, ff_mult=20 / 12, ff_no_bias=True, sandwich_norm=True
    ).double()
    state: dict[str, Tensor] = {"final_norm.gamma": model.tower.final_norm.gain - 1}
    for index, (layer, place) in enumerate((layer, place) for layer in model.tower.layers for place in (0, 1)):
        function, residual = layer.functions[place], layer.residuals[place]
        here = f"layers.{index}"
        state |= {f"{here}.0.{i}.gamma": norm.gain - 1 for i, norm in enumerate((residual.before, residual.after))}
        names = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out": "out"} if place == 0 else {}
        names = names or {"ff.0.0": "up", "ff.2": "down"}
        state |= {f"{here}.1.{name}.weight": getattr(function, own).weight for name, own in names.items()}
    theirs.load_state_dict(state)
    for module in theirs.modules():
        if hasattr(module, "attn_fn"):
            module.attn_fn = functools.partial(F.softmax, dim=-1)
    x = random(B, T, 12)
    near(array(model.tower(x, context(model.position))), array(theirs(x)), 1e-10)
