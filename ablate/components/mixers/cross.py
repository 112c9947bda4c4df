"""Attention of a decoder over its encoder's output."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ablate.components.mixers.attention import Attention, plain_wins
from ablate.contracts import Context
from ablate.registry import register


@register("mixer", "cross", paper="Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3", form="pair")
class CrossAttention(Attention):
    """softmax(Q K^T / sqrt(d_head)) V with queries from the decoder, keys and values from the encoder's output.

    Every decoder position sees the whole source, except its padding. Positions rotate and bias nothing here:
    distances between two sequences are not defined. Keys and values are computed once when decoding step by step.
    """

    def heads(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        assert ctx.memory is not None, "a decoder without an encoder has nothing to read"
        k_BHSK, v_BHSK = ctx.recall() or self.keys_values(ctx.memory.at(ctx.layer))
        ctx.remember((k_BHSK, v_BHSK))
        return self.attend(self.queries(x_BTD), k_BHSK, v_BHSK, ctx)

    def density(self, T: int) -> float:
        return 1.0

    def attend(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, ctx: Context) -> Tensor:
        mask = None
        if ctx.memory is not None and ctx.memory.valid_BS is not None:
            hidden_BS = torch.zeros(ctx.memory.valid_BS.shape, dtype=q_BHTK.dtype, device=q_BHTK.device)
            mask = hidden_BS.masked_fill(~ctx.memory.valid_BS, -math.inf)[:, None, None]
        if plain_wins(q_BHTK):
            return self.explicit(q_BHTK, k_BHSK, v_BHSK, mask)[0]
        return self.fast(q_BHTK, k_BHSK, v_BHSK, mask, causal=False)
