"""Attention with Fixup's scalar before its last linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ablate.components.mixers.attention import Attention
from ablate.components.mixers.cross import CrossAttention
from ablate.contracts import Context, Site
from ablate.registry import register


@register("mixer", "fixup_attention", paper="Zhang, Dauphin and Ma 2019, arXiv:1901.09321, section 3 (rule 3)")
class FixupAttention(Attention):
    """Attention whose values, weighted and concatenated, get a scalar b before W_O: W_O (attend(...) + b).

    b is learned and starts at 0. The scalar before W_Q, W_K and W_V is the residual's. Scores are scaled dot
    products: unscaled ones fold a constant into W_Q that Fixup's initialisation contradicts.
    """

    def __init__(self, site: Site, *, d_value: int | None = None, dropout: float = 0.0):
        super().__init__(site, d_value=d_value, dropout=dropout)
        self.shift = nn.Parameter(torch.zeros(()))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.shift)

    def attend(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, ctx: Context) -> Tensor:
        return super().attend(q_BHTK, k_BHSK, v_BHSK, ctx) + self.shift


@register(
    "mixer", "fixup_cross", paper="Zhang, Dauphin and Ma 2019, arXiv:1901.09321, section 3 (rule 3)", form="pair"
)
class FixupCrossAttention(FixupAttention, CrossAttention):
    """Cross-attention with a learned scalar, 0 at first, before W_O: see `fixup_attention`.

    Differs from the paper: keys and values come from the encoder's output without a scalar before W_K and W_V; the
    residual's is on the decoder's side alone.
    """
