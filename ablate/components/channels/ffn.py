"""Position-wise feed-forward networks, plain and gated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.contracts import Channel, Context, Linear, Site
from ablate.errors import within
from ablate.registry import register

Activation = Literal["relu", "gelu", "gelu_tanh", "swish", "elu", "selu", "sigmoid", "softplus", "identity"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,  # x Phi(x), Hendrycks and Gimpel 2016, arXiv:1606.08415
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),  # the approximation of GPT-2, T5 and Narang et al.
    "swish": F.silu,  # x sigmoid(x), Ramachandran et al. 2017, arXiv:1710.05941
    "elu": F.elu,  # Clevert et al. 2015, arXiv:1511.07289, alpha = 1
    "selu": F.selu,  # Klambauer et al. 2017, arXiv:1706.02515
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,  # log(1 + e^x), linear above x = 20
    "identity": lambda x: x,
}


@register(
    "channel",
    "ffn",
    paper="Vaswani et al. 2017, arXiv:1706.03762, equation 2; Narang et al. 2021, arXiv:2102.11972 (activations)",
)
class FFN(Channel):
    """W2 act(W1 x + b1) + b2, with W1 (d_ff, d_model).

    Differs from the paper: any activation, exact GELU unless said otherwise; biases only where the
    architecture has them; dropout on the hidden layer is an option, off by default.
    """

    def __init__(
        self,
        site: Site,
        *,
        activation: Activation = "gelu",
        dropout: float = 0.0,
    ):
        super().__init__(site)
        within("channel 'ffn': dropout", dropout, 0, 1)
        self.activation = ACTIVATIONS[activation]
        self.up = Linear(site.d_model, site.d_ff, bias=site.bias)
        self.down = Linear(site.d_ff, site.d_model, bias=site.bias, role="write")
        self.dropout = dropout

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        hidden_BTF = self.activation(self.up(x_BTD))
        return self.down(F.dropout(hidden_BTF, self.dropout, self.training))


@register("channel", "glu", paper="Shazeer 2020, arXiv:2002.05202, equations 5 and 6; Dauphin et al. 2017")
class GLU(Channel):
    """W2 (act(Wg x) * (Wu x)), three matrices; GLU with sigmoid, ReGLU, GEGLU, SwiGLU, bilinear with identity.

    `hidden: two_thirds` makes it floor(2 d_ff / 3) wide, so that parameters and FLOPs are those of a plain ffn
    of d_ff (3072 -> 2048 as in the paper); `multiple_of_8` rounds that up to a multiple of 8, which fast kernels
    want and which has more parameters by up to 7 in every 2 d_ff / 3; `full` takes d_ff as it is.
    """

    def __init__(
        self,
        site: Site,
        *,
        activation: Activation = "sigmoid",
        hidden: Literal["two_thirds", "multiple_of_8", "full"] = "two_thirds",
        dropout: float = 0.0,
    ):
        super().__init__(site)
        within("channel 'glu': dropout", dropout, 0, 1)
        self.activation = ACTIVATIONS[activation]
        width = site.d_ff if hidden == "full" else max(1, 2 * site.d_ff // 3)
        if hidden == "multiple_of_8":
            width += -width % 8
        self.gate = Linear(site.d_model, width, bias=site.bias)
        self.up = Linear(site.d_model, width, bias=site.bias)
        self.down = Linear(width, site.d_model, bias=site.bias, role="write")
        self.dropout = dropout

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        hidden_BTF = self.activation(self.gate(x_BTD)) * self.up(x_BTD)
        return self.down(F.dropout(hidden_BTF, self.dropout, self.training))
