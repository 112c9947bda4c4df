"""What whole models that classify images share."""

from __future__ import annotations

import torch
from torch import Tensor

from ablate.components.models.words import SoftmaxModel
from ablate.contracts import Site
from ablate.errors import UserError
from ablate.precision import wide


class ImageModel(SoftmaxModel):
    """log p = log softmax of `logits`, (B, C), of images (B, C, H, W)."""

    def __init__(self, site: Site):
        super().__init__(site)
        name = self.component.split("/")[-1]
        if site.image is None or not site.classes:
            raise UserError(f"model {name!r} says the class of an image: its task must have images and classes")
        self.image = site.image

    def log_probs(self, images_BCHW: Tensor) -> Tensor:  # type: ignore[override]
        """log p(class), (B, C)."""
        return wide(self.logits(images_BCHW)).log_softmax(-1)

    def example(self, rows: int, length: int) -> tuple[Tensor, ...]:
        """Inputs and targets of the shapes that `nll` takes."""
        return torch.zeros(rows, *self.image), torch.zeros(rows, dtype=torch.long)
