"""How a sublayer joins the residual stream: the placement of its norm and the scale of its branch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ablate.contracts import Residual, Site
from ablate.registry import register


@register("residual", "pre", paper="Xiong et al. 2020, arXiv:2002.04745; Baevski and Auli 2019, arXiv:1809.10853")
class PreNorm(Residual):
    """x + f(N(x)); a final norm follows the last layer."""

    needs_final_norm = True

    def __init__(self, site: Site):
        super().__init__(site)
        self.norm = site.new_norm()

    def forward(self, x_BTD: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        return x_BTD + f(self.norm(x_BTD))


@register("residual", "post", paper="Vaswani et al. 2017, arXiv:1706.03762, section 3.1")
class PostNorm(Residual):
    """N(x + f(x)); no final norm."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.norm = site.new_norm()

    def forward(self, x_BTD: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        return self.norm(x_BTD + f(x_BTD))


@register("residual", "sandwich", paper="Ding et al. 2021 (CogView), arXiv:2105.13290, section 2.4")
class SandwichNorm(Residual):
    """x + N2(f(N1(x))); a final norm follows the last layer. Not the sandwich *ordering* of sublayers."""

    needs_final_norm = True

    def __init__(self, site: Site):
        super().__init__(site)
        self.before = site.new_norm()
        self.after = site.new_norm()

    def forward(self, x_BTD: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        return x_BTD + self.after(f(self.before(x_BTD)))


@register("residual", "none", paper="Dong, Cordonnier and Loukas 2021, arXiv:2103.03404")
class NoResidual(Residual):
    """f(N(x)): no skip connection. With `norm: none` this is f(x), the setting of the rank-collapse study."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.norm = site.new_norm()

    def forward(self, x_BTD: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        return f(self.norm(x_BTD))
