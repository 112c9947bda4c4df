"""Which layer's weights each layer uses."""

from __future__ import annotations

from ablate.contracts import Sharing, Site
from ablate.registry import register


@register("sharing", "none", paper="Vaswani et al. 2017, arXiv:1706.03762")
class NoSharing(Sharing):
    """Every layer has weights of its own."""

    def functions(self, site: Site) -> list[int]:
        return list(range(site.n_layers))

    def residuals(self, site: Site) -> list[int]:
        return list(range(site.n_layers))


@register("sharing", "all", paper="Lan et al. 2020 (ALBERT), arXiv:1909.11942, section 3.1")
class ShareAll(Sharing):
    """One set of sublayer weights for all layers; `norms` says whether the layers share their norms too.

    Differs from the paper: `norms: false` keeps a norm for each layer, as Xue et al. 2022 (arXiv:2107.11817) do.
    """

    def __init__(self, *, norms: bool = True):
        self.norms = norms

    def functions(self, site: Site) -> list[int]:
        return [0] * site.n_layers

    def residuals(self, site: Site) -> list[int]:
        return [0] * site.n_layers if self.norms else list(range(site.n_layers))
