"""The convolutional sentence classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.components.embeddings import Table
from ablate.components.models.words import SoftmaxModel
from ablate.contracts import Linear, Site
from ablate.errors import UserError, within
from ablate.precision import wide
from ablate.registry import register


@register(
    "model", "kim_cnn", paper="Kim 2014, arXiv:1408.5882, section 2 and its CNN-rand", form="classify", causal=False
)
class KimCNN(SoftmaxModel):
    """c_s = relu(W_k . x_{s:s+k-1} + b), z = max_s c_s for `maps` filters of every width k; softmax(W drop(z) + b).

    The windows are those that lie within a row; a row shorter than a width has one window, filled up with zeros.
    Rows of W longer than `max_norm` are brought back to it after every step; None leaves them.
    sum_k (k d + 1) maps, C (widths maps + 1) and V d parameters; the depth and the heads do not count.
    Differs from the paper: dropout is the training's (there 0.5), embeddings are learned from nothing, one channel.
    """

    def __init__(self, site: Site, *, widths: list[int] | None = None, maps: int = 100, max_norm: float | None = 3.0):
        super().__init__(site)
        widths = [3, 4, 5] if widths is None else list(widths)
        if not widths or len(set(widths)) < len(widths):
            raise UserError(f"model 'kim_cnn': widths {widths} must be different numbers, at least one")
        for width in widths:
            within("model 'kim_cnn': widths", width, 1)
        within("model 'kim_cnn': maps", maps, 1)
        if max_norm is not None and not max_norm > 0:
            raise UserError(f"model 'kim_cnn': max_norm {max_norm:g} must be positive, or null")
        if not site.classes:
            raise UserError("model 'kim_cnn' is a classifier: its task must have classes")
        self.widths, self.max_norm = widths, max_norm
        self.table = Table(site.vocab, site.d_model)
        self.filters = nn.ModuleList(Linear(width * site.d_model, maps, bias=site.bias) for width in widths)
        self.output = Linear(maps * len(widths), site.classes, bias=site.bias, role="logits")

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        if self.max_norm is not None:
            self.output.weight.renorm_(2, 0, self.max_norm)

    def logits(self, tokens_BT: Tensor, valid_BT: Tensor | None = None) -> Tensor:  # type: ignore[override]
        B, T = tokens_BT.shape
        self.advance(T, None)
        x_BTD = self.table(tokens_BT)
        length_B = tokens_BT.new_full((B,), T)
        if valid_BT is not None:
            x_BTD = x_BTD * valid_BT[..., None].to(x_BTD.dtype)
            length_B = valid_BT.sum(1)
        x_BTD = F.pad(x_BTD, (0, 0, 0, max(0, max(self.widths) - T)))
        z = [
            self.strongest(x_BTD, each, width, length_B)
            for width, each in zip(self.widths, self.filters, strict=True)
        ]
        return self.output(self.dropout(torch.cat(z, -1)))

    def strongest(self, x_BTD: Tensor, filters: nn.Module, width: int, length_B: Tensor) -> Tensor:
        """The maximum over a row's windows of one width, (B, maps)."""
        windows_BTX = x_BTD.unfold(1, width, 1).flatten(-2)
        first_T = torch.arange(windows_BTX.shape[1], device=x_BTD.device)
        outside_BT = first_T > (length_B[:, None] - width).clamp(min=0)
        return filters(windows_BTX).relu().masked_fill(outside_BT[..., None], -torch.inf).amax(1)

    def log_probs(self, tokens_BT: Tensor, valid_BT: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """log p(class), (B, C)."""
        return wide(self.logits(tokens_BT, valid_BT)).log_softmax(-1)

    def example(self, rows: int, length: int) -> tuple[Tensor, ...]:
        """Inputs and targets of the shapes that `nll` takes."""
        return torch.zeros(rows, length, dtype=torch.long), torch.zeros(rows, dtype=torch.long)
