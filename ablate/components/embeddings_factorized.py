"""Embeddings whose table is a product of two matrices."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from ablate.components.embeddings import Table
from ablate.contracts import Embedding, Linear, Site
from ablate.errors import within
from ablate.registry import register


@register(
    "embedding",
    "factorized",
    paper="Lan et al. 2020 (ALBERT), arXiv:1909.11942, section 3.1; Narang et al. 2021, arXiv:2102.11972, section 2",
)
class FactorizedEmbedding(Embedding):
    """x_t = A[w_t] B with A (V, m) and B (m, d_model), m = `rank`; sqrt(d_model) A[w_t] B when `scaled`.

    A tied head uses both factors, logits = A (B x), and never makes the (V, d_model) table: Narang's "factorized and
    shared"; with an untied head it is their "factorized". A B starts with the deviation that the init gives a
    table, split evenly: under init `t5` both factors have deviation m^-1/4, as in the authors' mesh code.
    Differs from ALBERT: no bias after B and no norm between, as in Narang's code.
    """

    def __init__(self, site: Site, *, rank: int = 128, scaled: bool = False):
        super().__init__(site)
        within("embedding 'factorized': rank", rank, 1)
        self.table = Table(site.vocab_rows, rank, width=site.d_model, gain=rank**-0.25)
        self.expand = Linear(rank, site.d_model, bias=False, gain=rank**0.25)
        self.scale = math.sqrt(site.d_model) if scaled else 1.0

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTD = self.expand(F.embedding(tokens_BT, self.table.weight))
        return x_BTD * self.scale if self.scale != 1.0 else x_BTD

    def rows(self) -> Tensor:
        return self.expand(self.table.weight)

    def logits(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        return F.linear(x @ self.expand.weight, self.table.weight[start:stop])
