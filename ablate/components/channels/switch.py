"""The Switch layer: a mixture of experts with one expert a token."""

from __future__ import annotations

import torch
from torch import Tensor

from ablate.components.channels.ffn import Activation
from ablate.components.channels.routing import Routed, mean_of_tokens
from ablate.contracts import Context, Linear, Site
from ablate.errors import within
from ablate.precision import wide
from ablate.registry import register


@register("channel", "switch", paper="Fedus, Zoph and Shazeer 2021, arXiv:2101.03961, section 2.1, equations 1 to 6")
class Switch(Routed):
    """y = p_i(x) FFN_i(x), i the expert with the largest p = softmax(W_r x); p_i is not renormalised.

    Auxiliary loss `balance` E sum_i f_i P_i over the batch: f_i the share of tokens sent to i (before any is
    dropped), P_i the mean of p_i. `z_loss` mean(logsumexp(W_r x)^2) is added where it is set (Zoph et al. 2022,
    arXiv:2202.08906, equation 5, who advise 1e-3). The router computes in float32. `dropout` is on the experts'
    hidden layers (the paper fine-tunes with 0.4). `experts` ffn's with 2 d_model d_ff parameters each, glu's of the
    same size where `gated`; E (2 d_model d_ff + d_model).

    Differs from the paper: nothing is dropped unless `capacity` (training; 1.0 to 1.25 there) or `eval_capacity`
    (2.0 there) is given: then an expert takes capacity n / E of a sequence's n tokens, rounded down, at least one,
    the earlier ones first. `jitter` multiplies what the router reads by U(1 - jitter, 1 + jitter) in training; 0
    unless given, 0.01 there. `init_scale` s multiplies the variance that `arch.init` gives the router's and the
    experts' matrices; 1 unless given, 0.1 there and in all of the model. Every layer it is put in is one; there
    every other.
    """

    def __init__(
        self,
        site: Site,
        *,
        experts: int = 4,
        activation: Activation = "gelu",
        gated: bool = False,
        dropout: float = 0.0,
        balance: float = 0.01,
        z_loss: float = 0.0,
        jitter: float = 0.0,
        init_scale: float = 1.0,
        capacity: float | None = None,
        eval_capacity: float | None = None,
    ):
        super().__init__(site, experts, activation, gated, dropout, balance, capacity, eval_capacity)
        within("channel 'switch': z_loss", z_loss, 0)
        within("channel 'switch': jitter", jitter, 0, 1)
        within("channel 'switch': init_scale", init_scale, 0)
        self.z_loss = z_loss
        self.jitter = jitter
        for module in self.modules():
            if isinstance(module, Linear):
                module.gain = init_scale**0.5

    def router_input(self, x_BTD: Tensor) -> Tensor:
        if not (self.training and self.jitter):
            return x_BTD
        x_BTD = wide(x_BTD)
        return x_BTD * torch.empty_like(x_BTD).uniform_(1 - self.jitter, 1 + self.jitter)

    def choose(self, logits_BTE: Tensor, p_BTE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        best = p_BTE.max(-1, keepdim=True)
        return best.values, best.indices, None

    def add_losses(self, logits_BTE: Tensor, p_BTE: Tensor, first_BT: Tensor, ctx: Context) -> None:
        super().add_losses(logits_BTE, p_BTE, first_BT, ctx)
        if self.z_loss:
            square_BT1 = logits_BTE.logsumexp(-1, keepdim=True).square()
            ctx.add_aux("router_z", self.z_loss * mean_of_tokens(square_BT1, ctx).sum())
