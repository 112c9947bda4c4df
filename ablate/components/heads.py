"""Heads: what the tower's output says about the next token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.contracts import Embedding, Head, Linear, Site
from ablate.errors import UserError
from ablate.registry import register


@register("head", "softmax", paper="Press and Wolf 2017, arXiv:1608.05859 (tying); Raffel et al. 2020 (scaling)")
class SoftmaxHead(Head):
    """p(v | x) = softmax(W x), W the embedding's table when `tied`, else (V, d_model) of its own.

    `scaled` multiplies x by d_model^-1/2 first, as T5 does with tied embeddings of unit deviation.
    """

    def __init__(self, site: Site, embedding: Embedding, *, tied: bool = True, scaled: bool = False):
        super().__init__(site, embedding)
        rows = embedding.rows() if tied else None
        if tied and (rows is None or rows.shape != (site.vocab, site.d_model)):
            raise UserError(
                f"head 'softmax' with tied: true needs a ({site.vocab}, {site.d_model}) table, which embedding "
                f"{embedding.component.split('/')[-1]!r} does not have: set arch.head.tied to false"
            )
        self.tied = [embedding] if tied else []  # in a list, so that the table stays the embedding's alone
        self.project = None if tied else Linear(site.d_model, site.vocab, bias=False, role="logits")
        self.scale = site.d_model**-0.5 if scaled else 1.0

    def logits(self, x_BTD: Tensor) -> Tensor:
        weight_VD = self.project.weight if self.project is not None else self.tied[0].rows()
        assert weight_VD is not None
        x_BTD = x_BTD * self.scale if self.scale != 1.0 else x_BTD
        return F.linear(x_BTD, weight_VD)

    def log_probs(self, x_BTD: Tensor) -> Tensor:
        return _wide(self.logits(x_BTD)).log_softmax(-1)

    def nll(self, x_BTD: Tensor, y_BT: Tensor) -> Tensor:
        return _cross_entropy(self.logits(x_BTD), y_BT)

    def objective(self, x_BTD: Tensor, y_BT: Tensor, label_smoothing: float, z_loss: float) -> tuple[Tensor, Tensor]:
        logits_BTV = self.logits(x_BTD)
        if not (label_smoothing or z_loss):
            nll_BT = _cross_entropy(logits_BTV, y_BT)
            return nll_BT, nll_BT
        logits_BTV = _wide(logits_BTV)
        log_z_BT = torch.logsumexp(logits_BTV, -1)
        nll_BT = log_z_BT - logits_BTV.gather(-1, y_BT[..., None])[..., 0]
        loss_BT = nll_BT
        if label_smoothing:
            uniform_BT = log_z_BT - logits_BTV.mean(-1)
            loss_BT = (1 - label_smoothing) * nll_BT + label_smoothing * uniform_BT
        return loss_BT + z_loss * log_z_BT.square(), nll_BT


def _cross_entropy(logits_BTV: Tensor, y_BT: Tensor) -> Tensor:
    flat = F.cross_entropy(_wide(logits_BTV).flatten(0, 1), y_BT.flatten(), reduction="none")
    return flat.view(y_BT.shape)


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
