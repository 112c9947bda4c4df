"""Positions that are added to the embedded tokens."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.contracts import Context, Linear, Position, Site
from ablate.errors import UserError, within
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

    `style: t2t` is what the authors' released code (Tensor2Tensor), Mesh TensorFlow and fairseq compute instead:
    frequencies base^(-i / (d/2 - 1)), i = 0..d/2-1, which reach 1/base; all sines first, then all cosines.
    Differs from the paper: `base` may be other than 10000; an odd d_model gets a zero in the last column.
    """

    table: Tensor

    def __init__(self, site: Site, *, base: float = 10000.0, style: Literal["vaswani", "t2t"] = "vaswani"):
        super().__init__(site)
        within("position 'sinusoidal': base", base, 1)
        d = site.d_model
        rate = frequencies(d, base)
        if style == "t2t":
            rate = base ** -(torch.arange(d // 2, dtype=torch.float64) / max(d // 2 - 1, 1))
        angle = torch.arange(site.max_len, dtype=torch.float64)[:, None] * rate
        waves = (
            sines(angle, d) if style == "vaswani" else F.pad(torch.cat((angle.sin(), angle.cos()), -1), (0, d % 2))
        )
        self.register_buffer("table", waves.float(), persistent=False)

    def embed(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        rows = self.table[: x_BTD.shape[1]] if ctx.cache is None else self.table[ctx.positions_T]
        return x_BTD + rows.to(x_BTD.dtype)


def frequencies(d: int, base: float = 10000.0) -> Tensor:
    """base^(-2i/d) for i = 0..floor(d/2)-1, in float64."""
    return base ** -(torch.arange(0, d - d % 2, 2, dtype=torch.float64) / d)


def sines(angle: Tensor, d: int) -> Tensor:
    """(..., floor(d/2)) angles -> (..., d): the sine and cosine of each beside each other, zero in an odd last."""
    return F.pad(torch.stack((angle.sin(), angle.cos()), -1).flatten(-2), (0, d % 2))


@register("position", "learned_sinusoidal", paper="Wang et al. 2021, On Position Embeddings in BERT, ICLR")
class LearnedSinusoidalPosition(Position):
    """x_t + P[t], with P[t, 2i] = sin(w_i t) and P[t, 2i+1] = cos(w_i t), the frequencies w in R^(d/2) learned.

    Starts from w_i = 10000^(-2i/d), where it is the fixed sinusoid. w_i t is computed in float32 at least. An odd
    d_model gets a zero in the last column. Differs from the paper: the frequencies have the learning rate of all
    other parameters.
    """

    def __init__(self, site: Site):
        super().__init__(site)
        self.d_model = site.d_model
        self.omega = nn.Parameter(torch.empty(site.d_model // 2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.omega.data.copy_(frequencies(self.d_model))

    def embed(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        angle_TI = ctx.positions_T[:, None].to(self.omega.dtype) * self.omega
        return x_BTD + sines(angle_TI, self.d_model).to(x_BTD.dtype)


@register("position", "binary", paper="Kazemnejad 2019, Transformer Architecture: The Positional Encoding (essay)")
class BinaryPosition(Position):
    """Adds what is made of the m = ceil(log2 max_len) binary digits of t, the most significant first: b(t).

    `projected`: x_t + W b(t), W (d_model, m). `concatenated`: W [x_t; b(t)] + bias, W (d_model, d_model + m).
    `tiled`: x_t + s(t), s the digits as -1 and +1, repeated as often as they fit into d_model, then zeros.
    Ours, in no paper: the essay shows the digits to motivate sinusoids and does not say how they enter a model.
    """

    digits: Tensor

    def __init__(self, site: Site, *, how: Literal["projected", "concatenated", "tiled"] = "projected"):
        super().__init__(site)
        m, d = max(1, (site.max_len - 1).bit_length()), site.d_model
        digits = torch.arange(site.max_len)[:, None] >> torch.arange(m - 1, -1, -1) & 1
        self.how = how
        if how == "tiled":
            if m > d:
                raise UserError(
                    f"position 'binary': how 'tiled' needs d_model of {m} or more, not {d}, to tell apart"
                )
            digits = F.pad((2 * digits - 1).repeat(1, d // m), (0, d % m))
        elif how == "projected":
            self.project = Linear(m, d, bias=False)
        else:
            self.project = Linear(d + m, d, bias=site.bias)
        self.register_buffer("digits", digits.float(), persistent=False)

    def embed(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        rows = self.digits[: x_BTD.shape[1]] if ctx.cache is None else self.digits[ctx.positions_T]
        rows = rows.to(x_BTD.dtype)
        if self.how == "tiled":
            return x_BTD + rows
        if self.how == "projected":
            return x_BTD + self.project(rows)
        y_BTD: Tensor = self.project(torch.cat((x_BTD, rows.expand(len(x_BTD), -1, -1)), -1))
        return y_BTD
