"""What sparsely gated networks share: a router in float32, capacities, losses that keep the load even."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.components.channels.experts import Experts
from ablate.contracts import Channel, Context, Linear, Site
from ablate.errors import within
from ablate.precision import wide


class Routed(Channel):
    """y = sum_i g_i(x) FFN_i(x) over the few experts i that `choose` takes; W_r (E, d_model) has no bias.

    With a capacity, each sequence is a group of its own: of its n tokens an expert takes `limit(n, factor)`, the
    earlier tokens first, and of one token the first choice before the second. What a token gets depends on the
    tokens before it, never on later ones, given the sequence's length. A choice beyond the capacity adds nothing.
    Decoding with a cache drops nothing, and costs are counted as if nothing were dropped. Padding is sent to no
    expert and counts nowhere.
    """

    choices = 1  # of a token
    least_capacity = 1

    def __init__(
        self,
        site: Site,
        experts: int,
        activation: str,
        gated: bool,
        dropout: float,
        balance: float,
        capacity: float | None,
        eval_capacity: float | None,
    ):
        super().__init__(site)
        who = f"channel {self.component.split('/')[-1]!r}"
        within(f"{who}: experts", experts, 1)
        within(f"{who}: dropout", dropout, 0, 1)
        within(f"{who}: balance", balance, 0)
        for name, factor in (("capacity", capacity), ("eval_capacity", eval_capacity)):
            if factor is not None:
                within(f"{who}: {name}", factor, 0)
        self.balance = balance
        self.capacity, self.eval_capacity = capacity, eval_capacity
        self.router = Linear(site.d_model, experts, bias=False)
        self.experts = Experts(site, experts, activation, gated, dropout)

    def choose(self, logits_BTE: Tensor, p_BTE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gates and indices of the chosen experts, (B, T, R), best first, and which choices count (None: all)."""
        raise NotImplementedError

    def router_input(self, x_BTD: Tensor) -> Tensor:
        return x_BTD

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        logits_BTE = self.logits(self.router_input(x_BTD))
        p_BTE = logits_BTE.softmax(-1)
        gate_BTR, chosen_BTR, kept_BTR = self.choose(logits_BTE, p_BTE)
        self.add_losses(logits_BTE, p_BTE, chosen_BTR[..., 0], ctx)
        nobody = p_BTE.shape[-1]
        if kept_BTR is not None:
            chosen_BTR = chosen_BTR.where(kept_BTR, nobody)
        if ctx.valid_BT is not None:
            chosen_BTR = chosen_BTR.where(ctx.valid_BT[..., None], nobody)
        factor = self.capacity if self.training else self.eval_capacity
        if factor is not None and ctx.cache is None and not x_BTD.is_meta:
            chosen_BTR = chosen_BTR.where(self.in_time(chosen_BTR, factor, ctx), nobody)
        x_ND, chosen_NR, gate_NR = (each.flatten(0, 1) for each in (x_BTD, chosen_BTR, gate_BTR))
        return self.experts(x_ND, chosen_NR, gate_NR, ctx).view_as(x_BTD)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """W_r x, in float32 at least, under autocast too."""
        weight = self.router.weight
        off: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if not x_BTD.is_meta:
            off = torch.autocast(x_BTD.device.type, enabled=False)
        with off:
            return F.linear(wide(x_BTD), wide(weight))

    def add_losses(self, logits_BTE: Tensor, p_BTE: Tensor, first_BT: Tensor, ctx: Context) -> None:
        """balance E sum_i f_i P_i: f_i the share of first choices that i has, P_i its mean probability."""
        if self.balance:
            share_BTE = F.one_hot(first_BT, p_BTE.shape[-1]).to(p_BTE.dtype)
            even = (mean_of_tokens(share_BTE, ctx) * mean_of_tokens(p_BTE, ctx)).sum()
            ctx.add_aux("load_balance", self.balance * p_BTE.shape[-1] * even)

    def in_time(self, chosen_BTR: Tensor, factor: float, ctx: Context) -> Tensor:
        """Which choices come before their expert's capacity is reached."""
        n_experts, length = len(self.experts), chosen_BTR.shape[1]
        lengths = [length] * len(chosen_BTR) if ctx.valid_BT is None else ctx.valid_BT.sum(1).tolist()
        limits = [self.limit(n, factor) for n in lengths]
        queue_BNE = F.one_hot(chosen_BTR.flatten(1), n_experts + 1).cumsum(1)
        place_BTR = queue_BNE.gather(-1, chosen_BTR.flatten(1)[..., None]).view_as(chosen_BTR)
        return place_BTR <= torch.tensor(limits, device=chosen_BTR.device)[:, None, None]

    def limit(self, n: int, factor: float) -> int:
        """How many of n tokens one expert takes: factor n / E rounded down, within [least_capacity, n]."""
        return max(self.least_capacity, min(n, int(n * factor / len(self.experts))))

    def idle_parameters(self) -> int:
        return self.experts.idle_parameters(min(self.choices, len(self.experts)))


def mean_of_tokens(each_BTE: Tensor, ctx: Context) -> Tensor:
    """The mean over all tokens of the batch that are no padding."""
    if ctx.valid_BT is None:
        return each_BTE.mean((0, 1))
    return ctx.zero_padding(each_BTE).sum((0, 1)) / ctx.valid_BT.sum().clamp(min=1)
