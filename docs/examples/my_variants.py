"""Components of your own, in a file of your own: `plugins: [my_variants.py]` in a grid makes them known.

ablate list mixer --plugin my_variants.py
ablate check average --plugin my_variants.py
"""

from __future__ import annotations

from torch import Tensor

from ablate import Context, Linear, Mixer, Site, register


@register("mixer", "average", paper="Zhang, Xiong and Su 2018, arXiv:1805.00631, equation 1")
class AverageMixer(Mixer):
    """y_t = W_O (1/t) sum_{s<=t} W_V x_s: attention whose weights are all equal. Keeps one sum while decoding.

    Differs from the paper: the bare average; its gate and feed-forward layer belong to other slots. `width` is
    the dimension of the average, d_model unless given.
    """

    def __init__(self, site: Site, *, width: int | None = None):
        super().__init__(site)
        width = width or site.d_model
        self.value = Linear(site.d_model, width, bias=site.bias)
        self.out = Linear(width, site.d_model, bias=site.bias, role="write")

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        total_BTD = self.value(x_BTD).cumsum(1)
        if (past_BD := ctx.recall()) is not None:
            total_BTD = total_BTD + past_BD[:, None]
        ctx.remember(total_BTD[:, -1])
        return self.out(total_BTD / (ctx.positions_T[:, None] + 1))
