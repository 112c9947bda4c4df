"""Mixing by Fourier transforms. None exists of 16-bit numbers: they are widened."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ablate.contracts import Context, Mixer, Site
from ablate.precision import wide
from ablate.registry import register


def transform_flops(length: int, *sizes: int) -> float:
    """Of fast Fourier transforms of complex numbers, 5 N log2 N: over axes of these sizes, of `length` tokens of
    the last size."""
    return 5 * sum(map(math.log2, sizes)) * sizes[-1] * length


@register("mixer", "fnet", paper="Lee-Thorp et al. 2022, arXiv:2105.03824, equation 3", causal=False)
class FNet(Mixer):
    """Re(F_n x F_d): the real part of the unnormalised discrete Fourier transforms over time and features.

    No parameters. Outputs grow as sqrt(n d): a norm has to follow or precede it. Every output depends on all
    positions and on their number, so that padding is refused.
    """

    def __init__(self, site: Site):
        super().__init__(site)
        self.d_model = site.d_model

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        ctx.refuse_padding("mixer 'fnet'")
        return torch.fft.fft2(wide(x_BTD)).real.to(x_BTD.dtype)

    def uncounted_flops(self, length: int) -> tuple[float, float]:
        flops = transform_flops(length, length, self.d_model)
        return flops, flops


@register("mixer", "fnet_causal", paper="after Lee-Thorp et al. 2022, arXiv:2105.03824, equation 3")
class CausalFNet(Mixer):
    """Ours, in no paper: Re(tril(F_n) x F_d) / sqrt(n), n = max_len: FNet whose time transform leaves out the future.

    F_n[t, s] = exp(-2 pi i t s / n); shorter sequences have its first rows and columns. A product of masked
    matrices, quadratic in time, without parameters. It looks back alone, also where the task sees both sides.
    """

    cosines: Tensor
    sines: Tensor

    def __init__(self, site: Site):
        super().__init__(site)
        self.d_model = site.d_model
        n = site.max_len
        t_N = torch.arange(n)
        # t s is reduced to less than one turn while it is whole
        angle_NN = (t_N[:, None] * t_N % n).double() * (2 * math.pi / n)
        for name, wave_NN in (("cosines", angle_NN.cos()), ("sines", angle_NN.sin())):
            past_NN = (wave_NN / math.sqrt(n)).tril().to(torch.get_default_dtype())
            self.register_buffer(name, past_NN, persistent=False)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        T = x_BTD.shape[1]
        z_BSD = torch.fft.fft(wide(x_BTD))
        past_BSD = ctx.recall()
        if past_BSD is not None:
            z_BSD = torch.cat((past_BSD, z_BSD), 1)
        ctx.remember(z_BSD)
        S = z_BSD.shape[1]
        cosines_TS, sines_TS = (wave[S - T : S, :S].to(z_BSD.real.dtype) for wave in (self.cosines, self.sines))
        return (cosines_TS @ z_BSD.real + sines_TS @ z_BSD.imag).to(x_BTD.dtype)

    def uncounted_flops(self, length: int) -> tuple[float, float]:
        flops = transform_flops(length, self.d_model)
        return flops, flops

    def unneeded_flops(self, length: int) -> float:
        return 2.0 * length * (length - 1) * self.d_model
