"""Lightweight and dynamic convolutions: depthwise, with normalised weights that groups of channels share."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.components.mixers.convolution import Window
from ablate.contracts import Context, Linear, Mixer, Site
from ablate.errors import UserError, within
from ablate.registry import register


class GatedDepthwise(Mixer):
    """W_out conv(GLU(W_in x)): what the two have in common."""

    def __init__(self, site: Site, kernel: int, weight_dropout: float):
        super().__init__(site)
        name = self.component.split("/")[-1]
        within(f"mixer {name!r}: kernel", kernel, 1)
        within(f"mixer {name!r}: weight_dropout", weight_dropout, 0, 1)
        if site.d_model % site.n_heads:
            raise UserError(f"mixer {name!r}: d_model {site.d_model} is not a multiple of n_heads {site.n_heads}")
        self.n_heads = site.n_heads
        self.kernel = kernel
        self.weight_dropout = weight_dropout
        self.window = Window(site, kernel)
        self.gated = Linear(site.d_model, 2 * site.d_model, bias=site.bias)
        self.out = Linear(site.d_model, site.d_model, bias=site.bias, role="write")

    def normalise(self, logits: Tensor) -> Tensor:
        """Softmax over the taps, the last axis, then DropConnect."""
        return F.dropout(logits.softmax(-1), self.weight_dropout, self.training)


@register("mixer", "lightweight_conv", paper="Wu et al. 2019, arXiv:1901.10430, section 3.1 and figure 2b")
class LightweightConvolution(GatedDepthwise):
    """a = GLU(W_in x); y_{t,c} = sum_j softmax_j(W_{h(c)})_j a_{t-(kernel-1)+j, c}; W_out y.

    W (n_heads, kernel), Xavier-uniform; head h(c) = floor(c n_heads / d_model), groups of neighbouring channels.
    `weight_dropout` drops normalised weights in training (DropConnect; the paper takes 0.1). Inputs before the
    first are zero and keep their share of the weights. Where the task sees both sides the window is centred.
    3 d^2 + n_heads kernel weights. Differs from the paper: one kernel for all layers, where it widens with depth
    (3, 7, 15, 31...). `filters: channels` has weights for every channel, and `pointwise` a matrix (d, d) with a bias
    between convolution and W_out: both as in the code of Narang et al. 2021, 4 d^2 + (kernel + 1) d.
    """

    def __init__(
        self,
        site: Site,
        *,
        kernel: int = 7,
        filters: Literal["heads", "channels"] = "heads",
        pointwise: bool = False,
        weight_dropout: float = 0.0,
    ):
        super().__init__(site, kernel, weight_dropout)
        rows = site.n_heads if filters == "heads" else site.d_model
        self.weight = nn.Parameter(torch.empty(rows, kernel))
        self.pointwise = Linear(site.d_model, site.d_model, bias=True) if pointwise else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        padded_BTD = self.window.extend(F.glu(self.gated(x_BTD), -1), ctx)
        weights_HJ = self.normalise(self.weight)
        weights_DJ = weights_HJ.repeat_interleave(x_BTD.shape[-1] // len(weights_HJ), 0)
        y_BDT = F.conv1d(padded_BTD.transpose(1, 2), weights_DJ[:, None], groups=len(weights_DJ))
        y_BTD = y_BDT.transpose(1, 2)
        return self.out(y_BTD if self.pointwise is None else self.pointwise(y_BTD))

    def uncounted_flops(self, length: int) -> tuple[float, float]:
        # the gradient of grouped weights is counted as that of d_model x d_model weights
        d = self.out.in_features
        return 0.0, -2.0 * self.kernel * d * (d - 1) * length


@register("mixer", "dynamic_conv", paper="Wu et al. 2019, arXiv:1901.10430, section 3.2 and figure 2c")
class DynamicConvolution(GatedDepthwise):
    """A lightweight convolution whose weights are made at every step: softmax over the taps of W_Q a_t.

    a = GLU(W_in x), W_Q (n_heads kernel, d_model) without a bias; each head has a softmax of its own.
    `weight_dropout` drops normalised weights in training (the paper takes 0.1). Inputs before the first are zero and
    keep their share of the weights. Where the task sees both sides the window is centred. 3 d^2 + n_heads kernel d
    weights.
    Differs from the paper: one kernel for all layers.
    """

    def __init__(self, site: Site, *, kernel: int = 7, weight_dropout: float = 0.0):
        super().__init__(site, kernel, weight_dropout)
        self.query = Linear(site.d_model, site.n_heads * kernel, bias=False)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        T = x_BTD.shape[1]
        a_BTD = F.glu(self.gated(x_BTD), -1)
        weights_BTHJ = self.normalise(self.query(a_BTD).unflatten(-1, (self.n_heads, self.kernel)))
        padded_BTHR = self.window.extend(a_BTD, ctx).unflatten(-1, (self.n_heads, -1))
        y_BTHR = weights_BTHJ[..., :1] * padded_BTHR[:, :T]
        for j in range(1, self.kernel):  # a product of windows would copy the input once for every tap
            y_BTHR = torch.addcmul(y_BTHR, weights_BTHJ[..., j : j + 1], padded_BTHR[:, j : j + T])
        return self.out(y_BTHR.flatten(2))

    def uncounted_flops(self, length: int) -> tuple[float, float]:
        products = 2.0 * self.kernel * self.out.in_features * length
        return products, 2 * products
