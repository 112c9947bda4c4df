"""Softmax attention. Variants override `allowed`, `keys_values`, `scores` or `attend`; none adds a flag here."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.contracts import Context, Linear, Mixer, Position, Site
from ablate.errors import UserError, within
from ablate.registry import register

Score = Literal["scaled_dot", "dot", "mup"]
# methods that decide which keys a query sees, or take part in it: the prefix is known to pass through these alone
SEEING = (
    "forward", "heads", "attend", "rotate", "allowed", "visible", "seen", "score_mask", "mask_key", "key_positions",
    "position_bias", "explicit", "sees_prefix",
)  # fmt: skip


def plain_wins(q_BHTK: Tensor) -> bool:
    """Where `explicit` is faster than scaled_dot_product_attention, which has no fast bfloat16 kernel on a CPU."""
    return q_BHTK.device.type == "cpu" and q_BHTK.dtype == torch.bfloat16


@register("mixer", "attention", paper="Vaswani et al. 2017, arXiv:1706.03762, section 3.2")
class Attention(Mixer):
    """softmax(Q K^T / sqrt(d_head) + bias + mask) V for each head, concatenated and mapped back by W_O.

    `score: dot` leaves out 1/sqrt(d_head) (Luong et al. 2015); inits that know of it fold it into the queries,
    as T5 does: the same function at the start, not the same training. `score: mup` divides by d_head (Yang et al.
    2022, arXiv:2203.03466, definition 4.1). `d_value` is the head's value dimension, d_head unless given. Any n_heads
    and d_head: n_heads d_head need not be d_model. `dropout` is on the attention's weights.
    """

    def __init__(
        self,
        site: Site,
        *,
        score: Score = "scaled_dot",
        d_value: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__(site)
        d_value = site.d_head if d_value is None else d_value
        name = self.component.split("/")[-1]
        within(f"mixer {name!r}: d_value", d_value, 1)
        within(f"mixer {name!r}: dropout", dropout, 0, 1)
        self.n_heads = site.n_heads
        self.causal = site.causal
        self.scale = {"scaled_dot": site.d_head**-0.5, "dot": 1.0, "mup": 1 / site.d_head}[score]
        fold = site.d_head**-0.5 if score == "dot" else 1.0
        inner = site.n_heads * site.d_head
        self.q = Linear(site.d_model, inner, bias=site.bias, role="score", gain=fold)
        self.k = Linear(site.d_model, inner, bias=site.bias, role="score")
        self.v = Linear(site.d_model, site.n_heads * d_value, bias=site.bias)
        self.out = Linear(site.n_heads * d_value, site.d_model, bias=site.bias, role="write")
        self.dropout = dropout

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return self.out(self.heads(x_BTD, ctx).transpose(1, 2).flatten(2))

    def heads(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        """What the heads find, (B, H, T, K), before W_O; keys and values are kept where there is a cache."""
        k_BHSK, v_BHSK = self.keys_values(x_BTD)
        q_BHTK, k_BHSK = self.rotate(self.queries(x_BTD), k_BHSK, ctx)
        if past := ctx.recall():
            k_BHSK = torch.cat((past[0], k_BHSK), 2)
            v_BHSK = torch.cat((past[1], v_BHSK), 2)
        ctx.remember((k_BHSK, v_BHSK))
        return self.attend(q_BHTK, self.spread(k_BHSK), self.spread(v_BHSK), ctx)

    def split(self, x_BTE: Tensor) -> Tensor:
        """(B, T, H K) -> (B, H, T, K)."""
        return x_BTE.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def queries(self, x_BTD: Tensor) -> Tensor:
        return self.split(self.q(x_BTD))

    def keys_values(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.k(x_BSD)), self.split(self.v(x_BSD))

    def spread(self, x_BHSK: Tensor) -> Tensor:
        """Keys or values as they are kept in a cache -> one for each head."""
        return x_BHSK

    def allowed(self, pos_T: Tensor, pos_S: Tensor) -> Tensor | None:
        """Which keys a query may see, (T, S), besides the causal rule; None for all of them."""
        return None

    def visible(self, pos_T: Tensor, pos_S: Tensor) -> Tensor | None:
        """`allowed` and, in a causal tower, no key later than the query; None when everything is visible."""
        allowed_TS = self.allowed(pos_T, pos_S)
        if not self.causal:
            return allowed_TS
        past_TS = pos_S[None] <= pos_T[:, None]
        return past_TS if allowed_TS is None else past_TS & allowed_TS

    def density(self, T: int) -> float:
        """The share of the T x T scores that the definition needs; kernels may compute more: see `executed`."""
        if type(self).allowed is Attention.allowed:
            return (T + 1) / (2 * T) if self.causal else 1.0
        pos_T = torch.arange(T, device="cpu")
        visible_TS = self.visible(pos_T, pos_T)
        return 1.0 if visible_TS is None else visible_TS.sum().item() / visible_TS.numel()

    def executed(self, T: int, ctx: Context) -> float:
        """What `attend` computes for T tokens without a cache, as a share of the products of T x T scores."""
        return 1.0

    def scores(self, q_BHTK: Tensor, k_BHSK: Tensor) -> Tensor:
        """How well each key answers each query, (B, H, T, S).

        An override makes `attend` compute them plainly, unless `fast` is overridden as well.
        """
        return (q_BHTK * self.scale) @ k_BHSK.transpose(-1, -2)

    def attend(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, ctx: Context) -> Tensor:
        """The weighted values, (B, H, T, K), by the fastest kernel that can compute them."""
        T, S = q_BHTK.shape[2], k_BHSK.shape[2]
        pos_S = self.key_positions(S, ctx)
        bias = self.position_bias(q_BHTK, k_BHSK, pos_S, ctx)
        own_scores = type(self).scores is not Attention.scores and type(self).fast is Attention.fast
        if own_scores or type(ctx.position).value is not Position.value or plain_wins(q_BHTK):
            mask = self.score_mask(q_BHTK, pos_S, bias, ctx)
            y_BHTK, weights_BHTS = self.explicit(q_BHTK, k_BHSK, v_BHSK, mask)
            extra = ctx.position.value(weights_BHTS, pos_S, ctx)
            if extra is not None and extra.shape[-1] != y_BHTK.shape[-1]:
                width = y_BHTK.shape[-1]
                raise UserError(f"d_value {width} must be d_head: the position adds vectors of it to values")
            return y_BHTK if extra is None else y_BHTK + extra
        plain_causal = bias is None and self.causal and S == T and ctx.valid_BT is None and ctx.prefix_BT is None
        plain_causal = plain_causal and type(self).allowed is Attention.allowed
        mask = None if plain_causal else self.score_mask(q_BHTK, pos_S, bias, ctx)
        return self.fast(q_BHTK, k_BHSK, v_BHSK, mask, plain_causal)

    def rotate(self, q_BHTK: Tensor, k_BHTK: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """What the position makes of new queries and keys."""
        return ctx.position.rotate(q_BHTK, k_BHTK, ctx)

    def key_positions(self, S: int, ctx: Context) -> Tensor:
        """Where the S keys stand, in order."""
        return ctx.positions_T if S == len(ctx.positions_T) else torch.arange(S, device=ctx.positions_T.device)

    def position_bias(self, q_BHTK: Tensor, k_BHSK: Tensor, pos_S: Tensor, ctx: Context) -> Tensor | None:
        """What the position adds to the scores."""
        ctx.scale = self.scale
        return ctx.position.bias(q_BHTK, k_BHSK, pos_S, ctx)

    def fast(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """Scaled dot products by PyTorch's fused kernels."""
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(
            q_BHTK, k_BHSK, v_BHSK, mask, dropout, is_causal=causal, scale=self.scale
        )

    def explicit(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Attention as it is written: scores, mask, softmax, weighted sum; the values, and the weights (B, H, T, S).

        The reference of every fast path.
        """
        scores_BHTS = self.scores(q_BHTK, k_BHSK)
        if mask is not None:
            scores_BHTS = scores_BHTS + mask
        weights_BHTS = F.dropout(scores_BHTS.softmax(-1), self.dropout, self.training)
        return weights_BHTS @ v_BHSK, weights_BHTS

    def score_mask(self, q_BHTK: Tensor, pos_S: Tensor, bias: Tensor | None, ctx: Context) -> Tensor | None:
        """What is added to the scores: the position's bias, and minus infinity where a key is not visible.

        Every query must see a key: `allowed` includes the query's own position, and padding ends a row.
        """
        key = f"mask/{self.mask_key()}"
        if key not in ctx.once:
            visible = self.seen(pos_S, ctx)
            if visible is None:
                return None if bias is None else bias.to(q_BHTK.dtype)
            hidden = torch.zeros(visible.shape, dtype=q_BHTK.dtype, device=q_BHTK.device)
            ctx.once[key] = hidden.masked_fill_(~visible, -math.inf)
        return ctx.once[key] if bias is None else bias.to(q_BHTK.dtype) + ctx.once[key]

    def sees_prefix(self) -> bool:
        """Not a class that has a mask of its own, or a way of its own around the mask."""
        return all(getattr(type(self), name) is getattr(Attention, name) for name in SEEING)

    def mask_key(self) -> object:
        """What two attentions share whose masks are equal in one pass."""
        return id(self) if type(self).allowed is not Attention.allowed else self.causal

    def seen(self, pos_S: Tensor, ctx: Context) -> Tensor | None:
        """Which of the keys each query sees, broadcastable to (B, H, T, S): `visible` ones, and those of the prefix,
        that are no padding."""
        visible = self.visible(ctx.positions_T, pos_S)
        if visible is not None and visible.ndim == 3:  # the fused kernels take masks of two or four dimensions
            visible = visible[None]
        if visible is not None and ctx.prefix_BT is not None:
            if ctx.prefix_BT.shape[1] != len(pos_S):
                raise UserError("a prefix is read in one pass, with all of its tokens and before any others")
            visible = visible | ctx.prefix_BT[:, None, None]
        if ctx.valid_BT is None:
            return visible
        valid_B1TS = ctx.valid_BT[:, None, None, :].expand(-1, 1, len(ctx.positions_T), -1)
        # a query at padding sees itself, so that no row of the softmax is empty
        valid_B1TS = valid_B1TS | (pos_S[None] == ctx.positions_T[:, None])
        return valid_B1TS if visible is None else valid_B1TS & visible
