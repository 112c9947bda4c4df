"""Images: the patch embedding is a convolution, and a ViT of these slots is transformers' on copied weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import EXACT, Weights, error, layer, linear, norm, our_model, same_model, with_weights
from reference import SITE, array, make, near, random
from torch import Tensor

from ablate.build import build_on_meta
from ablate.cost import count
from ablate.errors import UserError
from ablate.spec import ArchSpec, parse

IMAGE = (2, 8, 12)
VIT: dict[str, Any] = {
    "embedding": {"name": "patch", "patch": 4},
    "position": "learned",
    "norm": {"name": "layernorm", "eps": 1e-12},
    "residual": "pre",
    "head": {"name": "classify", "pool": "first"},
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_are_a_convolution(patch: int, first: bool) -> None:
    site = replace(SITE, image=IMAGE, max_len=97, causal=False)
    embedding = make("embedding", "patch", site, patch=patch, first=first)
    images = random(3, *IMAGE)
    kernel = embedding.map.weight.view(12, 2, patch, patch)
    expected = F.conv2d(images, kernel, embedding.map.bias, stride=patch).flatten(2).transpose(1, 2)
    found = embedding(images)
    if first:
        near(array(found[:, 0]), array(embedding.first.expand(3, 12)))
        found = found[:, 1:]
    assert found.shape == (3, 96 // patch**2, 12)
    near(array(found), array(expected))


def test_patch_starts_and_counts() -> None:
    site = replace(SITE, image=IMAGE, bias=False, causal=False)
    embedding = make("embedding", "patch", site)
    assert {name: p.shape for name, p in embedding.named_parameters()} == {"map.weight": (12, 32), "first": (12,)}
    model = our_model({"d_model": 12, "n_heads": 3, "depth": 1, **VIT}, 1, 7, causal=False, classes=3, image=IMAGE)
    model.embedding.reset_parameters()
    assert not model.embedding.first.any()
    assert model.embedding.rows() is None


@pytest.mark.parametrize(
    ("options", "site", "message"),
    [
        ({"patch": 5}, {"image": IMAGE}, "patch 5 must divide the image's 8 by 12 pixels"),
        ({"patch": 8}, {"image": IMAGE}, "patch 8 must divide"),
        ({"patch": 0}, {"image": IMAGE}, "patch 0 must be at least 1"),
        ({"patch": 2}, {"image": IMAGE}, "makes 25 tokens of an image, more than the model's 16"),
        ({}, {}, "is for images"),
    ],
)
def test_patch_refusals(options: dict[str, Any], site: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make("embedding", "patch", replace(SITE, causal=False, **site), **options)


def test_an_image_has_no_tokens_to_predict() -> None:
    with pytest.raises(UserError, match="reads images, and head 'softmax' says something of every token"):
        our_model({"d_model": 12, "n_heads": 3, **VIT, "head": "softmax"}, 5, 7, image=IMAGE, classes=3)


def names(ours: Weights) -> dict[str, Tensor]:
    theirs = {
        "vit.embeddings.cls_token": ours["embedding.first"][None, None],
        "vit.embeddings.position_embeddings": ours["position.table"][None],
        "vit.embeddings.patch_embeddings.projection.weight": ours["embedding.map.weight"].view(24, 2, 4, 4),
        "vit.embeddings.patch_embeddings.projection.bias": ours["embedding.map.bias"],
        **norm(ours, "vit.layernorm", "tower.final_norm"),
        **linear(ours, "classifier", "head.project"),
    }
    linears = {f"attention.{each}_proj": f"0.{each}" for each in "qkv"}
    linears |= {"attention.o_proj": "0.out", "mlp.fc1": "1.up", "mlp.fc2": "1.down"}
    norms = {"layernorm_before": "0", "layernorm_after": "1"}
    for i in range(2):
        theirs |= layer(ours, f"vit.layers.{i}", "tower", i, linears, norms)
    return theirs


def test_vit() -> None:
    transformers = pytest.importorskip("transformers")
    image = (2, 12, 12)  # square, as theirs must be
    sizes = {"d_model": 24, "n_heads": 3, "d_ff": 40, "depth": 2}
    ours = our_model({**sizes, **VIT}, 1, 10, causal=False, classes=5, image=image)
    config = transformers.ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        image_size=12,
        patch_size=4,
        num_channels=2,
        num_labels=5,
        attn_implementation="sdpa",  # the eager one takes its softmax in float32
    )
    theirs = with_weights(transformers.ViTForImageClassification(config), names(dict(ours.named_parameters())))
    images, classes = random(6, *image), torch.arange(6) % 5
    logits = ours.head.logits(*ours(images)), theirs(images).logits
    same_model(ours, theirs, names, logits, ours.nll(images, classes), classes)


def test_vit_at_full_size() -> None:
    """ViT-B/16 at 224 pixels and 1000 classes: 86,567,656 parameters, 197 positions."""
    tree = {**VIT, "d_model": 768, "n_heads": 12, "depth": 12, "embedding": {"name": "patch", "patch": 16}}
    arch = parse(ArchSpec, tree)
    model = build_on_meta(arch, 1, 197, causal=False, classes=1000, image=(3, 224, 224))
    assert sum(p.numel() for p in model.parameters()) == 86_567_656
    # P^2 C d for each patch, beside what the same tower costs
    small = parse(ArchSpec, {"d_model": 24, "n_heads": 3, "depth": 1, **VIT})
    cost = count(small, 1, 10, False, classes=5, image=(2, 12, 12))
    tower = 10 * (24 * 24 * 24 + 4 * 10 * 24)
    assert cost.flops_forward == 9 * 2 * 32 * 24 + tower + 2 * 24 * 5


def test_order_comes_from_positions() -> None:
    """Without them the patches are a set: two swapped ones change nothing."""
    images = random(1, *IMAGE)
    swapped = images.clone()
    swapped[..., :4, :4], swapped[..., :4, 4:8] = images[..., :4, 4:8], images[..., :4, :4]
    for position, moves in (("none", False), ("learned", True)):
        tree = {"d_model": 12, "n_heads": 3, "depth": 1, **VIT, "position": position}
        model = our_model(tree, 1, 7, causal=False, classes=3, image=IMAGE)
        with torch.no_grad():
            difference = error(model.log_probs(swapped), model.log_probs(images))
        assert (difference > 1e-4) == moves and (moves or difference < EXACT)
