"""Embeddings: tokens to vectors."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from ablate.contracts import Embedding, Site
from ablate.registry import register


class Table(nn.Embedding):
    """A plain lookup table; its own type, so that inits can tell it from other parameters.

    `width` is that of the embedding that its rows are made into, where it is not their own: inits go by it. `gain`
    is a constant that the definition asks for: inits multiply their deviation by it.
    """

    def __init__(self, n: int, d: int, *, width: int | None = None, gain: float = 1.0):
        self.width = d if width is None else width
        self.gain = gain
        super().__init__(n, d)


@register("embedding", "table", paper="Vaswani et al. 2017, arXiv:1706.03762, section 3.4")
class TableEmbedding(Embedding):
    """One row of a learned table per token: x_t = E[w_t], or sqrt(d_model) E[w_t] when `scaled`."""

    def __init__(self, site: Site, *, scaled: bool = False):
        super().__init__(site)
        self.table = Table(site.vocab_rows, site.d_model)
        self.scale = math.sqrt(site.d_model) if scaled else 1.0

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTD = F.embedding(tokens_BT, self.table.weight)
        return x_BTD * self.scale if self.scale != 1.0 else x_BTD

    def rows(self) -> Tensor:
        return self.table.weight
