"""Attention to fewer keys and values than there are tokens: learned mixtures of them."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.components.mixers.attention import Attention, plain_wins
from ablate.contracts import Context, Site
from ablate.errors import within
from ablate.registry import register

Sharing = Literal["headwise", "kv", "none"]


class Compressed(Attention):
    """What both have: E and F (`rank`, length), which mix keys and values along time.

    Starts from U(+-1/sqrt(rank)).
    """

    def __init__(self, site: Site, rank: int, length: int, sharing: Sharing, d_value: int | None, dropout: float):
        super().__init__(site, d_value=d_value, dropout=dropout)
        within(f"mixer {self.component.split('/')[-1]!r}: rank", rank, 1)
        self.rank = rank
        heads = site.n_heads if sharing == "none" else 1
        self.e = nn.Parameter(torch.empty(heads, rank, length))
        self.f = None if sharing == "kv" else nn.Parameter(torch.empty(heads, rank, length))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for matrix in (self.e, self.f):
            if matrix is not None:
                nn.init.uniform_(matrix, -(self.rank**-0.5), self.rank**-0.5)

    def mixtures(self, k_BHSK: Tensor, v_BHSK: Tensor) -> tuple[Tensor, Tensor]:
        """E k and F v, (..., H, rank, K), from (..., H, S, K); S may be less than E is wide."""
        f = self.e if self.f is None else self.f
        return self.mix(self.e, k_BHSK), self.mix(f, v_BHSK)

    def mix(self, matrix_HRS: Tensor, x_BHSK: Tensor) -> Tensor:
        matrix_HRS = matrix_HRS[..., : x_BHSK.shape[-2]]
        if len(matrix_HRS) == 1:  # one product for all heads, and no copies of the matrix
            return torch.einsum("rs,...sk->...rk", matrix_HRS[0], x_BHSK)
        return torch.einsum("hrs,...hsk->...hrk", matrix_HRS, x_BHSK)


@register("mixer", "linformer", paper="Wang et al. 2020, arXiv:2006.04768, section 4", causal=False)
class Linformer(Compressed):
    """softmax(Q (E K)^T / sqrt(d_head)) (F V) with E and F (rank, max_len): linear in the sequence's length.

    `sharing`: `headwise` one E and one F for all heads of a layer; `kv` E = F as well; `none` for each head.
    `rank` is a quarter of max_len unless given (the paper has 128 at 512, 256 at 1024). Shorter sequences use E's
    first columns; padding counts as zero. Positions may rotate queries and keys, and add nothing to scores.
    Differs from the paper: sharing E among layers is not among the choices; the start is that of the package
    linformer, U(+-1/sqrt(rank)).
    """

    def __init__(
        self,
        site: Site,
        *,
        rank: int | None = None,
        sharing: Sharing = "headwise",
        d_value: int | None = None,
        dropout: float = 0.0,
    ):
        rank = max(1, site.max_len // 4) if rank is None else rank
        super().__init__(site, rank, site.max_len, sharing, d_value, dropout)

    def attend(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, ctx: Context) -> Tensor:
        if ctx.valid_BT is not None:
            valid_B1S1 = ctx.valid_BT[:, None, :, None]
            k_BHSK, v_BHSK = k_BHSK * valid_B1S1, v_BHSK * valid_B1S1
        k_BHRK, v_BHRK = self.mixtures(k_BHSK, v_BHSK)
        if plain_wins(q_BHTK):
            return self.explicit(q_BHTK, k_BHRK, v_BHRK, None)[0]
        return self.fast(q_BHTK, k_BHRK, v_BHRK, None, causal=False)


@register("mixer", "linformer_block_causal", paper="after Wang et al. 2020, arXiv:2006.04768; ours")
class BlockCausalLinformer(Compressed):
    """Ours, in no paper: Linformer for a causal tower. Plain attention within blocks of `block` tokens, and to
    `rank` mixtures of the keys and values of each earlier block, in one softmax.

    E and F (rank, block) are those of `linformer`, the same for every block. `block` is sqrt(max_len) rounded up and
    `rank` a quarter of it unless given, so that a token sees O(sqrt(max_len)) keys of its own block and as many
    mixtures. It looks back alone, also where the task sees both sides. Positions may rotate queries and keys, and
    add nothing to scores. Decoding keeps the mixtures, and the keys and values of the block at hand.
    """

    def __init__(
        self,
        site: Site,
        *,
        block: int | None = None,
        rank: int | None = None,
        sharing: Sharing = "headwise",
        d_value: int | None = None,
        dropout: float = 0.0,
    ):
        block = math.isqrt(max(0, site.max_len - 1)) + 1 if block is None else block
        within("mixer 'linformer_block_causal': block", block, 1)
        super().__init__(site, -(-block // 4) if rank is None else rank, block, sharing, d_value, dropout)
        self.block = block

    def heads(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        k_BHSK, v_BHSK = self.keys_values(x_BTD)
        q_BHTK, k_BHSK = self.rotate(self.queries(x_BTD), k_BHSK, ctx)
        mixed: tuple[Tensor, ...] = (k_BHSK[:, :, :0], v_BHSK[:, :, :0])
        if past := ctx.recall():  # keys and values of the block at hand, mixtures of those before
            k_BHSK, v_BHSK = torch.cat((past[0], k_BHSK), 2), torch.cat((past[1], v_BHSK), 2)
            mixed = past[2:]
        S, C = k_BHSK.shape[2], self.block
        full = (S if ctx.cache is not None else S - 1) // C * C
        blocks = (each[:, :, :full].unflatten(2, (-1, C)).transpose(1, 2) for each in (k_BHSK, v_BHSK))
        new = [each.transpose(1, 2).flatten(2, 3) for each in self.mixtures(*blocks)]
        mixed = tuple(torch.cat(pair, 2) for pair in zip(mixed, new, strict=True))
        ctx.remember((k_BHSK[:, :, full:], v_BHSK[:, :, full:], *mixed))
        return self.attend(q_BHTK, k_BHSK, v_BHSK, ctx, mixed)

    def attend(
        self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, ctx: Context, mixed: tuple[Tensor, ...] = ()
    ) -> Tensor:
        """Of the last T of S tokens, the first of which begins a block; `mixed` are those of all earlier blocks."""
        T, S, C = q_BHTK.shape[2], k_BHSK.shape[2], self.block
        k_BHMK, v_BHMK = mixed
        N, M = -(-S // C), k_BHMK.shape[2]
        after = N * C - S
        q_BHNCK = F.pad(q_BHTK * self.scale, (0, 0, S - T, after)).unflatten(2, (N, C))
        k_BHNCK, v_BHNCK = (F.pad(each, (0, 0, 0, after)).unflatten(2, (N, C)) for each in (k_BHSK, v_BHSK))
        own_BHNCC = q_BHNCK @ k_BHNCK.transpose(-1, -2)
        far_BHNCM = (q_BHNCK.flatten(2, 3) @ k_BHMK.transpose(-1, -2)).unflatten(2, (N, C))
        scores_BHNCJ = torch.cat((far_BHNCM, own_BHNCC), -1) + self.block_mask(N, M, q_BHTK.dtype, ctx)
        weights_BHNCJ = F.dropout(scores_BHNCJ.softmax(-1), self.dropout, self.training)
        far_BHPK = weights_BHNCJ[..., :M].flatten(2, 3) @ v_BHMK
        y_BHPK = (weights_BHNCJ[..., M:] @ v_BHNCK).flatten(2, 3) + far_BHPK
        return y_BHPK[:, :, S - T : S]

    def block_mask(self, N: int, M: int, dtype: torch.dtype, ctx: Context) -> Tensor:
        """(N, C, M + C): minus infinity at mixtures of the own block and later ones, and at later tokens of it.

        The last of the N blocks is that of the last position.
        """
        key = f"blocks/{self.block}/{self.rank}"
        if key in ctx.once:
            return ctx.once[key]
        C, device = self.block, ctx.positions_T.device
        block_N11 = (ctx.positions_T[-1] // C - (N - 1) + torch.arange(N, device=device))[:, None, None]
        far_NCM = (torch.arange(M, device=device) // self.rank < block_N11).expand(-1, C, -1)
        own_NCC = torch.ones(C, C, dtype=torch.bool, device=device).tril().expand(N, -1, -1)
        hidden = torch.zeros(N, C, M + C, dtype=dtype, device=device)
        ctx.once[key] = hidden.masked_fill_(~torch.cat((far_NCM, own_NCC), -1), -math.inf)
        return ctx.once[key]

    def density(self, T: int) -> float:
        blocks, rest = divmod(T, self.block)
        own = blocks * self.block * (self.block + 1) / 2 + rest * (rest + 1) / 2
        mixtures = self.rank * (self.block * blocks * (blocks - 1) / 2 + rest * blocks)
        return (own + mixtures) / T**2

    def executed(self, T: int, ctx: Context) -> float:
        blocks = -(-T // self.block)
        return blocks * self.block * (self.block + self.rank * ((T - 1) // self.block)) / T**2
