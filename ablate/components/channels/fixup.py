"""A feed-forward network with Fixup's scalars."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.components.channels.ffn import FFN, Activation
from ablate.contracts import Context, Site
from ablate.registry import register


@register("channel", "fixup_ffn", paper="Zhang, Dauphin and Ma 2019, arXiv:1901.09321, section 3 (rule 3)")
class FixupFFN(FFN):
    """W2 (act(W1 x + b) + c): a scalar before the activation and one before W2, learned, both 0 at first.

    The scalar before W1 is the residual's. Differs from the paper: W1 and W2 have bias vectors beside the scalars
    where the architecture has biases.
    """

    def __init__(
        self,
        site: Site,
        *,
        activation: Activation = "gelu",
        dropout: float = 0.0,
    ):
        super().__init__(site, activation=activation, dropout=dropout)
        self.before_activation = nn.Parameter(torch.zeros(()))
        self.before_down = nn.Parameter(torch.zeros(()))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.before_activation)
        nn.init.zeros_(self.before_down)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        hidden_BTF = self.activation(self.up(x_BTD) + self.before_activation)
        return self.down(F.dropout(hidden_BTF, self.dropout, self.training) + self.before_down)
