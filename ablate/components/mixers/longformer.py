"""Attention to the tokens nearby, dilated in some heads, and to global tokens."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ablate.components.mixers.attention import Attention, Score
from ablate.components.mixers.sliding import SlidingWindow
from ablate.contracts import Context, Site
from ablate.errors import UserError, within
from ablate.registry import register


class GlobalQueries(Attention):
    """Attention of the first `tokens` tokens, with projections of their own, to all that they may see."""

    def __init__(self, site: Site, tokens: int, score: Score, d_value: int, dropout: float):
        super().__init__(site, score=score, d_value=d_value, dropout=dropout)
        del self.out
        self.tokens = tokens

    def answer(self, x_BTD: Tensor, ctx: Context, past: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """What those among the T tokens find, who come first, and the keys and values, the past ones included."""
        start = past[0].shape[2] if past else 0
        n = min(self.tokens - start, x_BTD.shape[1])
        valid = None if ctx.valid_BT is None else ctx.valid_BT[:, :n] if self.causal else ctx.valid_BT
        first = replace(ctx, positions_T=ctx.positions_T[:n], valid_BT=valid, once={})
        q_BHGK = self.queries(x_BTD[:, :n])
        q_BHGK, _ = self.rotate(q_BHGK, q_BHGK, first)
        k_BHSK, v_BHSK = self.keys_values(x_BTD[:, :n] if self.causal else x_BTD)
        _, k_BHSK = self.rotate(k_BHSK, k_BHSK, first if self.causal else ctx)
        if past:
            k_BHSK, v_BHSK = torch.cat((past[0], k_BHSK), 2), torch.cat((past[1], v_BHSK), 2)
        return self.attend(q_BHGK, k_BHSK, v_BHSK, first), k_BHSK, v_BHSK

    def density(self, T: int) -> float:
        rows = min(self.tokens, T)
        return rows * ((rows + 1) / 2 if self.causal else T) / T**2

    def executed(self, T: int, ctx: Context) -> float:
        rows = min(self.tokens, T)
        return rows * (rows if self.causal else T) / T**2


@register("mixer", "longformer", paper="Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1")
class Longformer(SlidingWindow):
    """Attention to a sliding window and to global tokens, which see everything.

    Token i sees i - window + 1 ... i, in `dilated_heads` of the heads (the last ones) every `dilation`-th token of
    a window so many times longer; where both sides are seen, |i - s| <= window / 2, or window dilation / 2. The first
    `global_tokens` are seen by all in the same softmax; their own queries are against all tokens, with W_Q, W_K and
    W_V of their own, which start as the local ones. In a causal tower a global token sees none later than itself.
    `window`: a quarter of max_len unless given. A window without global tokens is `sliding_window`.
    Differs from the paper: the window counts its token, as in GPT-Neo, and is the same in all layers; global tokens
    are the first ones of a sequence; dilated, all scores are computed and masked.
    """

    def __init__(
        self,
        site: Site,
        *,
        window: int | None = None,
        global_tokens: int = 1,
        dilated_heads: int = 0,
        dilation: int = 2,
        score: Score = "scaled_dot",
        d_value: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__(site, window=window, score=score, d_value=d_value, dropout=dropout)
        within("mixer 'longformer': global_tokens", global_tokens, 0)
        within("mixer 'longformer': dilated_heads", dilated_heads, 0, site.n_heads)
        within("mixer 'longformer': dilation", dilation, 1)
        if global_tokens >= site.max_len:
            raise UserError(
                f"mixer 'longformer': global_tokens {global_tokens} leave no local one of max_len {site.max_len}: "
                f"choose 0 to {site.max_len - 1}"
            )
        self.prefix = global_tokens
        self.dilated_heads, self.dilation = dilated_heads, dilation
        self.reach = self.back * (dilation if dilated_heads else 1)
        self.globals = None
        if global_tokens:
            width = self.v.out_features // site.n_heads
            self.globals = GlobalQueries(site, global_tokens, score, width, dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The global projections take the values of the local ones."""
        if self.globals is not None:
            for name in ("q", "k", "v"):
                getattr(self.globals, name).load_state_dict(getattr(self, name).state_dict())

    def allowed(self, pos_T: Tensor, pos_S: Tensor) -> Tensor:
        near_TS = super().allowed(pos_T, pos_S)
        if not self.dilated_heads:
            return near_TS
        offset_TS = pos_T[:, None] - pos_S[None]
        sparse_TS = (offset_TS % self.dilation == 0) & self.near(offset_TS // self.dilation)
        dilated_H = torch.arange(self.n_heads, device=pos_T.device) >= self.n_heads - self.dilated_heads
        return torch.where(dilated_H[:, None, None], sparse_TS | (pos_S[None] < self.prefix), near_TS)

    def mask_key(self) -> object:
        return (super().mask_key(), self.dilated_heads, self.dilation)

    def banded(self, T: int, ctx: Context) -> bool:
        return not self.dilated_heads and super().banded(T, ctx)

    def heads(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        past = ctx.recall()
        y_BHTK = super().heads(x_BTD, ctx)
        read = past[0].shape[2] if past else 0
        if self.globals is None or read >= self.prefix:
            return y_BHTK
        y_BHGK, *kept = self.globals.answer(x_BTD, ctx, past[2:] if past else ())
        if ctx.cache is not None and read + x_BTD.shape[1] < self.prefix:
            ctx.remember((*ctx.recall(), *kept))
        return torch.cat((y_BHGK, y_BHTK[:, :, y_BHGK.shape[2] :]), 2)

    def density(self, T: int) -> float:
        """Without the rows of global tokens, which `globals` makes."""
        pos_T = torch.arange(T, device="cpu")
        visible = self.visible(pos_T, pos_T)
        assert visible is not None
        return visible[..., self.prefix :, :].sum().item() / visible.numel()

    def unneeded_flops(self, length: int) -> float:
        """The local queries of global tokens."""
        return 2.0 * self.q.in_features * self.q.out_features * min(self.prefix, length)
