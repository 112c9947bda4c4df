"""Embeddings of images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ablate.contracts import Embedding, Linear, Site
from ablate.errors import UserError, within
from ablate.registry import register


@register(
    "embedding",
    "patch",
    paper="Dosovitskiy et al. 2021 (ViT), arXiv:2010.11929, equation 1",
    form="image",
    causal=False,
)
class PatchEmbedding(Embedding):
    """[x_class; p_1 E + b; ...; p_N E + b]: the image's patches, `patch` pixels high and wide, each flattened to
    P^2 C numbers and mapped by one matrix (a convolution of stride P), from left to right and from top to bottom.

    `first` puts the learned class token x_class before them, for a head that reads the first token. It starts from
    zeros, as in the authors' code (not re-read). Position `learned` gives them their rows. N and the class token
    must not be more than the model's length.
    """

    def __init__(self, site: Site, *, patch: int = 4, first: bool = True):
        super().__init__(site)
        within("embedding 'patch': patch", patch, 1)
        if site.image is None:
            raise UserError("embedding 'patch' is for images: choose a task that has them")
        channels, height, width = site.image
        if height % patch or width % patch:
            raise UserError(f"embedding 'patch': patch {patch} must divide the image's {height} by {width} pixels")
        length = height // patch * (width // patch) + first
        if length > site.max_len:
            raise UserError(
                f"embedding 'patch': patch {patch} makes {length} tokens of an image, "
                f"more than the model's {site.max_len}"
            )
        self.patch = patch
        self.map = Linear(patch * patch * channels, site.d_model, bias=site.bias)
        self.first = nn.Parameter(torch.empty(site.d_model)) if first else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.first is not None:
            nn.init.zeros_(self.first)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        P = self.patch
        patches = images_BCHW.unflatten(3, (-1, P)).unflatten(2, (-1, P))  # (B, C, H/P, P, W/P, P)
        x_BTD = self.map(patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))
        if self.first is None:
            return x_BTD
        first_B1D = self.first.to(x_BTD.dtype).expand(len(x_BTD), 1, -1)
        return torch.cat((first_B1D, x_BTD), 1)
