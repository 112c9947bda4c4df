"""Expert networks: many feed-forward networks of which each token is sent through a few."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ablate.components.channels.ffn import FFN, GLU
from ablate.contracts import Context, Site


class Experts(nn.ModuleList):
    """E feed-forward networks, the `ffn` or `glu` component each; a token runs through its chosen ones alone.

    Tokens are sorted by expert, so that each network sees its tokens in one piece; one that nobody chose runs on
    no tokens, and its gradient is zero. R is the number of choices of a token.
    """

    def __init__(self, site: Site, experts: int, activation: str, gated: bool, dropout: float):
        kind = GLU if gated else FFN
        super().__init__(
            kind(site, activation=activation, dropout=dropout)  # type: ignore[arg-type]
            for _ in range(experts)
        )

    def forward(self, x_ND: Tensor, chosen_NR: Tensor, gate_NR: Tensor, ctx: Context) -> Tensor:
        """The gated sum of the chosen experts' outputs; a choice of E, one past the last, is none."""
        n_tokens, n_choices = chosen_NR.shape
        order, sizes = self.dispatch(chosen_NR.flatten())
        parts = x_ND[order // n_choices].split(sizes)
        y_MD = torch.cat([expert(part, ctx) for expert, part in zip(self, parts, strict=True)])
        y_ND = y_MD.new_zeros(n_tokens * n_choices, y_MD.shape[-1]).index_copy(0, order, y_MD)
        return (y_ND.view(n_tokens, n_choices, -1) * gate_NR[..., None].to(y_MD.dtype)).sum(1)

    def dispatch(self, chosen_N: Tensor) -> tuple[Tensor, list[int]]:
        """The choices in the order of their experts, without those that are none, and how many each expert has."""
        n_experts, total = len(self), chosen_N.numel()
        if chosen_N.is_meta:  # where nobody chooses, all are equally popular
            sizes = [(total + e) // n_experts for e in range(n_experts)]
            return torch.arange(total, device=chosen_N.device), sizes
        sizes = torch.bincount(chosen_N, minlength=n_experts + 1)[:n_experts].tolist()
        return chosen_N.argsort(stable=True)[: sum(sizes)], sizes

    def idle_parameters(self, choices: int) -> int:
        """Parameters of the experts that a token with so many choices does not use."""
        return (len(self) - choices) * sum(parameter.numel() for parameter in self[0].parameters())
