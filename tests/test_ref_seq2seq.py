"""Recurrent and convolutional encoder-decoders against torch's cells and loops over the equations."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import SITE, array, make, near, random
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from ablate import registry
from ablate.build import build_model, build_on_meta
from ablate.components.models.convs2s import NormedLinear
from ablate.components.models.words import AdditiveAttention
from ablate.contracts import Cache, Memory
from ablate.cost import count
from ablate.errors import MaxLenError, UserError
from ablate.spec import ArchSpec, Component, parse

V, D, B, S, T = SITE.vocab, SITE.d_model, 3, 7, 9
DEEP = replace(SITE, n_layers=4)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bahdanau": ("bahdanau", {}),
    "reset_after": ("bahdanau", {"reset_after": True}),
    "gnmt": ("gnmt", {}),
    "convs2s": ("convs2s", {}),
    "even": ("convs2s", {"kernel": 4}),
    "pointwise": ("convs2s", {"kernel": 1}),
}


def words(seed: int, length: int) -> Tensor:
    return torch.randint(0, V, (B, length), generator=torch.Generator().manual_seed(seed))


SOURCE, READ = words(0, S), words(1, T)
VALID = torch.arange(S) < torch.tensor([7, 4, 1])[:, None]


def same(model: Any, ours: Tensor, theirs: Tensor, atol: float = 1e-12, slope: float = 1e-10) -> None:
    """Outputs and the gradients of all parameters."""
    near(array(ours), array(theirs), atol)
    weights = random(*ours.shape, seed=3)
    sides = (torch.autograd.grad((each * weights).sum(), list(model.parameters())) for each in (ours, theirs))
    for (name, _), one, other in zip(model.named_parameters(), *sides, strict=True):
        np.testing.assert_allclose(array(one), array(other), rtol=0, atol=slope, err_msg=name)


def additive(attention: AdditiveAttention, q: Tensor, h_SD: Tensor) -> Tensor:
    """One query over one source, word by word."""
    scores = [
        attention.v.weight[0]
        @ torch.tanh(attention.query.weight @ q + attention.keys.weight @ h + attention.keys.bias)
        for h in h_SD
    ]
    total = sum(score.exp() for score in scores)
    return sum(score.exp() / total * h for score, h in zip(scores, h_SD, strict=True))  # type: ignore[return-value]


# ---- Bahdanau, Cho and Bengio 2015


def affine(layer: Any, x: Tensor) -> Tensor:
    y = layer.weight @ x
    return y if layer.bias is None else y + layer.bias


def unit_step(unit: Any, gates: Tensor, h: Tensor) -> Tensor:
    """Appendix A.1.1, with the state's matrices of each gate apart; or torch's form of it."""
    U_r, U_z, U = unit.state.weight.split(D)
    w_r, w_z, w = gates.split(D)
    if unit.reset_after:
        b_r, b_z, b = unit.state.bias.split(D)
        r, z = torch.sigmoid(w_r + U_r @ h + b_r), torch.sigmoid(w_z + U_z @ h + b_z)
        candidate = torch.tanh(w + r * (U @ h + b))
    else:
        r, z = torch.sigmoid(w_r + U_r @ h), torch.sigmoid(w_z + U_z @ h)
        candidate = torch.tanh(w + U @ (r * h))
    return (1 - z) * h + z * candidate


def slow_bahdanau(model: Any, source: Tensor, read: Tensor) -> Tensor:
    """One row, word by word."""
    x = [model.source.weight[w] for w in source]
    directions = []
    for which, order in enumerate((range(len(x)), reversed(range(len(x))))):
        h, states = x[0].new_zeros(D), {}
        for j in order:
            h = unit_step(model.units[which], affine(model.inputs[which], x[j]), h)
            states[j] = h
        directions.append(states)
    h_SD = torch.stack([torch.cat((directions[0][j], directions[1][j])) for j in range(len(x))])
    s, rows = torch.tanh(affine(model.start, directions[1][0])), []
    for w in read:
        y = model.target.weight[w]
        c = additive(model.attention, s, h_SD)
        t = affine(model.out_state, s) + affine(model.out_word, y) + affine(model.out_context, c)
        rows.append(affine(model.output, torch.maximum(t[0::2], t[1::2])))
        s = unit_step(model.unit, affine(model.word, y) + affine(model.context, c), s)
    return torch.stack(rows).log_softmax(-1)


@pytest.mark.parametrize("reset_after", [False, True])
def test_bahdanau_is_a_loop_over_words(reset_after: bool) -> None:
    model = make("model", "bahdanau", SITE, reset_after=reset_after)
    slow = torch.stack([slow_bahdanau(model, source, read) for source, read in zip(SOURCE, READ, strict=True)])
    same(model, model.log_probs(SOURCE, READ), slow)


def test_with_the_reset_after_the_product_it_is_torchs_cell() -> None:
    """Where z and 1 - z have changed places: sigmoid(-a) = 1 - sigmoid(a)."""
    model = make("model", "bahdanau", SITE, reset_after=True)
    unit, cell = model.units[0], nn.GRUCell(D, D).double()
    sign = torch.ones(3 * D, dtype=torch.float64)
    sign[D : 2 * D] = -1
    with torch.no_grad():
        cell.weight_ih.copy_(model.inputs[0].weight * sign[:, None])
        cell.weight_hh.copy_(unit.state.weight * sign[:, None])
        cell.bias_ih.copy_(model.inputs[0].bias * sign)
        cell.bias_hh.copy_(unit.state.bias * sign)
    x, h = random(5, D), random(5, D, seed=1)
    near(array(unit(model.inputs[0](x), h, *unit.weights())), array(cell(x, h)))


def test_bahdanau_attends_with_the_state_before() -> None:
    """The context of the first output comes from s_0 alone: it is the same whatever the first word."""
    model = make("model", "bahdanau", SITE)
    seen: list[Tensor] = []
    model.attention.register_forward_hook(lambda _, __, output: seen.append(output))
    for first in range(V):
        model.log_probs(SOURCE[:1], torch.tensor([[first]]))
    assert all(torch.equal(each, seen[0]) for each in seen)


def test_additive_attention_has_the_right_gradient() -> None:
    attention = AdditiveAttention(3, 2, 4, True).double()
    memory = random(1, 3, 2).requires_grad_()
    query = random(1, 2, 3, seed=1).requires_grad_()

    def read(q: Tensor, h: Tensor) -> Tensor:
        return attention(q, Memory(h, torch.tensor([[True, True, False]]), lambda layer: h), attention.keys(h))

    assert torch.autograd.gradcheck(read, (query, memory))


# ---- Wu et al. 2016


def slow_gnmt(model: Any, depth: int) -> Tensor:
    """From nn.LSTM: a bidirectional first layer, torch's cell at the bottom of the decoder, a loop over time."""
    both = nn.LSTM(D, D, batch_first=True, bidirectional=True).double()
    sides = dict(zip(("", "_reverse"), (model.right, model.left), strict=True))
    held = {f"{name}{side}": each for side, cells in sides.items() for name, each in cells.named_parameters()}
    x = torch.func.functional_call(both, held, (model.source(SOURCE),))[0]
    for layer in range(2, depth + 1):
        y = model.encoder[layer - 2](x)[0]
        x = x + y if layer >= 3 else y
    bottom = model.bottom
    h = c = x.new_zeros(B, D)
    outputs, contexts = [], []
    for t in range(T):
        a = torch.stack([additive(model.attention, h[row], x[row]) for row in range(B)])
        word = model.target(READ[:, t])
        h, c = torch.lstm_cell(torch.cat((word, a), -1), (h, c), *bottom.parameters())
        outputs.append(h)
        contexts.append(a)
    x, a = torch.stack(outputs, 1), torch.stack(contexts, 1)
    for layer in range(2, depth + 1):
        y = model.decoder[layer - 2](torch.cat((x, a), -1))[0]
        x = x + y if layer >= 3 else y
    return model.output(x).log_softmax(-1)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_gnmt_is_made_of_torchs_lstms(depth: int) -> None:
    model = make("model", "gnmt", replace(SITE, n_layers=depth))
    same(model, model.log_probs(SOURCE, READ), slow_gnmt(model, depth))


# ---- Gehring et al. 2017


def normed(layer: NormedLinear) -> Tensor:
    """The weight by torch's own weight norm."""
    plain = nn.Linear(layer.v.shape[1], layer.v.shape[0], bias=False).double()
    weight_norm(plain, dim=0)
    held = {"parametrizations.weight.original0": layer.g[:, None], "parametrizations.weight.original1": layer.v}
    eye = torch.eye(layer.v.shape[1], dtype=torch.float64)
    return torch.func.functional_call(plain, held, (eye,)).T


def conv_glu(block: Any, x_BTD: Tensor, left: int, right: int) -> Tensor:
    weight = normed(block.taps).view(2 * D, block.kernel, D).mT
    y = F.conv1d(F.pad(x_BTD.mT, (left, right)), weight, block.taps.bias).mT
    return y[..., :D] * torch.sigmoid(y[..., D:])


def slow_convs2s(model: Any, kernel: int) -> Tensor:
    def linear(layer: NormedLinear, x: Tensor) -> Tensor:
        return x @ normed(layer).T + layer.bias

    half = math.sqrt(0.5)
    e = model.source(SOURCE) + model.source_places.weight[:S]
    x = linear(model.encoder_in, e)
    for block in model.encoder:
        x = (conv_glu(block, x, (kernel - 1) // 2, kernel // 2) + x) * half
    z = linear(model.encoder_out, x)
    share = 1 / (2 * len(model.decoder))
    z = share * z + ((1 - share) * z).detach()
    g = model.target(READ) + model.target_places.weight[:T]
    x = linear(model.decoder_in, g)
    for block, query in zip(model.decoder, model.attention, strict=True):
        h = conv_glu(block, x, kernel - 1, 0)
        a = torch.einsum("btd,bsd->bts", linear(query, h) + g, z).softmax(-1)
        c = S * math.sqrt(1 / S) * torch.einsum("bts,bsd->btd", a, z + e)
        x = (h + c + x) * half
    return linear(model.output, linear(model.decoder_out, x)).log_softmax(-1)


@pytest.mark.parametrize("kernel", [1, 3, 4])
def test_convs2s_is_conv1d_with_weight_norm(kernel: int) -> None:
    """With the encoder's gradient divided by twice the number of attentions, not that of e in z + e."""
    model = make("model", "convs2s", DEEP, kernel=kernel)
    same(model, model.log_probs(SOURCE, READ), slow_convs2s(model, kernel), slope=1e-9)


def test_convs2s_starts_as_defined() -> None:
    """Deviations of thousands of weights, within 5 %: 4 (1 - p) / (K d) before a GLU, (1 - p) / d, 0.1 of tables."""
    arch = parse(ArchSpec, {"d_model": 64, "n_heads": 2, "depth": 2, "init": "gpt2", "model": "convs2s"})
    model = build_model(arch, 90, 80, dropout=0.2)
    conv, attention = model.decoder[1].taps, model.attention[0]
    assert conv.v.std().item() == pytest.approx(math.sqrt(4 * 0.8 / (3 * 64)), rel=0.05)
    assert attention.v.std().item() == pytest.approx(math.sqrt(1 / 64), rel=0.05)
    for layer in (model.output, model.encoder_in):
        assert layer.v.std().item() == pytest.approx(math.sqrt(0.8 / 64), rel=0.05)
    for table in (model.source, model.target_places):
        assert table.weight.std().item() == pytest.approx(0.1, rel=0.05)
    for layer in (module for module in model.modules() if isinstance(module, NormedLinear)):
        near(array(layer.g), array(layer.v.norm(dim=1)), 1e-6)
        assert not layer.bias.any()


# ---- what all of them share


@pytest.mark.parametrize("name", MODELS)
def test_padding_of_the_source_does_not_matter(name: str) -> None:
    model = make("model", MODELS[name][0], DEEP, **MODELS[name][1])
    padded = model.log_probs(SOURCE, READ, valid_BS=VALID)
    other = torch.where(VALID, SOURCE, words(5, S))
    near(array(model.log_probs(other, READ, valid_BS=VALID)), array(padded))
    for row, length in enumerate(VALID.sum(1).tolist()):
        alone = slice(row, row + 1)
        near(array(model.log_probs(SOURCE[alone, :length], READ[alone])), array(padded[alone]))
    whole = torch.ones_like(VALID)
    near(array(model.log_probs(SOURCE, READ, valid_BS=whole)), array(model.log_probs(SOURCE, READ)))


@pytest.mark.parametrize("sizes", [[1] * 9, [5, 4], [2, 6, 1]])
@pytest.mark.parametrize("name", MODELS)
def test_decoding_in_pieces(name: str, sizes: list[int]) -> None:
    """The source is read once: in later pieces it may be anything."""
    model = make("model", MODELS[name][0], DEEP, **MODELS[name][1])
    cache, parts = Cache(), []
    for piece, part in enumerate(READ.split(sizes, 1)):
        parts.append(model.log_probs(SOURCE if piece == 0 else words(8, S), part, cache=cache, valid_BS=VALID))
    near(array(torch.cat(parts, 1)), array(model.log_probs(SOURCE, READ, valid_BS=VALID)))
    with pytest.raises(MaxLenError, match="17 tokens"):
        model.log_probs(SOURCE, words(2, 8), cache=cache)


@pytest.mark.parametrize("name", MODELS)
def test_both_sides_have_a_longest_length(name: str) -> None:
    model = make("model", MODELS[name][0], SITE, **MODELS[name][1])
    assert model.log_probs(words(0, 16), words(1, 1)).isfinite().all()
    assert model.log_probs(words(0, 1), words(1, 16)).isfinite().all()
    for source, read in ((17, 2), (2, 17)):
        with pytest.raises(MaxLenError, match="17 tokens is longer than the model's 16"):
            model.log_probs(words(0, source), words(1, read))


@pytest.mark.parametrize("name", MODELS)
def test_losses_are_of_the_probabilities(name: str) -> None:
    model = make("model", MODELS[name][0], SITE, **MODELS[name][1])
    y, log_p = words(4, T), model.log_probs(SOURCE, READ)
    near(array(model.nll(SOURCE, READ, y)), array(-log_p.gather(-1, y[..., None])[..., 0]))
    loss, plain, aux = model.objective(SOURCE, READ, y, label_smoothing=0.1, z_loss=0.0)
    near(array(plain), array(model.nll(SOURCE, READ, y)))
    near(array(loss), array(0.9 * plain - 0.1 * log_p.mean(-1)))
    assert aux == {}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("bias", [True, False])
def test_biases_and_dropout_are_the_sites(name: str, bias: bool) -> None:
    model = make("model", MODELS[name][0], replace(SITE, bias=bias, dropout=0.3), **MODELS[name][1])
    vectors = [each for each, parameter in model.named_parameters() if "bias" in each]
    assert bool(vectors) is bias
    quiet = model.log_probs(SOURCE, READ)
    assert torch.equal(quiet, model.log_probs(SOURCE, READ)) and quiet.isfinite().all()
    model.train()
    assert not torch.equal(model.log_probs(SOURCE, READ), model.log_probs(SOURCE, READ))


@pytest.mark.parametrize("name", ["bahdanau", "reset_after"])
def test_what_is_counted_is_what_is_computed(name: str) -> None:
    """On the meta device all steps are one product: the FLOPs are those of the loop, forward and backward.

    The first steps of a loop read a state without a gradient: at most two of T steps' state products fewer.
    """
    from torch.utils.flop_counter import FlopCounterMode

    tree = {"name": MODELS[name][0], **MODELS[name][1]}
    arch = parse(ArchSpec, {"d_model": 16, "n_heads": 2, "depth": 3, "model": tree})
    cost = count(arch, V, 12)
    model, counter = build_model(arch, V, 12), FlopCounterMode(display=False)
    with counter:
        loss = model.nll(*model.example(1, 12)).mean()
        forward = counter.get_total_flops()
        loss.backward()
    assert cost.flops_forward * 12 == forward
    assert counter.get_total_flops() - forward == pytest.approx(cost.flops_backward * 12, rel=0.08)


def test_gnmt_is_counted_as_products() -> None:
    """2 (d_in + d) 4 d for each LSTM and word, the attention, the output."""
    d, L, n = 16, 3, 12
    cost = count(parse(ArchSpec, {"d_model": d, "n_heads": 2, "depth": L, "model": "gnmt"}), V, n)
    cells = 2 * (d + d) + (2 * d + d) + (d + d) + L * (2 * d + d)
    attention = d * d + d * d + n * d + n * d
    assert cost.flops_forward == 2 * (4 * d * cells + attention + d * V)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bahdanau", 2 * V * D + (2 * (3 * D * D + 3 * D + 3 * D * D)) + (D * D + D) + (D * D + 2 * D * D + D + D)
         + (3 * D * D + 3 * D + 6 * D * D + 3 * D * D) + (D * D + D + D * D + 2 * D * D) + (D // 2 * V + V)),
        ("convs2s", 2 * (V + 16) * D + 2 * 2 * (6 * D * D + 4 * D) + (4 + 2) * (D * D + 2 * D) + D * V + 2 * V),
    ],
)  # fmt: skip
def test_parameters(name: str, expected: int) -> None:
    """Every matrix of the equations; a gain and a bias for every row of those with weight norm."""
    assert sum(each.numel() for each in make("model", name, SITE).parameters()) == expected


def test_cost_knows_the_decoding_state() -> None:
    """Of bahdanau: the encoder's states and keys, which grow with the source, and s."""
    cost = count(parse(ArchSpec, {"d_model": 16, "n_heads": 2, "model": "bahdanau"}), V, 12)
    assert cost.cache_bytes == 4 * (12 * (32 + 16) + 2 * 16)
    assert cost.state_bytes == 4 * 2 * 16


def test_kernels_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="model 'convs2s': kernel 0 must be at least 1"):
        registry.make("model", Component("convs2s", (("kernel", 0),)), SITE)
    assert build_on_meta(parse(ArchSpec, {"model": "convs2s"}), V, 8).component == "model/convs2s"
