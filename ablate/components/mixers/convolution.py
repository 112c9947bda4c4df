"""The plain convolution, and the window on the past that convolutional mixers share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.contracts import Context, Linear, Mixer, Site
from ablate.errors import within
from ablate.registry import register


class Window:
    """The inputs that `kernel` taps reach, `dilation` apart.

    A causal window ends at the current step; else it is centred, and an even kernel looks one step further back
    than ahead. Out-of-range inputs and padding are zero.
    """

    def __init__(self, site: Site, kernel: int, dilation: int = 1):
        self.offsets = [j * dilation for j in range(kernel)]  # of the taps, oldest first
        self.reach = (kernel - 1) * dilation  # inputs needed besides the current one
        self.ahead = 0 if site.causal else (kernel - 1) // 2 * dilation

    def extend(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        """x with `reach` more steps around it, (B, T + reach, D): tap j of step t is row t + offsets[j]."""
        T = x_BTD.shape[1]
        x_BTD = ctx.zero_padding(x_BTD)
        past_BTD = ctx.recall()
        if past_BTD is None:
            padded_BTD = F.pad(x_BTD, (0, 0, self.reach - self.ahead, self.ahead))
        else:
            padded_BTD = torch.cat((past_BTD, x_BTD), 1)
        ctx.remember(padded_BTD[:, T:])
        return padded_BTD

    def taps(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        """All taps of every step side by side, oldest first, (B, T, kernel D)."""
        T = x_BTD.shape[1]
        padded_BTD = self.extend(x_BTD, ctx)
        return torch.cat([padded_BTD[:, offset : offset + T] for offset in self.offsets], -1)


@register("mixer", "convolution", paper="Kalchbrenner et al. 2016, arXiv:1610.10099, section 3; Gehring et al. 2017")
class Convolution(Mixer):
    """y_t = sum_j W_j x_{t - j dilation} + b, j = 0..kernel-1: a full (d_model to d_model) causal convolution.

    Out-of-range inputs are zero. Where the task sees both sides the window is centred (an even kernel looks
    one step further back than ahead). Written as one matrix on the concatenated taps, oldest first.
    Differs from the papers: the bare convolution; activation, gate and norm belong to other slots.
    """

    def __init__(self, site: Site, *, kernel: int = 3, dilation: int = 1):
        super().__init__(site)
        within("mixer 'convolution': kernel", kernel, 1)
        within("mixer 'convolution': dilation", dilation, 1)
        self.window = Window(site, kernel, dilation)
        self.taps = Linear(kernel * site.d_model, site.d_model, bias=site.bias, role="write")

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return self.taps(self.window.taps(x_BTD, ctx))
