"""Positions that are added to the embedded tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.contracts import Context, Position, Site
from ablate.errors import within
from ablate.registry import register


@register(
    "position",
    "none",
    paper="Haviv et al. 2022, arXiv:2203.16634; Kazemnejad et al. 2023, arXiv:2305.19466",
)
class NoPosition(Position):
    """No position information: a causal mask alone lets attention tell early from late."""


@register("position", "learned", paper="Gehring et al. 2017, arXiv:1705.03122, section 3.1")
class LearnedPosition(Position):
    """x_t + P[t], with P (max_len, d_model) learned from N(0, std^2). Cannot go beyond max_len."""

    def __init__(self, site: Site, *, std: float = 0.02):
        super().__init__(site)
        within("position 'learned': std", std, 0)
        self.std = std
        self.table = nn.Parameter(torch.empty(site.max_len, site.d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table, std=self.std)

    def embed(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        if ctx.cache is None:
            return x_BTD + self.table[: x_BTD.shape[1]]
        return x_BTD + self.table[ctx.positions_T]


@register("position", "sinusoidal", paper="Vaswani et al. 2017, arXiv:1706.03762, section 3.5")
class SinusoidalPosition(Position):
    """x_t + P[t], with P[t, 2i] = sin(t / 10000^(2i/d)) and P[t, 2i+1] = cos(t / 10000^(2i/d)).

    Differs from the paper: `base` may be other than 10000; an odd d_model gets a zero in the last column.
    """

    table: Tensor

    def __init__(self, site: Site, *, base: float = 10000.0):
        super().__init__(site)
        within("position 'sinusoidal': base", base, 1)
        d = site.d_model
        rate = base ** -(torch.arange(0, d - d % 2, 2, dtype=torch.float64) / d)
        angle = torch.arange(site.max_len, dtype=torch.float64)[:, None] * rate
        waves = torch.stack((angle.sin(), angle.cos()), -1).flatten(1)
        self.register_buffer("table", F.pad(waves, (0, d % 2)).float(), persistent=False)

    def embed(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        rows = self.table[: x_BTD.shape[1]] if ctx.cache is None else self.table[ctx.positions_T]
        return x_BTD + rows.to(x_BTD.dtype)
