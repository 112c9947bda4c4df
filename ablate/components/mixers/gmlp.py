"""gMLP: a gate made of a linear map over time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.contracts import Context, Linear, Mixer, Site
from ablate.errors import UserError, within
from ablate.registry import register


class SpatialGate(Mixer):
    """u, v = split(gelu(W x)); W_o (u * (W_s norm(v) + b)), with W_s along time and a b for every position."""

    def __init__(self, site: Site, *, hidden: int | None = None, std: float = 1e-3):
        super().__init__(site)
        hidden = site.d_ff if hidden is None else hidden
        name = self.component.split("/")[-1]
        within(f"mixer {name!r}: hidden", hidden, 2)
        within(f"mixer {name!r}: std", std, 0)
        if hidden % 2:
            raise UserError(f"mixer {name!r}: hidden (d_ff unless given) {hidden} must be even, for its two halves")
        self.std = std
        self.width = hidden // 2
        self.up = Linear(site.d_model, hidden, bias=site.bias)
        self.norm = site.new_norm(self.width)
        self.over_time = nn.Parameter(torch.empty(site.max_len, site.max_len))
        self.shift = nn.Parameter(torch.empty(site.max_len))
        self.down = Linear(self.width, site.d_model, bias=site.bias, role="write")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.over_time, std=self.std)
        nn.init.ones_(self.shift)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        u_BTE, v_BTE = F.gelu(self.up(x_BTD)).chunk(2, -1)
        return self.down(u_BTE * self.gate(ctx.zero_padding(self.norm(v_BTE)), ctx))

    def gate(self, v_BTE: Tensor, ctx: Context) -> Tensor:
        raise NotImplementedError


@register("mixer", "gmlp", paper="Liu et al. 2021, arXiv:2105.08050, equations 1 to 4", causal=False)
class GMLP(SpatialGate):
    """u, v = split(gelu(W x)); W_o (u * (W_s norm(v) + b)): the gate of a position is a sum over all positions.

    W (hidden, d_model) with `hidden` d_ff unless given, W_s (max_len, max_len), b (max_len), W_o (d_model, hidden/2).
    W_s starts from N(0, std^2), near zero, and b from 1, so that the block starts as a feed-forward network.
    A shorter sequence has the first rows and columns of W_s.
    Differs from the paper: the norm is the architecture's; the size of "near zero" is chosen. Used in place of both
    sublayers, its order is `s` alone.
    """

    def gate(self, v_BTE: Tensor, ctx: Context) -> Tensor:
        T = v_BTE.shape[1]
        return self.over_time[:T, :T] @ v_BTE + self.shift[:T, None]


@register("mixer", "gmlp_causal", paper="after Liu et al. 2021, arXiv:2105.08050, equations 1 to 4")
class CausalGMLP(SpatialGate):
    """Ours, in no paper: gMLP with tril(W_s), so that the gate of a position is a sum over those before it.

    Otherwise `gmlp`. The part of W_s above the diagonal is held and never used. It looks back alone, also where the
    task sees both sides.
    """

    def gate(self, v_BTE: Tensor, ctx: Context) -> Tensor:
        T = v_BTE.shape[1]
        past_BSE = ctx.recall()
        v_BSE = v_BTE if past_BSE is None else torch.cat((past_BSE, v_BTE), 1)
        ctx.remember(v_BSE)
        S = v_BSE.shape[1]
        weights_TS = self.over_time[S - T : S, :S].tril(S - T)
        return weights_TS @ v_BSE + self.shift[S - T : S, None]

    def unneeded_flops(self, length: int) -> float:
        return float(length * (length - 1) * self.width)
