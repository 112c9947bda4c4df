"""The multilayer perceptron on pixels."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from ablate.components.models.pixels import ImageModel
from ablate.contracts import Linear, Site
from ablate.registry import register

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


@register(
    "model",
    "mlp",
    paper="Rumelhart, Hinton and Williams 1986; LeCun et al. 1998, Proc. IEEE 86(11), section III.C.4",
    form="image",
    causal=False,
)
class MLP(ImageModel):
    """h_0 = the pixels, h_i = f(W_i h_{i-1} + b_i) for `depth` hidden layers of d_ff units, softmax(W h + b).

    It knows nothing of which pixels are neighbours. C H W d_ff + (depth - 1) d_ff^2 + d_ff classes weights, and the
    biases; the width of the stream and the heads do not count. The training's dropout is on every hidden layer.
    Differs from the papers: `activation` relu unless given (there sigmoids and tanh), loss log-likelihood.
    """

    def __init__(self, site: Site, *, activation: Literal["relu", "tanh", "gelu"] = "relu"):
        super().__init__(site)
        sizes = [math.prod(self.image), *[site.d_ff] * site.n_layers]
        self.hidden = nn.ModuleList(Linear(before, after, bias=site.bias) for before, after in pairwise(sizes))
        self.activation = ACTIVATIONS[activation]()
        self.output = Linear(sizes[-1], site.classes, bias=site.bias, role="logits")

    def logits(self, images_BCHW: Tensor) -> Tensor:  # type: ignore[override]
        x_BF = images_BCHW.flatten(1)
        for layer in self.hidden:
            x_BF = self.dropout(self.activation(layer(x_BF)))
        return self.output(x_BF)
