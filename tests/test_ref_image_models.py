"""Whole models that classify images, against the same networks written out with torch.nn."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import SITE, array, make, near, random
from torch import Tensor, nn

from ablate import registry
from ablate.build import build_model
from ablate.cost import count
from ablate.errors import UserError
from ablate.spec import ArchSpec, Component, parse

IMAGE = (2, 8, 6)
IMAGES = replace(SITE, causal=False, classes=5, image=IMAGE, d_ff=7, n_layers=3)
B = 4


def images(seed: int = 0) -> Tensor:
    return random(B, *IMAGE, seed=seed)


def same(model: Any, theirs: nn.Sequential, pairs: list[tuple[Any, Any]]) -> None:
    """Outputs and gradients, with our parameters copied."""
    theirs.double()
    for ours, other in pairs:
        other.load_state_dict(ours.state_dict())
    x, y = (images().requires_grad_() for _ in range(2))
    classes = torch.tensor([0, 4, 2, 2])
    logits = theirs(y)
    near(array(model.log_probs(x)), array(logits.log_softmax(-1)))
    near(array(model.nll(x, classes)), array(F.cross_entropy(logits, classes, reduction="none")))
    model.nll(x, classes).sum().backward()
    F.cross_entropy(logits, classes, reduction="sum").backward()
    near(array(x.grad), array(y.grad))
    assert sum(len(list(ours.parameters())) for ours, _ in pairs) == len(list(model.parameters()))
    for ours, other in pairs:
        for one, two in zip(ours.parameters(), other.parameters(), strict=True):
            near(array(one.grad), array(two.grad))


@pytest.mark.parametrize(("name", "made"), [("relu", nn.ReLU), ("tanh", nn.Tanh), ("gelu", nn.GELU)])
def test_mlp(name: str, made: type[nn.Module]) -> None:
    model = make("model", "mlp", IMAGES, activation=name)
    sizes = [96, 7, 7, 7]
    layers = [nn.Linear(one, two) for one, two in pairwise(sizes)]
    output = nn.Linear(7, 5)
    theirs = nn.Sequential(nn.Flatten(), *(each for layer in layers for each in (layer, made())), output)
    same(model, theirs, [*zip(model.hidden, layers, strict=True), (model.output, output)])


def test_lenet() -> None:
    """8 x 6 pixels, 4 x 3, 2 x 1, 1 x 1: the last convolution's side of one pixel is left as it is."""
    model = make("model", "lenet", IMAGES, maps=[3, 4, 6], units=[9, 8], kernel=3)
    maps, units = [2, 3, 4, 6], [6, 9, 8]
    convolutions = [nn.Conv2d(one, two, 3, padding=1) for one, two in pairwise(maps)]
    pools = [nn.MaxPool2d(2), nn.MaxPool2d(2), nn.MaxPool2d((2, 1))]
    layers = [nn.Linear(one, two) for one, two in pairwise(units)]
    output = nn.Linear(8, 5)
    theirs = nn.Sequential(
        *(each for one, pool in zip(convolutions, pools, strict=True) for each in (one, nn.ReLU(), pool)),
        nn.Flatten(),
        *(each for layer in layers for each in (layer, nn.ReLU())),
        output,
    )
    pairs = [*zip(model.convolutions, convolutions, strict=True), *zip(model.hidden, layers, strict=True)]
    same(model, theirs, [*pairs, (model.output, output)])


def parameters(model: str, image: tuple[int, int, int], **sizes: int) -> int:
    arch = parse(ArchSpec, {"model": model, **sizes})
    return count(arch, 0, 1, False, classes=10, image=image).params_total


def test_sizes() -> None:
    """LeNet-5 with the paper's maps and units on 28 x 28 digits; its 7 x 7 pixels before the units, not 5 x 5."""
    expected = (25 + 1) * 6 + (25 * 6 + 1) * 16 + (16 * 7 * 7 + 1) * 120 + 121 * 84 + 85 * 10
    assert parameters("lenet", (1, 28, 28)) == expected
    assert parameters("mlp", (1, 28, 28), depth=2, d_ff=300) == 785 * 300 + 301 * 300 + 301 * 10


def test_lenet_costs_what_its_products_cost() -> None:
    arch = parse(ArchSpec, {"model": "lenet"})
    cost = count(arch, 0, 1, False, classes=10, image=(1, 28, 28))
    products = 28 * 28 * 25 * 6 + 14 * 14 * 25 * 6 * 16 + 784 * 120 + 120 * 84 + 84 * 10
    assert cost.flops_forward == 2 * products


def test_dropout_is_the_trainings() -> None:
    for name in ("mlp", "lenet"):
        model = make("model", name, replace(IMAGES, dropout=0.5))
        assert torch.equal(model.log_probs(images()), model.log_probs(images()))
        model.train()
        assert not torch.equal(model.log_probs(images()), model.log_probs(images()))


def test_label_smoothing_is_the_heads() -> None:
    """(1 - e) nll + e mean_c(-log p(c)), the plain nll beside it."""
    arch = parse(ArchSpec, {"model": "mlp", "d_ff": 7})
    model = build_model(arch, 0, 1, causal=False, classes=5, image=IMAGE).double().eval()
    classes = torch.tensor([0, 4, 2, 2])
    loss, nll, aux = model.objective(images(), classes, label_smoothing=0.2, z_loss=0.0)
    expected = F.cross_entropy(model.logits(images()), classes, reduction="none", label_smoothing=0.2)
    near(array(loss), array(expected))
    near(array(nll), array(model.nll(images(), classes)))
    assert aux == {}


@pytest.mark.parametrize(
    ("name", "site", "options", "message"),
    [
        ("mlp", replace(IMAGES, image=None), {}, "'mlp' says the class of an image: its task must have images"),
        ("lenet", replace(IMAGES, classes=0), {}, "'lenet' says the class of an image"),
        ("lenet", IMAGES, {"kernel": 4}, "kernel 4 must be odd"),
        ("lenet", IMAGES, {"kernel": 0}, "kernel 0 must be at least 1"),
        ("lenet", IMAGES, {"maps": []}, "must name a number at least"),
        ("lenet", IMAGES, {"maps": [4, 0]}, "maps 0 must be at least 1"),
        ("lenet", IMAGES, {"units": [0]}, "units 0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(name: str, site: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.make("model", Component(name, tuple(options.items())), site)
