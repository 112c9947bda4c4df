"""Positions that rotate queries and keys."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ablate.contracts import Context, Position, Site
from ablate.errors import UserError, within
from ablate.registry import register


@register("position", "rope", paper="Su et al. 2021, arXiv:2104.09864, equations 15 and 34")
class RotaryPosition(Position):
    """Rotates pairs of features of every query and key by t theta_i, theta_i = base^(-2i/R).

    (x, y) -> (x cos - y sin, y cos + x sin), so that q_t . k_s depends on t - s. R = floor(fraction d_head) is how
    many features are rotated, the first ones; the others pass (GPT-NeoX and GPT-J rotate a part). `pairs` says which
    two make a pair: `halves` i and i + R/2 (Llama), `interleaved` 2i and 2i + 1 (the paper, GPT-J); the two are one
    permutation of the head's features apart. Differs from the paper: halves unless given.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        site: Site,
        *,
        base: float = 10000.0,
        pairs: Literal["halves", "interleaved"] = "halves",
        fraction: float = 1.0,
    ):
        super().__init__(site)
        within("position 'rope': base", base, 1)
        within("position 'rope': fraction", fraction, 0, 1)
        rotated = int(fraction * site.d_head)
        if rotated % 2 or not rotated:
            of = f"d_head {site.d_head}" if fraction == 1 else f"fraction {fraction:g} of d_head {site.d_head}"
            raise UserError(f"position 'rope' rotates pairs of features: {of} must be even and at least 2")
        self.rotated = None if rotated == site.d_head else rotated
        self.pairs = pairs
        rate = base ** -(torch.arange(0, rotated, 2, dtype=torch.float64) / rotated)
        angle = torch.arange(site.max_len, dtype=torch.float64)[:, None] * rate
        cos, sin = angle.cos(), angle.sin()
        # the sine carries the sign of the partner, so that a rotation is two products and a sum
        if pairs == "halves":
            cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        else:
            cos, sin = torch.stack((cos, cos), -1).flatten(-2), torch.stack((-sin, sin), -1).flatten(-2)
        self.register_buffer("cos", cos.float(), persistent=False)
        self.register_buffer("sin", sin.float(), persistent=False)

    def rotate(self, q_BHTK: Tensor, k_BHTK: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        if ctx.cache is None:
            cos_TR, sin_TR = self.cos[: q_BHTK.shape[2]], self.sin[: q_BHTK.shape[2]]
        else:
            cos_TR, sin_TR = self.cos[ctx.positions_T], self.sin[ctx.positions_T]
        cos_TR, sin_TR = cos_TR.to(q_BHTK.dtype), sin_TR.to(q_BHTK.dtype)
        return self.turn(q_BHTK, cos_TR, sin_TR), self.turn(k_BHTK, cos_TR, sin_TR)

    def turn(self, x_BHTK: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
        """Rotate the pairs among the first features; the others pass."""
        if self.rotated is None:
            return x_BHTK * cos_TR + partners(x_BHTK, self.pairs) * sin_TR
        x_BHTR, rest = x_BHTK[..., : self.rotated], x_BHTK[..., self.rotated :]
        return torch.cat((x_BHTR * cos_TR + partners(x_BHTR, self.pairs) * sin_TR, rest), -1)


def partners(x_BHTR: Tensor, pairs: str) -> Tensor:
    """Every feature's partner in its place."""
    if pairs == "halves":
        return x_BHTR.roll(x_BHTR.shape[-1] // 2, -1)
    return x_BHTR.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
