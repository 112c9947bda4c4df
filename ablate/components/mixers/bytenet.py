"""ByteNet's residual block."""

from __future__ import annotations

from torch import Tensor

from ablate.components.mixers.convolution import Window
from ablate.contracts import Context, Linear, Mixer, Site
from ablate.errors import within
from ablate.registry import register


@register("mixer", "bytenet", paper="Kalchbrenner et al. 2016, arXiv:1610.10099, section 3.6 and figure 3")
class ByteNet(Mixer):
    """relu, 1x1 d to d/2, norm, relu, convolution of dilation r, norm, relu, 1x1 d/2 to d.

    r = 2^(layer mod cycle): 1, 2, 4, 8, 16 repeated. The convolution looks back alone in a causal model, else to
    both sides. d^2 + kernel d^2 / 4 weights. An odd d_model is halved downwards.
    Differs from the paper: the block's first norm and its residual are the architecture's residual (use `pre`);
    norms are the architecture's; details are from general knowledge of the paper.
    """

    def __init__(self, site: Site, *, kernel: int = 3, cycle: int = 5):
        super().__init__(site)
        within("mixer 'bytenet': kernel", kernel, 1)
        within("mixer 'bytenet': cycle", cycle, 1)
        half = max(1, site.d_model // 2)
        self.window = Window(site, kernel, 2 ** (site.layer % cycle))
        self.narrow = Linear(site.d_model, half, bias=site.bias)
        self.before = site.new_norm(half)
        self.taps = Linear(kernel * half, half, bias=site.bias)
        self.after = site.new_norm(half)
        self.widen = Linear(half, site.d_model, bias=site.bias, role="write")

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        y_BTE = self.before(self.narrow(x_BTD.relu())).relu()
        y_BTE = self.after(self.taps(self.window.taps(y_BTE, ctx))).relu()
        return self.widen(y_BTE)
