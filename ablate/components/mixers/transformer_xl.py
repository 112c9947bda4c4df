"""Attention with a memory of the segment before."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.components.mixers.attention import Attention, plain_wins
from ablate.components.positions_input import frequencies, sines
from ablate.components.positions_relative import compare, skew
from ablate.contracts import Context, Linear, Site
from ablate.errors import within
from ablate.registry import register


@register("mixer", "transformer_xl", paper="Dai et al. 2019, arXiv:1901.02860, sections 3.2 and 3.3")
class TransformerXL(Attention):
    """score_ij = ((q_i + u) . k_j + (q_i + v) . W_R r_{i-j}) / sqrt(d_head), over the segment and the one before it.

    The sequence is read in segments of `segment` tokens, half of max_len unless given. Keys and values are made of
    [stop_gradient(h of the segment before); h of this one], h this layer's input. r is the sinusoid of the
    distance, W_R a matrix without bias, u and v a vector for each head, from N(0, 0.02^2) as in the released code.
    The distances are its positions: `arch.position: none` is the paper's model, positions that act in attention are
    not asked. Differs from the paper: the memory is empty at the start of every window, because windows are not
    read in the order of the text; u and v are each layer's own. Where attention sees both sides it sees all of the
    segment, and the one before.
    """

    waves: Tensor

    def __init__(self, site: Site, *, segment: int | None = None, dropout: float = 0.0):
        super().__init__(site, dropout=dropout)
        self.segment = (site.max_len + 1) // 2 if segment is None else segment
        within("mixer 'transformer_xl': segment", self.segment, 1)
        inner = site.n_heads * site.d_head
        self.r = Linear(site.d_model, inner, bias=False, role="score")
        self.bias_content = nn.Parameter(torch.empty(inner))  # u, a vector so that it is not decayed
        self.bias_position = nn.Parameter(torch.empty(inner))  # v
        # of i - j from -(segment - 1), which only attention to both sides has, to 2 segment - 1
        distance = torch.arange(1 - self.segment, 2 * self.segment, dtype=torch.float64)
        waves = sines(distance[:, None] * frequencies(site.d_model), site.d_model)
        self.register_buffer("waves", waves.float(), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.bias_content, std=0.02)
        nn.init.normal_(self.bias_position, std=0.02)

    def allowed(self, pos_T: Tensor, pos_S: Tensor) -> Tensor:
        """The keys of the query's segment and of the one before."""
        behind_TS = pos_T[:, None] // self.segment - pos_S[None] // self.segment
        return (behind_TS == 0) | (behind_TS == 1)

    def unneeded_flops(self, length: int) -> float:
        n, T, S = self.sizes(length)
        R = S if self.causal else S + T - 1
        computed, needed = n * T * (2 * S + R), 3 * self.density(length) * length**2
        return 2 * self.out.in_features * (computed - needed)

    def sizes(self, length: int) -> tuple[int, int, int]:
        """How many segments there are, a segment's length, and how many keys its queries are compared with."""
        n = -(-length // self.segment)
        return (1, length, length) if n == 1 else (n, self.segment, 2 * self.segment)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        if ctx.cache is not None:
            return self.decode(x_BTD, ctx)
        B, length = x_BTD.shape[:2]
        n, T, _ = self.sizes(length)
        if n > 1:
            segments = F.pad(x_BTD, (0, 0, 0, n * T - length)).unflatten(1, (n, T))
            before = F.pad(segments[:, :-1].detach(), (0, 0, 0, 0, 1, 0))
            here, around = segments.flatten(0, 1), torch.cat((before, segments), 2).flatten(0, 1)
        else:
            here = around = x_BTD
        k_BHSK, v_BHSK = self.keys_values(around)
        y_BHTK = self.attend_segments(self.split(self.q(here)), k_BHSK, v_BHSK, ctx)
        y_BTE = y_BHTK.transpose(1, 2).flatten(2).reshape(B, -1, self.out.in_features)[:, :length]
        return self.out(y_BTE)

    def attend_segments(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, ctx: Context) -> Tensor:
        """All segments at once: B stands for every segment of every row, S for the segment before and this one."""
        T, S = q_BHTK.shape[2], k_BHSK.shape[2]
        last = 0 if self.causal else T - 1
        distance_R = torch.arange(1 - S, last + 1, device=q_BHTK.device)
        positions_BHTR = self.biased(q_BHTK, self.bias_position) * self.scale @ self.rows(distance_R, ctx).mT
        bias = skew(positions_BHTR, S)
        hidden = self.hidden_segments(T, S, bias, ctx)
        mask = (bias.unflatten(0, (-1, hidden.shape[-4])) + hidden).flatten(0, 1)
        return self.weigh(q_BHTK, k_BHSK, v_BHSK, mask)

    def hidden_segments(self, T: int, S: int, like: Tensor, ctx: Context) -> Tensor:
        """Minus infinity where a key may not be seen, 0 elsewhere: (n, 1, T, S), with padding (B, n, 1, T, S)."""
        length = len(ctx.positions_T)
        start_N = torch.arange(0, length, T, device=like.device)
        pos_NT = start_N[:, None] + torch.arange(T, device=like.device)
        pos_NS = start_N[:, None] + torch.arange(T - S, T, device=like.device)
        t, s = pos_NT[:, :, None], pos_NS[:, None]
        seen = (s >= 0) & (s <= t if self.causal else s < length)
        if ctx.valid_BT is not None:
            valid_BT = F.pad(ctx.valid_BT, (0, len(start_N) * T - length))
            seen = seen & valid_BT[:, pos_NS.clamp(min=0)][:, :, None]
        seen = seen | (s == t)  # a query at padding sees itself, so that no row of the softmax is empty
        hidden = torch.zeros(seen.shape, dtype=like.dtype, device=like.device)
        return hidden.masked_fill(~seen, -math.inf).unsqueeze(-3)

    def decode(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        """With the keys and values of this segment and the one before in the cache."""
        q_BHTK = self.split(self.q(x_BTD))
        k_BHSK, v_BHSK = self.keys_values(x_BTD)
        if past := ctx.recall():
            k_BHSK = torch.cat((past[0], k_BHSK), 2)
            v_BHSK = torch.cat((past[1], v_BHSK), 2)
        assert ctx.cache is not None
        stop = ctx.cache.length + x_BTD.shape[1]
        keep = 2 * self.segment - 1  # no later query sees further back
        ctx.remember((k_BHSK[:, :, -keep:], v_BHSK[:, :, -keep:]))
        pos_S = torch.arange(stop - k_BHSK.shape[2], stop, device=x_BTD.device)
        q_position = self.biased(q_BHTK, self.bias_position) * self.scale
        bias = compare(q_position, self.rows, pos_S, ctx, self.causal)
        visible = self.visible(ctx.positions_T, pos_S)
        assert visible is not None
        y_BHTK = self.weigh(q_BHTK, k_BHSK, v_BHSK, bias.masked_fill(~visible, -math.inf))
        return self.out(y_BHTK.transpose(1, 2).flatten(2))

    def weigh(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask: Tensor) -> Tensor:
        q_BHTK = self.biased(q_BHTK, self.bias_content)
        if plain_wins(q_BHTK):
            return self.explicit(q_BHTK, k_BHSK, v_BHSK, mask)[0]
        return self.fast(q_BHTK, k_BHSK, v_BHSK, mask, causal=False)

    def biased(self, q_BHTK: Tensor, bias: Tensor) -> Tensor:
        return q_BHTK + bias.unflatten(0, (self.n_heads, 1, -1)).to(q_BHTK.dtype)

    def rows(self, distance: Tensor, ctx: Context) -> Tensor:
        """W_R r of key minus query, (H, R, K)."""
        last = 2 * self.segment - 1  # keys further back are hidden, whatever they are given
        waves_RD = self.waves[self.segment - 1 - distance.clamp(min=-last)]
        return self.split(self.r(waves_RD.to(self.r.weight.dtype))[None])[0]
