"""Attention to the tokens nearby."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.components.mixers.attention import Attention, Score, plain_wins
from ablate.contracts import Context, Position, Site
from ablate.errors import within
from ablate.registry import register

BLOCK = 32  # queries that are taken together, at least


@register("mixer", "sliding_window", paper="Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1")
class SlidingWindow(Attention):
    """Attention in which token i sees `window` tokens, itself the last of them: i - window + 1 ... i.

    Where both sides are seen, the s with |i - s| <= window / 2. A quarter of max_len unless given. Long sequences
    are taken in blocks of queries with the keys in their reach, which costs O(T window); where a position adds to
    scores or values the scores are all computed, and masked. Decoding keeps the last window - 1 keys and values.
    """

    prefix = 0  # the first tokens, which all others see as well

    def __init__(
        self,
        site: Site,
        *,
        window: int | None = None,
        score: Score = "scaled_dot",
        d_value: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__(site, score=score, d_value=d_value, dropout=dropout)
        window = max(1, site.max_len // 4) if window is None else window
        within(f"mixer {self.component.split('/')[-1]!r}: window", window, 1)
        self.back, self.ahead = (window - 1, 0) if site.causal else (window // 2, window // 2)
        self.reach = self.back  # how far back the farthest key is

    def allowed(self, pos_T: Tensor, pos_S: Tensor) -> Tensor:
        near_TS = self.near(pos_T[:, None] - pos_S[None])
        return near_TS | (pos_S[None] < self.prefix) if self.prefix else near_TS

    def near(self, offset: Tensor) -> Tensor:
        """Which keys are in the window, by how far they are back."""
        return (offset <= self.back) & (offset >= -self.ahead)

    def mask_key(self) -> object:
        return (self.back, self.ahead, self.prefix)

    def attend(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, ctx: Context) -> Tensor:
        T, S = q_BHTK.shape[2], k_BHSK.shape[2]
        if S == T and self.banded(T, ctx):
            return self.attend_in_blocks(q_BHTK, k_BHSK, v_BHSK, ctx)
        return super().attend(q_BHTK, k_BHSK, v_BHSK, ctx)

    def blocks(self) -> tuple[int, int, int]:
        """Queries in a block, and how many blocks before and after it have keys in their reach."""
        size = max(BLOCK, self.back, self.ahead)
        return size, int(self.back > 0), int(self.ahead > 0)

    def banded(self, T: int, ctx: Context) -> bool:
        """Whether to take blocks: no position has to know of them, and they save so many scores that it pays."""
        size, before, after = self.blocks()
        position = type(ctx.position)
        plain = position.bias is Position.bias and position.value is Position.value
        return plain and 4 * ((before + 1 + after) * size + self.prefix) <= T

    def executed(self, T: int, ctx: Context) -> float:
        if not self.banded(T, ctx):
            return 1.0
        size, before, after = self.blocks()
        return -(-T // size) * size * ((before + 1 + after) * size + self.prefix) / T**2

    def attend_in_blocks(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, ctx: Context) -> Tensor:
        """What `attend` computes, from the keys in reach of each block of queries, N blocks of C, W keys each."""
        B, T, size = len(q_BHTK), q_BHTK.shape[2], self.blocks()[0]
        n = -(-T // size)
        q_BHTK = F.pad(q_BHTK, (0, 0, 0, n * size - T))
        q_XHCK = q_BHTK.unflatten(2, (n, size)).transpose(1, 2).flatten(0, 1)
        k_XHWK, v_XHWK = (self.windows(each, n) for each in (k_BHSK, v_BHSK))
        key = f"blocks/{self.mask_key()}"
        if key not in ctx.once:
            seen_BNCW = self.block_mask(n, T, ctx).expand(B, -1, -1, -1)
            hidden = torch.zeros(seen_BNCW.shape, dtype=q_BHTK.dtype, device=q_BHTK.device)
            ctx.once[key] = hidden.masked_fill_(~seen_BNCW, -math.inf).flatten(0, 1)[:, None]
        mask = ctx.once[key]
        if plain_wins(q_BHTK):
            y_XHCK = self.explicit(q_XHCK, k_XHWK, v_XHWK, mask)[0]
        else:
            y_XHCK = self.fast(q_XHCK, k_XHWK, v_XHWK, mask, causal=False)
        return y_XHCK.unflatten(0, (B, n)).transpose(1, 2).flatten(2, 3)[:, :, :T]

    def windows(self, x_BHSK: Tensor, n: int) -> Tensor:
        """(B, H, S, K) -> (B N, H, W, K): the prefix, and the blocks in reach of each block."""
        size, before, after = self.blocks()
        x_BHPK = F.pad(x_BHSK, (0, 0, before * size, (n + after) * size - x_BHSK.shape[2]))
        x_BNHCK = x_BHPK.unflatten(2, (-1, size)).transpose(1, 2)
        parts = [x_BNHCK[:, i : i + n] for i in range(before + 1 + after)]
        if self.prefix:
            parts.insert(0, x_BHSK[:, None, :, : self.prefix].expand(-1, n, -1, -1, -1))
        return torch.cat(parts, 3).flatten(0, 1)

    def block_mask(self, n: int, T: int, ctx: Context) -> Tensor:
        """Which of its keys each query of a block sees, (1, N, C, W), or (B, N, C, W) where there is padding."""
        size, before, after = self.blocks()
        pos = torch.arange(-before * size, (n + after) * size, device=ctx.positions_T.device)
        pos_NC1 = pos[before * size :][: n * size].view(n, size, 1)
        pos_N1W = pos.unfold(0, (before + 1 + after) * size, size)[:, None]
        seen_NCW = self.near(pos_NC1 - pos_N1W) & (pos_N1W >= self.prefix) & (pos_N1W < T)
        if self.prefix:
            first_N1G = pos[before * size :][: self.prefix].expand(n, 1, -1)
            first_NCG = (first_N1G <= pos_NC1) | torch.tensor(not self.causal, device=pos.device)
            seen_NCW = torch.cat((first_NCG, seen_NCW), -1)
            pos_N1W = torch.cat((first_N1G, pos_N1W), -1)
        own_NCW = pos_NC1 == pos_N1W  # so that no row of the softmax is empty, at padding either
        if ctx.valid_BT is None:
            return (seen_NCW | own_NCW)[None]
        valid_BN1W = ctx.valid_BT[:, pos_N1W.clamp(0, T - 1)]
        return (seen_NCW & valid_BN1W) | own_NCW

    def heads(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        y_BHTK = super().heads(x_BTD, ctx)
        if ctx.cache is not None and self.causal and not self.prefix:
            k_BHSK, v_BHSK = ctx.recall()
            old = max(0, k_BHSK.shape[2] - self.reach)
            ctx.remember((k_BHSK[:, :, old:], v_BHSK[:, :, old:]))
        return y_BHTK

    def key_positions(self, S: int, ctx: Context) -> Tensor:
        if S == len(ctx.positions_T) or self.prefix:
            return super().key_positions(S, ctx)
        return ctx.positions_T[-1] - (S - 1) + torch.arange(S, device=ctx.positions_T.device)
