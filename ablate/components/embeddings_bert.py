"""Embeddings that are normalised once positions are added."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from ablate.components.embeddings import Table
from ablate.contracts import Embedding, Site
from ablate.errors import within
from ablate.registry import register


@register("embedding", "bert", paper="Devlin et al. 2019, arXiv:1810.04805, section 3.2 and figure 2")
class BertEmbedding(Embedding):
    """N(E[w_t] + S[0] + position), N the architecture's norm; S (`segments`, d_model), sqrt(d_model) E when `scaled`.

    Position `learned` adds BERT's positions. Inputs here are one segment, so that S[0] alone is added; `segments: 2`
    holds the second row too, as the published models do, and 0 leaves S out, as BART does (Lewis et al. 2020,
    arXiv:1910.13461). In an encoder-decoder each tower has a norm of its own.
    """

    def __init__(self, site: Site, *, segments: int = 1, scaled: bool = False):
        super().__init__(site)
        within("embedding 'bert': segments", segments, 0)
        self.table = Table(site.vocab_rows, site.d_model)
        self.segments = Table(segments, site.d_model) if segments else None
        self.scale = math.sqrt(site.d_model) if scaled else 1.0

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTD = F.embedding(tokens_BT, self.table.weight)
        x_BTD = x_BTD * self.scale if self.scale != 1.0 else x_BTD
        return x_BTD if self.segments is None else x_BTD + self.segments.weight[0]

    def rows(self) -> Tensor:
        return self.table.weight

    def closing(self, site: Site) -> nn.Module:
        return site.new_norm()
