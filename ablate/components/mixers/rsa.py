"""Attention mixed with a linear recurrence."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ablate.components.mixers.attention import Attention, Score
from ablate.components.positions_relative import distances, skew
from ablate.contracts import Context, Site
from ablate.registry import register


@register("mixer", "rsa", paper="Huang et al. 2023, Encoding Recurrence into Transformers, ICLR")
class RecurrentAttention(Attention):
    """[(1 - sigmoid(mu)) softmax(Q K^T / sqrt(d_head)) + sigmoid(mu) P] V for each head, mapped back by W_O.

    P is strictly lower triangular and holds what a linear recurrence adds: P_ij = lambda^(i-j) (`regular`),
    gamma^(i-j) cos((i-j) theta) (`cos`) or gamma^(i-j) sin((i-j) theta) (`sin`), lambda = tanh(eta) and
    gamma = sigmoid(nu); `split` gives a third of the heads to each, what is left to the regular ones. mu, eta, nu and
    theta are learned for each head. Where attention sees both sides P is symmetric, P_ij of |i-j|.
    Starts from mu in U(-3, 3), eta in +-U(1, 2), nu in U(1, 2), theta = pi/4, much as an independent implementation
    does; what the paper starts from, and its shares of the heads, were not read.
    """

    def __init__(
        self,
        site: Site,
        *,
        recurrence: Literal["split", "regular", "cos", "sin"] = "split",
        score: Score = "scaled_dot",
        d_value: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__(site, score=score, d_value=d_value, dropout=dropout)
        third, heads = site.n_heads // 3, site.n_heads
        shares = {"split": (third, third), "regular": (0, 0), "cos": (heads, 0), "sin": (0, heads)}
        self.n_cos, self.n_sin = shares[recurrence]
        n_waves = self.n_cos + self.n_sin
        self.mu = nn.Parameter(torch.empty(heads))
        self.eta = nn.Parameter(torch.empty(heads - n_waves)) if heads > n_waves else None
        self.nu = nn.Parameter(torch.empty(n_waves)) if n_waves else None
        self.theta = nn.Parameter(torch.empty(n_waves)) if n_waves else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.mu, -3, 3)
        if self.eta is not None:
            nn.init.uniform_(self.eta, 1, 2)
            sign = torch.where(torch.rand_like(self.eta) < 0.5, -1.0, 1.0)
            self.eta.data.mul_(sign)
        if self.nu is not None and self.theta is not None:
            nn.init.uniform_(self.nu, 1, 2)
            nn.init.constant_(self.theta, math.pi / 4)

    def attend(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, ctx: Context) -> Tensor:
        y_BHTK = super().attend(q_BHTK, k_BHSK, v_BHSK, ctx)
        p = self.recurrence(k_BHSK.shape[2], ctx).to(v_BHSK.dtype)
        if ctx.valid_BT is not None:
            p = p * ctx.valid_BT[:, None, None, :]
        gate_H11 = self.mu.sigmoid()[:, None, None].to(v_BHSK.dtype)
        return (1 - gate_H11) * y_BHTK + gate_H11 * (p @ v_BHSK)

    def recurrence(self, S: int, ctx: Context) -> Tensor:
        """P, (H, T, S)."""
        T = len(ctx.positions_T)
        pos_S = ctx.positions_T if S == T else torch.arange(S, device=ctx.positions_T.device)
        distance_R = distances(pos_S, ctx, self.causal)
        assert distance_R is not None, "queries are the last of the keys"
        p_HTS = skew(self.powers(distance_R.abs())[:, None].expand(-1, T, -1), S)
        return p_HTS.tril(S - T) if self.causal else p_HTS

    def powers(self, distance_R: Tensor) -> Tensor:
        """The entries of P at each distance, (H, R); 0 at distance 0."""
        d_R = distance_R.clamp(min=1).to(self.mu.dtype)
        found = []
        if self.eta is not None:
            found.append(self.eta.tanh()[:, None] ** d_R)
        if self.nu is not None and self.theta is not None:
            angle_HR = self.theta[:, None] * d_R
            waves_HR = torch.cat((angle_HR[: self.n_cos].cos(), angle_HR[self.n_cos :].sin()))
            found.append(self.nu.sigmoid()[:, None] ** d_R * waves_HR)
        return torch.cat(found) * (distance_R > 0)
