"""Gated convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.components.mixers.convolution import Window
from ablate.contracts import Context, Linear, Mixer, Site
from ablate.errors import within
from ablate.registry import register


@register("mixer", "gated_conv", paper="Dauphin et al. 2017, arXiv:1612.08083, equation 1; Gehring et al. 2017")
class GatedConvolution(Mixer):
    """(X * W + b) sigmoid(X * V + c): a causal convolution to 2 d_model channels, half of which gate the other.

    kernel 2 d_model^2 weights, and 2 d_model biases where the architecture has any. Where the task sees both sides
    the window is centred. `weight_norm`: each output's weights are g v / |v|, with g = |v| at first (Salimans and
    Kingma 2016). The matrix starts with twice the init's deviation, N(0, 4 / (kernel d_model)) of `lecun`: what
    Gehring et al. 2017, section 3.5, give weights before a gate.
    Differs from the papers: residual, its factor sqrt(1/2), and attention belong to other slots; no bottleneck.
    """

    def __init__(self, site: Site, *, kernel: int = 3, weight_norm: bool = False):
        super().__init__(site)
        within("mixer 'gated_conv': kernel", kernel, 1)
        self.window = Window(site, kernel)
        self.taps = Linear(kernel * site.d_model, 2 * site.d_model, bias=site.bias, gain=2.0)
        self.length = nn.Parameter(torch.empty(2 * site.d_model)) if weight_norm else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.length is not None:
            with torch.no_grad():
                self.length.copy_(self.taps.weight.norm(dim=1))

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        taps_BTE = self.window.taps(x_BTD, ctx)
        if self.length is None:
            return F.glu(self.taps(taps_BTE), -1)
        weight = self.taps.weight * (self.length / self.taps.weight.norm(dim=1))[:, None]
        return F.glu(F.linear(taps_BTE, weight, self.taps.bias), -1)
