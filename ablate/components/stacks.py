"""How the layers are run, in depth."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ablate.contracts import Context, Layer, Stack
from ablate.registry import register


@register("stack", "plain", paper="Vaswani et al. 2017, arXiv:1706.03762, section 3.1")
class PlainStack(Stack):
    """Layer after layer."""

    def forward(self, x_BTD: Tensor, layers: Sequence[Layer], ctx: Context) -> Tensor:
        for index, layer in enumerate(layers):
            x_BTD = self.run(x_BTD, layer, index, ctx)
        return x_BTD
