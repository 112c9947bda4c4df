"""The token-mixing MLP of MLP-Mixer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ablate.contracts import Context, Linear, Mixer, Site
from ablate.errors import within
from ablate.registry import register


@register("mixer", "mlp_mixer", paper="Tolstikhin et al. 2021, arXiv:2105.01601, equation 1", causal=False)
class MLPMixer(Mixer):
    """W_2 gelu(W_1 x^T + b_1) + b_2, transposed back: one MLP over time, the same for every feature.

    W_1 (hidden, max_len), W_2 (max_len, hidden); `hidden` is d_model / 2 unless given, as in the paper's models.
    A shorter sequence has the first columns of W_1 and rows of W_2, as if zeros followed it. The norm before it and
    the residual around it are the architecture's (`pre`).
    """

    def __init__(self, site: Site, *, hidden: int | None = None):
        super().__init__(site)
        hidden = max(1, site.d_model // 2) if hidden is None else hidden
        within("mixer 'mlp_mixer': hidden", hidden, 1)
        self.up = Linear(site.max_len, hidden, bias=site.bias)
        self.down = Linear(hidden, site.max_len, bias=site.bias, role="write")

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        T = x_BTD.shape[1]
        x_BDT = ctx.zero_padding(x_BTD).transpose(1, 2)
        hidden_BDF = F.gelu(F.linear(x_BDT, self.up.weight[:, :T], self.up.bias))
        bias_T = None if self.down.bias is None else self.down.bias[:T]
        return F.linear(hidden_BDF, self.down.weight[:T], bias_T).transpose(1, 2)
