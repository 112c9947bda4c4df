"""Embeddings that give frequent tokens more dimensions than rare ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.components.embeddings import Table
from ablate.contracts import Embedding, Linear, Site
from ablate.errors import UserError, within
from ablate.registry import register


@register("embedding", "adaptive", paper="Baevski and Auli 2019, arXiv:1809.10853, section 3")
class AdaptiveEmbedding(Embedding):
    """x_t = E_c[w_t] P_c, c the cluster of w_t: E_c (|c|, d_c), P_c (d_c, d_model), d_c smaller for rarer clusters.

    `cutoffs` are the tokens at which a cluster ends and the next begins: [2500, 8500] makes clusters of 2500, 6000
    and the rest, which is what they are unless given, in proportion to Narang et al.'s vocabulary of 32,128. Token
    ids must fall in frequency. Tokenizers here do not promise that: of bytes it is not true, and of BPE only roughly.
    `dims` are the d_c, unless given d_model / `factor`^c. A cluster of d_c = d_model has no P_c, as in Narang's mesh
    code; with `project_first` it has one, as in the authors' fairseq.

    A tied softmax uses the same factors (Narang et al., "adaptive input embeddings"); a tied `adaptive_softmax` does
    too, and takes its clusters from here. E_c P_c starts with the deviation that the init gives a table, split
    evenly: under init `t5` both factors of a cluster are drawn with deviation d_c^-1/4, as in the mesh code. Differs
    from the paper: fairseq draws E_c with deviation d_c^-1/2 and P_c Xavier-uniform.
    """

    def __init__(
        self,
        site: Site,
        *,
        cutoffs: list[int] | None = None,
        dims: list[int] | None = None,
        factor: int = 4,
        project_first: bool = False,
        scaled: bool = False,
    ):
        super().__init__(site)
        who = "embedding 'adaptive'"
        site.refuse_unused_rows(who)
        self.bounds = clusters(site.vocab, cutoffs, who)
        within(f"{who}: factor", factor, 1)
        if dims is None:
            dims = [max(1, site.d_model // factor**i) for i in range(len(self.bounds))]
        if len(dims) != len(self.bounds) or min(dims) < 1:
            raise UserError(f"{who}: dims {list(dims)} must be {len(self.bounds)} positive numbers, one a cluster")
        self.tables = nn.ModuleList()
        self.expand = nn.ModuleList()
        for (start, stop), d in zip(self.bounds, dims, strict=True):
            plain = d == site.d_model and not project_first
            gain = 1.0 if plain else d**0.25
            self.tables.append(Table(stop - start, d, width=site.d_model, gain=1 / gain))
            self.expand.append(nn.Identity() if plain else Linear(d, site.d_model, bias=False, gain=gain))
        self.scale = math.sqrt(site.d_model) if scaled else 1.0

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTD: Tensor | None = None
        for start, stop, weight, expand in self.parts():
            # a cluster's products are of all tokens, so that no shape depends on data; later clusters overwrite
            inside_BT = (tokens_BT - start).clamp(0, stop - start - 1)
            y_BTD = expand(F.embedding(inside_BT, weight))
            x_BTD = y_BTD if x_BTD is None else torch.where((tokens_BT >= start)[..., None], y_BTD, x_BTD)
        assert x_BTD is not None
        return x_BTD * self.scale if self.scale != 1.0 else x_BTD

    def rows(self) -> Tensor:
        return torch.cat([expand(weight) for _, _, weight, expand in self.parts()])

    def logits(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        stop = self.bounds[-1][1] if stop is None else stop
        pieces = []
        for first, last, weight, expand in self.parts():
            low, high = max(start, first), min(stop, last)
            if low < high:
                y = x @ expand.weight if isinstance(expand, Linear) else x
                pieces.append(F.linear(y, weight[low - first : high - first]))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)

    def parts(self) -> Iterator[tuple[int, int, Tensor, nn.Module]]:
        """Of each cluster: first token and end, E_c, P_c."""
        for (start, stop), table, expand in zip(self.bounds, self.tables, self.expand, strict=True):
            assert isinstance(table, Table)
            yield start, stop, table.weight, expand

    def unneeded_flops(self, length: int) -> float:
        """Every token is projected in every cluster; it needs one, taken to be the dearest."""
        products = [2.0 * each.weight.numel() * length for each in self.expand if isinstance(each, Linear)]
        return sum(products) - max(products, default=0.0)


def clusters(vocab: int, cutoffs: list[int] | None, who: str) -> list[tuple[int, int]]:
    """First token and end of each cluster. Raises `UserError` naming `who` for cutoffs that make none."""
    if cutoffs is None:
        shares = (2500 / 32128, 8500 / 32128)  # Narang et al. 2021, section 3.1
        cutoffs = sorted({each for each in (max(1, round(vocab * share)) for share in shares) if each < vocab})
    bounds = list(pairwise([0, *cutoffs, vocab]))
    if any(low >= high for low, high in bounds):
        raise UserError(f"{who}: cutoffs {list(cutoffs)} must rise between 0 and the vocabulary of {vocab}")
    return bounds
