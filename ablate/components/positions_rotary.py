"""Positions that rotate queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor

from ablate.contracts import Context, Position, Site
from ablate.errors import UserError, within
from ablate.registry import register


@register("position", "rope", paper="Su et al. 2021, arXiv:2104.09864, equations 15 and 34")
class RotaryPosition(Position):
    """Rotates pairs of features of every query and key by t theta_i, theta_i = base^(-2i/K).

    (x_i, x_{i+K/2}) -> (x_i cos - x_{i+K/2} sin, x_{i+K/2} cos + x_i sin), so that q_t . k_s depends on t - s.
    Differs from the paper: feature i is paired with i + K/2 (as in Llama) and not with i + 1; the two are one
    permutation of the head's features apart.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, site: Site, *, base: float = 10000.0):
        super().__init__(site)
        if site.d_head % 2:
            raise UserError(f"position 'rope' rotates pairs of features: d_head {site.d_head} must be even")
        within("position 'rope': base", base, 1)
        rate = base ** -(torch.arange(0, site.d_head, 2, dtype=torch.float64) / site.d_head)
        angle = torch.arange(site.max_len, dtype=torch.float64)[:, None] * rate
        angle = torch.cat((angle, angle), -1)
        # the sine carries the sign of rotate-half, so that a rotation is two products and a sum
        sign = torch.cat((-torch.ones_like(rate), torch.ones_like(rate)))
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", (angle.sin() * sign).float(), persistent=False)

    def rotate(self, q_BHTK: Tensor, k_BHTK: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        if ctx.cache is None:
            cos_TK, sin_TK = self.cos[: q_BHTK.shape[2]], self.sin[: q_BHTK.shape[2]]
        else:
            cos_TK, sin_TK = self.cos[ctx.positions_T], self.sin[ctx.positions_T]
        cos_TK, sin_TK = cos_TK.to(q_BHTK.dtype), sin_TK.to(q_BHTK.dtype)
        return turn(q_BHTK, cos_TK, sin_TK), turn(k_BHTK, cos_TK, sin_TK)


def turn(x_BHTK: Tensor, cos_TK: Tensor, signed_sin_TK: Tensor) -> Tensor:
    """Rotate the pairs (i, i + K/2) of the last axis."""
    return x_BHTK * cos_TK + x_BHTK.roll(x_BHTK.shape[-1] // 2, -1) * signed_sin_TK
