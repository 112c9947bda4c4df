"""Convolutional mixers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.contracts import Context, Linear, Mixer, Site
from ablate.errors import UserError
from ablate.registry import register


@register("mixer", "convolution", paper="Kalchbrenner et al. 2016, arXiv:1610.10099, section 3; Gehring et al. 2017")
class Convolution(Mixer):
    """y_t = sum_j W_j x_{t - j dilation} + b, j = 0..kernel-1: a full (d_model to d_model) causal convolution.

    Out-of-range inputs are zero. Where the task sees both sides the window is centred (an even kernel looks
    one step further back than ahead). Written as one matrix on the concatenated taps, oldest first.
    Differs from the papers: the bare convolution; activation, gate and norm belong to other slots.
    """

    def __init__(self, site: Site, *, kernel: int = 3, dilation: int = 1):
        super().__init__(site)
        if kernel < 1 or dilation < 1:
            raise UserError(f"mixer 'convolution': kernel {kernel} and dilation {dilation} must be at least 1")
        self.offsets = [j * dilation for j in range(kernel)]
        self.reach = (kernel - 1) * dilation  # inputs needed besides the current one
        self.ahead = 0 if site.causal else (kernel - 1) // 2 * dilation
        self.taps = Linear(kernel * site.d_model, site.d_model, bias=site.bias, role="write")

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        T = x_BTD.shape[1]
        x_BTD = ctx.zero_padding(x_BTD)
        past_BTD = ctx.recall()
        if past_BTD is None:
            padded_BTD = F.pad(x_BTD, (0, 0, self.reach - self.ahead, self.ahead))
        else:
            padded_BTD = torch.cat((past_BTD, x_BTD), 1)
        ctx.remember(padded_BTD[:, T:])
        return self.taps(torch.cat([padded_BTD[:, offset : offset + T] for offset in self.offsets], -1))
