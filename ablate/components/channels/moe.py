"""The mixture of experts with two experts a token."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ablate.components.channels.ffn import Activation
from ablate.components.channels.routing import Routed
from ablate.contracts import Site
from ablate.errors import within
from ablate.registry import register


@register(
    "channel",
    "mixture_of_experts",
    paper="Shazeer et al. 2018, arXiv:1811.02084; Lepikhin et al. 2020, arXiv:2006.16668 (GShard), section 2.2",
)
class MixtureOfExperts(Routed):
    """y = g_1 FFN_1(x) + g_2 FFN_2(x), the two experts with the largest p = softmax(W_r x); g = p / (p_1 + p_2).

    With `second: random`, in training the second expert counts with probability min(1, g_2 / second_threshold);
    g_1 stays as it is. In evaluation both always count. Auxiliary loss `balance` E sum_i f_i P_i over the batch:
    f_i the share of tokens whose first choice is i, P_i the mean of p_i. The router computes in float32. `experts`
    ffn's with 2 d_model d_ff parameters each, glu's of the same size where `gated`; E (2 d_model d_ff + d_model).

    Differs from the papers: nothing is dropped unless `capacity` (training; 1.25 there) or `eval_capacity` (2.0
    there) is given: then an expert takes max(4, min(n, capacity n / E)) of a sequence's n tokens. Ours, in no
    paper: the queue goes by position, then by choice; theirs puts all first choices of a group before all second
    ones, so that later tokens decide what earlier ones lose. Groups are sequences, where theirs are 1,024 tokens.
    The second expert is never left to chance in evaluation. No 1e-9 under p_1 + p_2. With one expert, that one.
    `noise` is the deviation of Gaussian noise on the logits in training, as in WideNet (Xue et al. 2022,
    arXiv:2107.11817). Weight decay is on each expert's matrices, whether it was chosen or not.
    """

    choices = 2
    least_capacity = 4

    def __init__(
        self,
        site: Site,
        *,
        experts: int = 4,
        activation: Activation = "gelu",
        gated: bool = False,
        dropout: float = 0.0,
        balance: float = 0.01,
        second: Literal["random", "all"] = "random",
        second_threshold: float = 0.2,
        noise: float = 0.0,
        capacity: float | None = None,
        eval_capacity: float | None = None,
    ):
        super().__init__(site, experts, activation, gated, dropout, balance, capacity, eval_capacity)
        within("channel 'mixture_of_experts': second_threshold", second_threshold, 0, 1)
        within("channel 'mixture_of_experts': noise", noise, 0)
        self.threshold = second_threshold if second == "random" else 0.0
        self.noise = noise

    def logits(self, x_BTD: Tensor) -> Tensor:
        logits_BTE = super().logits(x_BTD)
        if self.training and self.noise:
            logits_BTE = logits_BTE + self.noise * torch.randn_like(logits_BTE)
        return logits_BTE

    def choose(self, logits_BTE: Tensor, p_BTE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        best = logits_BTE.topk(min(self.choices, logits_BTE.shape[-1]), -1)
        gate_BTR = best.values.softmax(-1)
        if not (self.training and self.threshold and gate_BTR.shape[-1] == 2):
            return gate_BTR, best.indices, None
        chance_BTR = torch.rand_like(gate_BTR)
        kept_BTR = chance_BTR * self.threshold < gate_BTR
        kept_BTR[..., 0] = True
        return gate_BTR, best.indices, kept_BTR
