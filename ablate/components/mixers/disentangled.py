"""Attention that scores content and relative position apart."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ablate.components.mixers.attention import Attention
from ablate.components.positions_relative import compare
from ablate.contracts import Context, Linear, Site
from ablate.errors import within
from ablate.registry import register


@register("mixer", "disentangled", paper="He et al. 2021 (DeBERTa), arXiv:2006.03654, equations 3 and 4")
class DisentangledAttention(Attention):
    """score_ij = (Qc_i . Kc_j + Qc_i . Kr[d(i, j)] + Kc_j . Qr[d(j, i)]) / sqrt(3 d_head).

    Kr = P W_kr and Qr = P W_qr, P (2c, d_model) a learned vector for each d(i, j) = i - j + c, kept within [0, 2c).
    c is max_len, where nothing is cut off, or `clip`. W_kr and W_qr have no biases. P starts from N(0, 0.02^2).
    Where attention is causal only the distances to the past are used. `index: released` takes Qr[d(i, j)] in the
    last term, as transformers' port of the authors' code does, where the paper writes d(j, i). Differs from the
    paper: every layer has a P of its own, where the paper's layers share one. The paper adds absolute positions
    before the output; here `arch.position` may add them to the embedded tokens, and positions that act in attention
    are not asked.
    """

    def __init__(
        self,
        site: Site,
        *,
        clip: int | None = None,
        index: Literal["paper", "released"] = "paper",
        dropout: float = 0.0,
    ):
        super().__init__(site, dropout=dropout)
        self.released = index == "released"
        self.clip = site.max_len if clip is None else clip
        within("mixer 'disentangled': clip", self.clip, 1)
        self.scale = (3 * site.d_head) ** -0.5
        inner = site.n_heads * site.d_head
        self.table = nn.Parameter(torch.empty(2 * self.clip, site.d_model))
        self.position_k = Linear(site.d_model, inner, bias=False, role="score")
        self.position_q = Linear(site.d_model, inner, bias=False, role="score")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table, std=0.02)

    def heads(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        rows_2RE = torch.stack((self.position_k(self.table), self.position_q(self.table)))
        ctx.once[self.rows_key] = self.split(rows_2RE)
        return super().heads(x_BTD, ctx)

    @property
    def rows_key(self) -> str:
        return f"disentangled/{id(self)}"

    def executed(self, T: int, ctx: Context) -> float:
        """Content with content, values, content with all distances, all distances with content."""
        R = T if self.causal else 2 * T - 1
        return (2 * T + R + 2 * T - 1) / (4 * T)

    def rotate(self, q_BHTK: Tensor, k_BHTK: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        return q_BHTK, k_BHTK

    def position_bias(self, q_BHTK: Tensor, k_BHSK: Tensor, pos_S: Tensor, ctx: Context) -> Tensor:
        """(Qc_i . Kr[d(i, j)] + Kc_j . Qr[d(j, i)]) / sqrt(3 d_head), (B, H, T, S)."""
        key_rows, query_rows = ctx.once[self.rows_key]

        def keys(distance: Tensor, ctx: Context) -> Tensor:  # distance is j - i
            return key_rows[:, self.row_of(-distance)]

        def queries(distance: Tensor, ctx: Context) -> Tensor:  # distance is i - j, as keys ask and queries answer
            return query_rows[:, self.row_of(distance if self.released else -distance)]

        q_BHTK, k_BHSK = q_BHTK * self.scale, k_BHSK * self.scale
        scores_BHTS = compare(q_BHTK, keys, pos_S, ctx, self.causal)
        if len(pos_S) == len(ctx.positions_T):
            return scores_BHTS + compare(k_BHSK, queries, pos_S, ctx, causal=False).transpose(-1, -2)
        distance_TS = ctx.positions_T[:, None] - pos_S[None]
        return scores_BHTS + torch.einsum("bhsk,htsk->bhts", k_BHSK, queries(distance_TS, ctx).to(k_BHSK.dtype))

    def row_of(self, difference: Tensor) -> Tensor:
        return (difference + self.clip).clamp(0, 2 * self.clip - 1)
