"""Norms over the last axis. Statistics are taken in float32 whatever the input's type."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.contracts import Norm
from ablate.errors import within
from ablate.registry import register


@register("norm", "layernorm", paper="Ba, Kiros and Hinton 2016, arXiv:1607.06450")
class LayerNorm(Norm):
    """gamma (x - mean) / sqrt(var + eps) + beta, with the biased variance of the last axis; 2d parameters."""

    def __init__(self, d: int, *, eps: float = 1e-5, shift: bool = True):
        super().__init__(d)
        within("norm 'layernorm': eps", eps, 0)
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(d))
        self.shift = nn.Parameter(torch.zeros(d)) if shift else None

    def reset_parameters(self) -> None:
        nn.init.ones_(self.gain)
        if self.shift is not None:
            nn.init.zeros_(self.shift)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.gain.shape, self.gain, self.shift, self.eps)


@register("norm", "rmsnorm", paper="Zhang and Sennrich 2019, arXiv:1910.07467, equation 4")
class RMSNorm(Norm):
    """gamma x / sqrt(mean(x^2) + eps): no centring, no shift; d parameters."""

    def __init__(self, d: int, *, eps: float = 1e-6):
        super().__init__(d)
        within("norm 'rmsnorm': eps", eps, 0)
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(d))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.gain)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        return F.rms_norm(wide, self.gain.shape, self.gain.to(wide.dtype), self.eps).to(x.dtype)


@register("norm", "none", paper="the absence of normalisation, as in Zhang et al. 2019, arXiv:1901.09321")
class NoNorm(Norm):
    """x, unchanged."""

    def forward(self, x: Tensor) -> Tensor:
        return x
