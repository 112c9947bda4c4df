"""The Evolved Transformer's gate."""

from __future__ import annotations

from torch import Tensor

from ablate.contracts import Channel, Context, Linear, Site
from ablate.registry import register


@register("channel", "evolved_glu", paper="So, Liang and Le 2019, arXiv:1901.11117, figure 3; Dauphin et al. 2017")
class EvolvedGLU(Channel):
    """(Wa x) * sigmoid(Wb x), both (d_model, d_model): the first item of the evolved encoder.

    Not the gated feed-forward network `glu`, which is d_ff wide and has a third matrix.
    """

    def __init__(self, site: Site):
        super().__init__(site)
        self.value = Linear(site.d_model, site.d_model, bias=site.bias, role="write")
        self.gate = Linear(site.d_model, site.d_model, bias=site.bias)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        y_BTD: Tensor = self.value(x_BTD) * self.gate(x_BTD).sigmoid()
        return y_BTD
