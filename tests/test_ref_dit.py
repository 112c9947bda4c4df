"""Diffusion transformers against diffusers' blocks, and what they start from."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import SITE, TABLE, array, make, near, random
from torch import Tensor, nn

from ablate import registry
from ablate.build import build_model
from ablate.components.models.dit import places
from ablate.cost import count
from ablate.errors import UserError
from ablate.spec import ArchSpec, Component, parse

D, C, B = 12, 2, 3
IMAGES = replace(SITE, n_heads=3, d_head=4, d_ff=4 * D, causal=False, classes=5, image=(C, 8, 8))
WIDE = replace(IMAGES, image=(C, 4, 8), d_head=6, d_ff=20)
TIMES, CLASSES = torch.tensor([1, 500, 999]), torch.tensor([0, 4, 2])


def image(site: Any = IMAGES, seed: int = 0) -> Tensor:
    return random(B, *site.image, seed=seed)


class Fixed(nn.Module):
    """A conditioning that is given: every block of the oracle has an embedder of its own, ours one for all."""

    def __init__(self, c_BD: Tensor):
        super().__init__()
        self.c_BD = c_BD

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.c_BD


def oracle(model: Any, c_BD: Tensor, patch: int) -> Any:
    """diffusers' model with this one's weights: (theirs, ours) in pairs for the gradients."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=4,
        in_channels=C,
        num_layers=2,
        sample_size=8,
        patch_size=patch,
        num_embeds_ada_norm=5,
        norm_eps=1e-6,  # of the second LayerNorm, 1e-5 unless said
    ).double()
    pairs: list[tuple[nn.Parameter, nn.Parameter]] = []

    def copy(one: Any, other: Any) -> None:
        for name, parameter in one.named_parameters(recurse=False):
            parameter.data.copy_(getattr(other, name).view_as(parameter))
            pairs.append((parameter, getattr(other, name)))

    copy(theirs.pos_embed.proj, model.patches)
    theirs.pos_embed.pos_embed = theirs.pos_embed.pos_embed.double()
    for one, other in zip(theirs.transformer_blocks, model.blocks, strict=True):
        one.norm1.emb = Fixed(c_BD)
        copy(one.norm1.linear, other.modulation)
        for name, ours in (("to_q", "query"), ("to_k", "key"), ("to_v", "value")):
            copy(getattr(one.attn1, name), getattr(other, ours))
        copy(one.attn1.to_out[0], other.project)
        copy(one.ff.net[0].proj, other.widen)
        copy(one.ff.net[2], other.narrow)
    copy(theirs.proj_out_1, model.modulation)
    copy(theirs.proj_out_2, model.output)
    return theirs.eval(), pairs


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_it_is_diffusers_model_under_the_same_conditioning(patch: int) -> None:
    """Outputs, and the gradients of every matrix and of the image."""
    model = make("model", "dit", IMAGES, patch=patch)
    c_BD = model.condition(TIMES, CLASSES)
    theirs, pairs = oracle(model, c_BD.detach(), patch)
    assert len({id(ours) for _, ours in pairs}) == len(list(model.parameters())) - 5  # two of time, one of classes
    x, y = (image().requires_grad_() for _ in range(2))
    ours, expected = model(x, TIMES, CLASSES), theirs(y, timestep=TIMES, class_labels=CLASSES).sample
    near(array(ours), array(expected))
    weights = random(*ours.shape, seed=3)
    (ours * weights).sum().backward()
    (expected * weights).sum().backward()
    near(array(x.grad), array(y.grad), 1e-11)
    for one, other in pairs:
        near(array(other.grad), array(one.grad).reshape(other.shape), 1e-10)


def test_the_conditioning_is_of_time_and_class() -> None:
    """MLP([cos(w t), sin(w t)]) + E[class], w_i = 10000^(-i / 128), as the original has it."""
    model = make("model", "dit", IMAGES)
    rates = 10_000.0 ** (-np.arange(128) / 128)
    angles = TIMES.numpy()[:, None] * rates
    waves = torch.from_numpy(np.concatenate((np.cos(angles), np.sin(angles)), -1))
    hidden = F.silu(waves @ model.time_in.weight.T + model.time_in.bias)
    expected = hidden @ model.time_out.weight.T + model.time_out.bias + model.classes.weight[CLASSES]
    near(array(model.condition(TIMES, CLASSES)), array(expected))
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    theirs = embeddings.get_timestep_embedding(TIMES, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    near(array(waves), array(theirs), 1e-4)  # float32 angles up to 999


def test_places_are_sines_of_column_and_row() -> None:
    """Column first, as MAE's code and diffusers have it."""
    expected = np.zeros((2, 4, D))
    for row in range(2):
        for column in range(4):
            for i in range(D // 4):
                rate = 10_000 ** (-i / (D // 4))
                for part, place in ((0, column), (D // 2, row)):
                    expected[row, column, part + i] = math.sin(place * rate)
                    expected[row, column, part + D // 4 + i] = math.cos(place * rate)
    near(array(places(2, 4, D)), expected.reshape(8, D), TABLE)
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    theirs = embeddings.get_2d_sincos_pos_embed(D, 4, base_size=4, output_type="pt")
    near(array(places(4, 4, D)), array(theirs), TABLE)


def test_patches_are_a_strided_convolution() -> None:
    """For an image that is no square; the output lies where its patch was."""
    model = make("model", "dit", WIDE)
    seen: list[Tensor] = []
    model.patches.register_forward_hook(lambda _, __, output: seen.append(output))
    y = model(image(WIDE), TIMES, CLASSES)
    expected = F.conv2d(image(WIDE), model.patches.weight.view(D, C, 2, 2), model.patches.bias, stride=2)
    near(array(seen[0]), array(expected.flatten(2).mT))
    assert y.shape == (B, C, 4, 8)
    model.output.register_forward_hook(lambda _, __, output: torch.arange(float(output.numel())).view_as(output))
    y = model(image(WIDE), TIMES, CLASSES).view(B, C, 2, 2, 4, 2)  # B, C, row, p, column, q
    expected_y = torch.arange(float(y.numel())).view(B, 2, 4, 2, 2, C).permute(0, 5, 1, 3, 2, 4)
    assert torch.equal(y, expected_y)


def fresh(**options: Any) -> Any:
    tree = {"d_model": D, "n_heads": 3, "depth": 2, "model": {"name": "dit", **options}}
    return build_model(parse(ArchSpec, tree), 11, 16, causal=False, classes=5, image=(C, 8, 8)).double().eval()


def test_blocks_start_as_the_identity_and_the_output_as_zero() -> None:
    model = fresh()
    x_BTD, c_BD = random(B, 16, D), random(B, D, seed=1)
    for block in model.blocks:
        assert torch.equal(block(x_BTD, c_BD), x_BTD)
        assert block.query.weight.any() and block.narrow.weight.any()
    assert not model(image(), TIMES, CLASSES).any()
    noise = image(seed=7)
    near(array(model.nll(image(), TIMES, CLASSES, noise)), array(noise.square().mean((1, 2, 3))))


def test_the_loss_is_the_mean_squared_error_of_the_noise() -> None:
    model = make("model", "dit", IMAGES)
    noise = image(seed=7)
    error = (model(image(), TIMES, CLASSES) - noise).square().mean((1, 2, 3))
    near(array(model.nll(image(), TIMES, CLASSES, noise)), array(error))
    loss, plain, aux = model.objective(image(), TIMES, CLASSES, noise, label_smoothing=0.0, z_loss=0.0)
    assert torch.equal(loss, plain) and loss.shape == (B,) and aux == {}
    with pytest.raises(UserError, match="'dit' has neither label smoothing nor z-loss"):
        model.objective(image(), TIMES, CLASSES, noise, label_smoothing=0.1, z_loss=0.0)


def test_classes_are_dropped_in_training_alone() -> None:
    """A tenth of them, for the class that guidance asks for; within 4 deviations of 0.1 in 4000."""
    model = make("model", "dit", IMAGES)
    times, classes = torch.zeros(4000).long(), torch.ones(4000).long()
    of_class, of_none = (model.condition(times[:1], torch.tensor([each])) for each in (1, 5))
    near(array(model.condition(times, classes)), array(of_class.expand(4000, -1)))
    torch.manual_seed(0)
    c_BD = model.train().condition(times, classes)
    dropped = (c_BD - of_none).abs().amax(-1) < 1e-12
    near(array(c_BD[~dropped]), array(of_class.expand(int((~dropped).sum()), -1)))
    assert dropped.double().mean().item() == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 4000))
    for rate, expected in ((0.0, 0.0), (1.0, 1.0)):
        other = make("model", "dit", IMAGES, class_dropout=rate).train()
        moved = (other.condition(times[:9], classes[:9]) - of_class).abs().amax(-1) > 1e-12
        assert moved.double().mean() == expected


def test_without_classes_it_is_of_the_time_alone() -> None:
    model = make("model", "dit", replace(IMAGES, classes=0))
    assert model.classes is None
    assert torch.equal(model(image(), TIMES, CLASSES), model(image(), TIMES, CLASSES + 1))
    moved = (model(image(), TIMES, CLASSES) - model(image(), TIMES + 1, CLASSES)).abs().amax((1, 2, 3))
    assert (moved > 0).all()


def test_dropout_is_the_trainings() -> None:
    model = make("model", "dit", replace(IMAGES, dropout=0.3), class_dropout=0.0)
    quiet = model(image(), TIMES, CLASSES)
    assert torch.equal(quiet, model(image(), TIMES, CLASSES))
    model.train()
    assert not torch.equal(model(image(), TIMES, CLASSES), model(image(), TIMES, CLASSES))


def test_modulation_costs_six_d_squared_a_block() -> None:
    """6 d^2 + 6 d beside attention 4 d^2 + 4 d and the MLP 8 d^2 + 5 d; products of 16 patches, c made once."""
    shape = {"classes": 5, "image": (C, 8, 8)}
    one, two = (
        count(parse(ArchSpec, {"d_model": D, "n_heads": 3, "depth": depth, "model": "dit"}), 11, 16, False, **shape)
        for depth in (1, 2)
    )
    assert two.params_total - one.params_total == (6 + 4 + 8) * D * D + (6 + 4 + 5) * D
    block = 16 * (12 * D * D + 2 * 16 * D) + 6 * D * D
    assert two.flops_forward - one.flops_forward == pytest.approx(2 * block)


@pytest.mark.parametrize(
    ("site", "options", "message"),
    [
        (replace(IMAGES, image=None), {}, "reads images: its task must have some"),
        (IMAGES, {"patch": 3}, "patch 3 must divide the image's 8 x 8 pixels"),
        (IMAGES, {"patch": 0}, "patch 0 must be at least 1"),
        (IMAGES, {"class_dropout": 1.5}, "class_dropout 1.5 must be from 0 to 1"),
        (replace(IMAGES, d_model=10), {}, "arch.d_model 10 must be a multiple of 4"),
    ],
)
def test_what_cannot_be_is_refused(site: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.make("model", Component("dit", tuple(options.items())), site)
