"""Heads: what the tower's output says about the next token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.contracts import Embedding, Head, Linear, Site
from ablate.errors import UserError
from ablate.precision import wide
from ablate.registry import register


class WordHead(Head):
    """A head that scores every token: by the embedding's weights when tied, else by a matrix of its own.

    `scaled` multiplies what the head reads by d_model^-1/2. Rows of the table beyond the vocabulary are no token's.
    """

    def __init__(self, site: Site, embedding: Embedding, *, tied: bool, scaled: bool):
        super().__init__(site, embedding)
        if tied:
            refuse_untieable(self, site, embedding)
        self.tied = [embedding] if tied else []  # in a list, so that the table stays the embedding's alone
        self.project = None if tied else Linear(site.d_model, site.vocab_rows, bias=False, role="logits")
        self.scale = site.d_model**-0.5 if scaled else 1.0
        self.n_words = site.vocab if site.vocab_rows > site.vocab else None

    def scaled(self, x_BTD: Tensor) -> Tensor:
        return x_BTD * self.scale if self.scale != 1.0 else x_BTD

    def words(self, x_BTD: Tensor) -> Tensor:
        logits_BTV: Tensor = self.tied[0].logits(x_BTD) if self.project is None else self.project(x_BTD)
        return logits_BTV if self.n_words is None else logits_BTV[..., : self.n_words]


@register("head", "softmax", paper="Press and Wolf 2017, arXiv:1608.05859 (tying); Raffel et al. 2020 (scaling)")
class SoftmaxHead(WordHead):
    """p(v | x) = softmax(W x), W the embedding's table when `tied`, else (V, d_model) of its own; plus b with `bias`.

    `scaled` multiplies x by d_model^-1/2 first, as T5 does with tied embeddings of unit deviation.
    """

    def __init__(
        self, site: Site, embedding: Embedding, *, tied: bool = True, scaled: bool = False, bias: bool = False
    ):
        super().__init__(site, embedding, tied=tied, scaled=scaled)
        self.bias = nn.Parameter(torch.zeros(site.vocab)) if bias else None

    def reset_parameters(self) -> None:
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def logits(self, x_BTD: Tensor) -> Tensor:
        logits_BTV = self.words(self.scaled(x_BTD))
        return logits_BTV if self.bias is None else logits_BTV + self.bias

    def log_probs(self, x_BTD: Tensor) -> Tensor:
        return wide(self.logits(x_BTD)).log_softmax(-1)

    def nll(self, x_BTD: Tensor, y_BT: Tensor) -> Tensor:
        return _cross_entropy(self.logits(x_BTD), y_BT)

    def objective(self, x_BTD: Tensor, y_BT: Tensor, label_smoothing: float, z_loss: float) -> tuple[Tensor, Tensor]:
        logits_BTV = self.logits(x_BTD)
        if not (label_smoothing or z_loss):
            nll_BT = _cross_entropy(logits_BTV, y_BT)
            return nll_BT, nll_BT
        logits_BTV = wide(logits_BTV)
        log_z_BT = torch.logsumexp(logits_BTV, -1)
        nll_BT = log_z_BT - logits_BTV.gather(-1, y_BT[..., None])[..., 0]
        loss_BT = nll_BT
        if label_smoothing:
            uniform_BT = log_z_BT - logits_BTV.mean(-1)
            loss_BT = (1 - label_smoothing) * nll_BT + label_smoothing * uniform_BT
        return loss_BT + z_loss * log_z_BT.square(), nll_BT


def refuse_untieable(head: Head, site: Site, embedding: Embedding) -> None:
    """Raise `UserError` where a head cannot use the embedding's weights."""
    with torch.no_grad():
        rows_VD = embedding.rows()
    if rows_VD is None or rows_VD.shape != (site.vocab_rows, site.d_model):
        raise UserError(
            f"head {head.component.split('/')[-1]!r} with tied: true needs a ({site.vocab_rows}, {site.d_model}) "
            f"table, which embedding {embedding.component.split('/')[-1]!r} does not have: "
            "set arch.head.tied to false"
        )


def _cross_entropy(logits_BTV: Tensor, y_BT: Tensor) -> Tensor:
    flat = F.cross_entropy(wide(logits_BTV).flatten(0, 1), y_BT.flatten(), reduction="none")
    return flat.view(y_BT.shape)
