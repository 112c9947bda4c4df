"""The convolutional network LeNet-5."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ablate.components.models.pixels import ImageModel
from ablate.contracts import Linear, Site
from ablate.errors import UserError, within
from ablate.registry import register


@register(
    "model",
    "lenet",
    paper="LeCun et al. 1998, Proc. IEEE 86(11), 2278-2324, section II.B (LeNet-5)",
    form="image",
    causal=False,
)
class LeNet(ImageModel):
    """For every number of `maps`: x = pool(relu(conv(x))), `kernel` x `kernel` filters and the maximum of 2 x 2
    pixels; then for every number of `units` x = relu(W x + b); softmax(W x + b).

    maps [6, 16] and units [120, 84] unless given, the paper's. Images are filled up with zeros so that a convolution
    keeps their size (the paper's 28 x 28 digits lie in 32 x 32 for the same reason); a side of one pixel is not
    pooled. Width, heads and depth do not count. The training's dropout is on the units.
    Differs from the paper: ReLU and maxima (there scaled tanh and trained averages), every map is connected to every
    map before it, the second convolution keeps the size too, a softmax in place of distances to class prototypes;
    filters start as torch's convolutions do, whatever `arch.init`.
    """

    def __init__(self, site: Site, *, maps: list[int] | None = None, units: list[int] | None = None, kernel: int = 5):
        super().__init__(site)
        maps = [6, 16] if maps is None else list(maps)
        units = [120, 84] if units is None else list(units)
        for name, values in (("maps", maps), ("units", units)):
            for value in values:
                within(f"model 'lenet': {name}", value, 1)
        within("model 'lenet': kernel", kernel, 1)
        if not maps or kernel % 2 == 0:
            wrong = "maps [] must name a number at least" if not maps else f"kernel {kernel} must be odd"
            raise UserError(f"model 'lenet': {wrong}")
        channels, *sides = self.image
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel, padding="same", bias=site.bias)
            for before, after in zip([channels, *maps[:-1]], maps, strict=True)
        )
        for _ in maps:
            sides = [max(1, side // 2) for side in sides]
        sizes = [maps[-1] * sides[0] * sides[1], *units]
        self.hidden = nn.ModuleList(Linear(before, after, bias=site.bias) for before, after in pairwise(sizes))
        self.output = Linear(sizes[-1], site.classes, bias=site.bias, role="logits")

    def logits(self, images_BCHW: Tensor) -> Tensor:  # type: ignore[override]
        x_BCHW = images_BCHW
        for convolution in self.convolutions:
            x_BCHW = convolution(x_BCHW).relu()
            x_BCHW = F.max_pool2d(x_BCHW, [min(2, side) for side in x_BCHW.shape[2:]])
        x_BF = x_BCHW.flatten(1)
        for layer in self.hidden:
            x_BF = self.dropout(layer(x_BF).relu())
        return self.output(x_BF)
