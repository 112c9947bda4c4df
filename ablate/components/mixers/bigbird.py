"""Attention to blocks of tokens: neighbours, global ones, and some at random."""

from __future__ import annotations

import torch
from torch import Tensor

from ablate.components.mixers.attention import Attention, Score
from ablate.contracts import Context, Site
from ablate.errors import within
from ablate.registry import register


@register("mixer", "bigbird", paper="Zaheer et al. 2020, arXiv:2007.14062, section 2 and appendix D")
class BigBird(Attention):
    """Attention in which a block of `block` tokens sees its own, the two beside it, global and random ones.

    Global blocks, the first half of `global_blocks` (rounded up) and as many at the end as are left, are seen by all
    and see all. `random_blocks` of the others are drawn for each block, under a seed of the layer and the head, the
    same at every run; all of them where there are no more. `block` is a sixteenth of max_len unless given. The last
    blocks are the last that hold a token of the row, and where a row ends decides what is drawn from.
    Ours, in no paper, in a causal tower: no global block at the end, no block to the right, random ones from before
    the neighbour on the left, and no later token within the own block.
    Differs from the paper: all scores are computed and masked.
    """

    order: Tensor

    def __init__(
        self,
        site: Site,
        *,
        block: int | None = None,
        random_blocks: int = 3,
        global_blocks: int = 2,
        score: Score = "scaled_dot",
        d_value: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__(site, score=score, d_value=d_value, dropout=dropout)
        block = max(1, site.max_len // 16) if block is None else block
        within("mixer 'bigbird': block", block, 1)
        within("mixer 'bigbird': random_blocks", random_blocks, 0)
        within("mixer 'bigbird': global_blocks", global_blocks, 0)
        self.block, self.random_blocks = block, random_blocks
        self.first = (global_blocks + 1) // 2
        self.last = 0 if site.causal else global_blocks // 2
        n = -(-site.max_len // block)
        order = torch.empty(site.n_heads, n, n, dtype=torch.int32, device="cpu")
        for head in range(site.n_heads):
            generator = torch.Generator("cpu").manual_seed(2**20 * site.layer + head)
            noise = torch.rand(n, n, generator=generator, dtype=torch.float64, device="cpu")
            order[head] = noise.argsort(-1)
        # block i draws the blocks j that stand highest in order[:, i]: the same ones, whatever the sequence's length
        self.register_buffer("order", order, persistent=False)

    def blocks_seen(self, end_B111: Tensor, N: int) -> Tensor:
        """Which of N blocks each block sees, (B, H, N, N), in rows that end with block `end` - 1."""
        i = torch.arange(N, device=end_B111.device)[:, None]
        j = torch.arange(N, device=end_B111.device)[None]
        near = (i - j).abs() <= 1
        fixed = near | (j < self.first) | (i < self.first)
        if self.last:
            fixed = fixed | (j >= end_B111 - self.last) | (i >= end_B111 - self.last)
        there = (j < end_B111) & (j <= i) if self.causal else (j < end_B111).expand(-1, -1, N, N)
        if not self.random_blocks:
            return (fixed & there).expand(-1, self.n_heads, -1, -1)
        order = self.order.to(end_B111.device)[:, :N, :N]
        order = torch.where(there & ~fixed, order, -1)
        least = order.topk(min(self.random_blocks, N), -1).values[..., -1:]
        return there & (fixed | ((order >= least) & (order >= 0)))

    def allowed(self, pos_T: Tensor, pos_S: Tensor) -> Tensor:
        N = -(-len(pos_S) // self.block)
        end_1111 = torch.full((1, 1, 1, 1), N, device=pos_S.device)
        return self.by_token(self.blocks_seen(end_1111, N), pos_T, pos_S)[0]

    def by_token(self, seen_BHNN: Tensor, pos_T: Tensor, pos_S: Tensor) -> Tensor:
        """(B, H, N, N) -> (B, H, T, S)."""
        rows_BHTN = seen_BHNN.index_select(2, pos_T // self.block)
        return rows_BHTN.index_select(3, pos_S // self.block)

    def seen(self, pos_S: Tensor, ctx: Context) -> Tensor | None:
        if ctx.valid_BT is None or self.causal:
            return super().seen(pos_S, ctx)
        tokens_B111 = ctx.valid_BT.sum(1)[:, None, None, None]
        end_B111 = ((tokens_B111 + self.block - 1) // self.block).clamp(min=1)
        seen_BHNN = self.blocks_seen(end_B111, -(-len(pos_S) // self.block))
        visible = self.by_token(seen_BHNN, ctx.positions_T, pos_S) & ctx.valid_BT[:, None, None]
        return visible | (pos_S[None] == ctx.positions_T[:, None])
