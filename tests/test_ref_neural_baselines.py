"""Neural models of words from before attention: NNLM, CBOW, Kim's classifier."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import SITE, array, make, near
from torch import Tensor, nn

from ablate import registry
from ablate.build import build_model
from ablate.contracts import Cache
from ablate.cost import count
from ablate.errors import MaxLenError, UserError
from ablate.spec import ArchSpec, Component, parse

V, D, FF, B, T = SITE.vocab, SITE.d_model, SITE.d_ff, 3, 9
BOTH = replace(SITE, causal=False)
CLASSES = replace(SITE, causal=False, classes=4)


def tokens(seed: int = 0, length: int = T, rows: int = B) -> Tensor:
    return torch.randint(0, V, (rows, length), generator=torch.Generator().manual_seed(seed))


def weigh(y: Tensor) -> Tensor:
    return (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)).sum()


def gradients(y: Tensor, model: nn.Module) -> list[Tensor]:
    """Of a weighted sum of y, for every parameter of the model."""
    return list(torch.autograd.grad(weigh(y), list(model.parameters())))


def same(model: Any, ours: Tensor, theirs: Tensor, atol: float = 1e-12) -> None:
    """Outputs and the gradients of all parameters."""
    near(array(ours), array(theirs), atol)
    for one, other in zip(gradients(ours, model), gradients(theirs, model), strict=True):
        near(one, other, 1e-11)


def in_pieces(model: Any, read: Tensor, sizes: list[int], *source: Tensor) -> Tensor:
    cache = Cache()
    return torch.cat([model.log_probs(*source, part, cache=cache) for part in read.split(sizes, 1)], 1)


# ---- Bengio et al. 2003


@pytest.mark.parametrize("context", [1, 4, 12])
@pytest.mark.parametrize("direct", [False, True])
def test_nnlm_is_a_convolution_over_embeddings(context: int, direct: bool) -> None:
    """tanh(conv1d(K = N)) with the taps turned round: the most recent word comes first in x."""
    model = make("model", "nnlm", SITE, context=context, direct=direct)
    x_BDT = F.pad(model.table(tokens()).mT, (context - 1, 0))

    def taps(weight: Tensor) -> Tensor:
        return weight.view(-1, context, D).flip(1).mT

    y = F.linear(
        F.conv1d(x_BDT, taps(model.hidden.weight), model.hidden.bias).tanh().mT,
        model.output.weight,
        model.output.bias,
    )
    if direct:
        y = y + F.conv1d(x_BDT, taps(model.direct.weight)).mT
    same(model, model.log_probs(tokens()), y.log_softmax(-1))


def test_nnlm_is_an_unfold() -> None:
    """nn.Unfold over the embeddings as an image one feature high, equation 1 on its columns."""
    model = make("model", "nnlm", SITE, context=3, direct=True)
    x_BDT = F.pad(model.table(tokens()).mT, (2, 0))
    columns = nn.Unfold((1, 3))(x_BDT[:, :, None])  # (B, D 3, T), taps from old to new
    x_BTX = columns.unflatten(1, (D, 3)).flip(2).transpose(1, 2).flatten(1, 2).mT
    hidden = (x_BTX @ model.hidden.weight.T + model.hidden.bias).tanh()
    y = model.output.bias + x_BTX @ model.direct.weight.T + hidden @ model.output.weight.T
    same(model, model.log_probs(tokens()), y.log_softmax(-1))


@pytest.mark.parametrize("direct", [False, True])
def test_nnlm_has_the_papers_parameters(direct: bool) -> None:
    """V m + h (N m + 1) + V (h + 1), and V N m of direct connections, N the words that are read."""
    made = make("model", "nnlm", SITE, context=4, direct=direct)
    expected = V * D + FF * (4 * D + 1) + V * (FF + 1) + direct * V * 4 * D
    assert sum(each.numel() for each in made.parameters()) == expected


def test_nnlm_forgets_what_lies_behind_its_context() -> None:
    model = make("model", "nnlm", SITE, context=3)
    other = tokens()
    other[:, 2] = (other[:, 2] + 1) % V
    moved = (model.log_probs(other) - model.log_probs(tokens())).abs().amax((0, 2)) > 0
    assert moved.tolist() == [False, False, True, True, True, False, False, False, False]


# ---- Mikolov et al. 2013


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("window", [1, 3, 20, None])
def test_cbow_is_an_embedding_bag(window: int | None, tied: bool) -> None:
    """nn.EmbeddingBag(mode="mean") over the last words."""
    model = make("model", "cbow", SITE, window=window, tied=tied)
    read = tokens()
    output = model.table.weight if tied else model.output.weight
    rows = []
    for row in read:
        bags = [row[max(0, t + 1 - (window or T)) : t + 1] for t in range(T)]
        offsets = torch.tensor([0, *np.cumsum([len(each) for each in bags])[:-1]])
        rows.append(F.linear(F.embedding_bag(torch.cat(bags), model.table.weight, offsets, mode="mean"), output))
    same(model, model.log_probs(read), torch.stack(rows).log_softmax(-1))


@pytest.mark.parametrize("lengths", [(9, 9, 9), (9, 5, 1)])
@pytest.mark.parametrize("window", [1, 2, 20])
def test_symmetric_cbow_is_an_embedding_bag_without_its_middle(window: int, lengths: tuple[int, ...]) -> None:
    model = make("model", "cbow_symmetric", BOTH, window=window)
    read = tokens()
    valid_BT = torch.arange(T) < torch.tensor(lengths)[:, None]
    ours = model.log_probs(read, valid_BT=valid_BT)
    for row, (words, length) in enumerate(zip(read, lengths, strict=True)):
        for t in range(length):
            bag = torch.cat((words[max(0, t - window) : t], words[t + 1 : min(length, t + 1 + window)]))
            mean = nn.EmbeddingBag.from_pretrained(model.table.weight, mode="mean")(bag, torch.tensor([0]))[0]
            near(array(ours[row, t]), array((model.output.weight @ mean).log_softmax(-1)))
    if min(lengths) == T:
        near(array(model.log_probs(read)), array(ours))


def test_symmetric_cbow_does_not_look_at_the_word_it_predicts() -> None:
    model = make("model", "cbow_symmetric", BOTH, window=2)
    other = tokens()
    other[:, 4] = (other[:, 4] + 1) % V
    moved = (model.log_probs(other) - model.log_probs(tokens())).abs().amax((0, 2)) > 0
    assert moved.tolist() == [False, False, True, True, False, True, True, False, False]


def test_symmetric_cbow_is_not_causal() -> None:
    with pytest.raises(UserError, match="sees the future and cannot be used in a causal model"):
        make("model", "cbow_symmetric", SITE)
    with pytest.raises(UserError, match="cannot go on step by step"):
        make("model", "cbow_symmetric", BOTH).log_probs(tokens(), cache=Cache())


# ---- what language models share


@pytest.mark.parametrize("sizes", [[1] * 9, [5, 4], [2, 6, 1]])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nnlm", {"context": 1}),
        ("nnlm", {"context": 4}),
        ("cbow", {"window": 1}),
        ("cbow", {"window": 4}),
        ("cbow", {"window": None}),
        ("cbow", {"window": 20, "tied": True}),
    ],
)
def test_decoding_in_pieces(name: str, options: dict[str, Any], sizes: list[int]) -> None:
    model = make("model", name, SITE, **options)
    near(array(in_pieces(model, tokens(), sizes)), array(model.log_probs(tokens())))


@pytest.mark.parametrize("name", ["nnlm", "cbow"])
def test_losses(name: str) -> None:
    """nll is that of the probabilities; smoothing is torch's; z-loss squares the logarithm of the normaliser."""
    model = make("model", name, SITE)
    y = tokens(1)
    log_p, nll = model.log_probs(tokens()), model.nll(tokens(), y)
    near(array(nll), array(-log_p.gather(-1, y[..., None])[..., 0]))
    loss, plain, aux = model.objective(tokens(), y, label_smoothing=0.2, z_loss=0.0)
    smooth = F.cross_entropy(model.logits(tokens()).flatten(0, 1), y.flatten(), reduction="none", label_smoothing=0.2)
    near(array(loss.flatten()), array(smooth))
    near(array(plain), array(nll))
    assert aux == {}
    loss, plain, _ = model.objective(tokens(), y, label_smoothing=0.0, z_loss=0.5)
    near(array(loss - plain), array(0.5 * model.logits(tokens()).logsumexp(-1).square()))
    loss, plain, _ = model.objective(tokens(), y, label_smoothing=0.0, z_loss=0.0)
    assert torch.equal(loss, nll) and torch.equal(plain, nll)


@pytest.mark.parametrize(("name", "site"), [("nnlm", SITE), ("cbow", SITE), ("cbow_symmetric", BOTH)])
def test_dropout_is_the_trainings(name: str, site: Any) -> None:
    model = make("model", name, replace(site, dropout=0.5))
    quiet = model.log_probs(tokens())
    assert torch.equal(quiet, model.log_probs(tokens()))
    model.train()
    assert not torch.equal(model.log_probs(tokens()), model.log_probs(tokens()))


# ---- Kim 2014


def kim(site: Any = CLASSES, **options: Any) -> Any:
    return make("model", "kim_cnn", site, **{"maps": 6, **options})


@pytest.mark.parametrize("widths", [[3, 4, 5], [1], [2, 9]])
def test_kim_is_conv1d_and_amax(widths: list[int]) -> None:
    model = kim(widths=tuple(widths))
    x_BDT = model.table(tokens()).mT
    z = [
        F.conv1d(x_BDT, each.weight.view(6, D, width), each.bias).relu().amax(-1)
        for width, each in zip(widths, model.filters, strict=True)
    ]
    y = F.linear(torch.cat(z, -1), model.output.weight, model.output.bias).log_softmax(-1)
    assert y.shape == (B, 4)
    same(model, model.log_probs(tokens()), y)
    near(array(model.nll(tokens(), torch.tensor([0, 3, 1]))), array(-y[range(3), [0, 3, 1]]))


def test_kim_sees_no_padding() -> None:
    """A padded row gives what the row alone gives: one shorter than a filter is filled up with zeros."""
    model = kim()
    lengths = (9, 4, 2)
    valid_BT = torch.arange(T) < torch.tensor(lengths)[:, None]
    padded = model.log_probs(tokens(), valid_BT)
    assert torch.equal(padded, model.log_probs(torch.where(valid_BT, tokens(), tokens(5)), valid_BT))
    for row, length in enumerate(lengths):
        near(array(model.log_probs(tokens()[row : row + 1, :length])), array(padded[row : row + 1]))
    filled = F.conv1d(F.pad(model.table(tokens()[2:, :2]).mT, (0, 3)), model.filters[2].weight.view(6, D, 5))
    alone = model.strongest(
        F.pad(model.table(tokens()[2:, :2]), (0, 0, 0, 3)), model.filters[2], 5, torch.tensor([2])
    )
    near(array(alone), array((filled[..., 0] + model.filters[2].bias).relu()))


def test_rows_longer_than_the_norm_are_brought_back() -> None:
    model = kim()
    with torch.no_grad():
        model.output.weight.mul_(100)
        model.output.weight[1] /= 1e5
    before = model.output.weight.detach().clone()
    model.after_step(0.5)
    near(array(model.output.weight.norm(dim=1)[[0, 2, 3]]), [3.0] * 3, 1e-6)  # torch divides by norm + 1e-7
    assert torch.equal(model.output.weight[1], before[1])
    near(array(F.cosine_similarity(model.output.weight, before)), [1.0] * 4)
    free = kim(max_norm=None)
    before = free.output.weight.detach().clone() * 100
    free.output.weight.data.copy_(before)
    free.after_step(0.5)
    assert torch.equal(free.output.weight, before)


def test_kim_counts() -> None:
    """sum_k (k d + 1) maps + C (3 maps + 1) + V d; the products of a row of T words."""
    assert sum(each.numel() for each in kim().parameters()) == V * D + 6 * (12 * D + 3) + 4 * (18 + 1)
    arch = parse(ArchSpec, {"d_model": 8, "n_heads": 2, "model": "kim_cnn"})
    cost = count(arch, V, 10, causal=False, classes=4)
    assert cost.params_total == V * 8 + 100 * (12 * 8 + 3) + 4 * 301
    assert cost.flops_forward * 10 == 2 * 100 * 8 * (3 * 8 + 4 * 7 + 5 * 6) + 2 * 300 * 4


def test_kim_drops_out_its_features() -> None:
    model = kim(replace(CLASSES, dropout=0.5)).train()
    seen = []
    model.output.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    model.log_probs(tokens())
    model.eval().log_probs(tokens())
    dropped, whole = seen
    assert 0 < (dropped == 0).sum() - (whole == 0).sum() < whole.numel()
    near(array(dropped[dropped != 0]), array(2 * whole[dropped != 0]))


# ---- refusals


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nnlm", {"context": 0}, "model 'nnlm': context 0 must be at least 1"),
        ("cbow", {"window": 0}, "model 'cbow': window 0 must be at least 1"),
        ("cbow_symmetric", {"window": 0}, "model 'cbow_symmetric': window 0 must be at least 1"),
        ("kim_cnn", {"widths": (3, 3)}, "widths .3, 3. must be different numbers"),
        ("kim_cnn", {"widths": ()}, "at least one"),
        ("kim_cnn", {"widths": (3, 0)}, "widths 0 must be at least 1"),
        ("kim_cnn", {"maps": 0}, "maps 0 must be at least 1"),
        ("kim_cnn", {"max_norm": 0.0}, "max_norm 0 must be positive, or null"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.make("model", Component(name, tuple(options.items())), CLASSES)


def test_a_classifier_needs_classes() -> None:
    with pytest.raises(UserError, match="its task must have classes"):
        registry.make("model", Component("kim_cnn"), BOTH)


@pytest.mark.parametrize(
    ("name", "site"), [("nnlm", SITE), ("cbow", SITE), ("cbow_symmetric", BOTH), ("kim_cnn", CLASSES)]
)
def test_longer_sequences_are_refused(name: str, site: Any) -> None:
    model = make("model", name, site)
    assert model.log_probs(tokens(length=16)).isfinite().all()
    assert model.log_probs(tokens(length=1)).isfinite().all()
    with pytest.raises(MaxLenError, match="17 tokens is longer than the model's 16"):
        model.log_probs(tokens(length=17))


@pytest.mark.parametrize("name", ["nnlm", "cbow"])
def test_the_architectures_init_sets_the_matrices(name: str) -> None:
    """N(0, 1/d_in) of `lecun`: the deviation of some thousands of weights is within 5 % of it."""
    arch = parse(ArchSpec, {"d_model": 64, "n_heads": 2, "d_ff": 64, "model": name})
    model = build_model(arch, 100, 16)
    assert model.output.weight.std().item() == pytest.approx(1 / math.sqrt(64), rel=0.05)
    assert model.table.weight.std().item() == pytest.approx(1 / math.sqrt(64), rel=0.05)
