"""Which layer's weights each layer uses."""

from __future__ import annotations

from ablate.contracts import Sharing, Site, Tower
from ablate.errors import UserError, within
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


class ShareTower(Sharing):
    """One set of sublayer weights for all layers of one tower of an encoder-decoder, none shared in the other."""

    shares: Tower

    def __init__(self, norms: bool):
        self.norms = norms

    def functions(self, site: Site) -> list[int]:
        return [0] * site.n_layers if site.tower == self.shares else list(range(site.n_layers))

    def residuals(self, site: Site) -> list[int]:
        return self.functions(site) if self.norms else list(range(site.n_layers))


@register("sharing", "encoder", paper="Narang et al. 2021, arXiv:2102.11972, section 2.5", form="pair")
class ShareEncoder(ShareTower):
    """One set of sublayer weights for all layers of the encoder, as `all`; the decoder's layers have their own."""

    shares = "encoder"

    def __init__(self, *, norms: bool = True):
        super().__init__(norms)


@register("sharing", "decoder", paper="Narang et al. 2021, arXiv:2102.11972, section 2.5", form="pair")
class ShareDecoder(ShareTower):
    """One set of sublayer weights for all layers of the decoder, as `all`; the encoder's layers have their own."""

    shares = "decoder"

    def __init__(self, *, norms: bool = True):
        super().__init__(norms)


@register("sharing", "groups", paper="Lan et al. 2020 (ALBERT), arXiv:1909.11942, num_hidden_groups of its code")
class ShareGroups(Sharing):
    """`groups` sets of sublayer weights, each for consecutive layers: layer l of L uses set floor(l groups / L).

    One group is `all`, as many as layers is `none`. `norms` says whether the layers of a group share their norms
    too. In an encoder-decoder each tower has so many groups.
    """

    def __init__(self, *, groups: int = 2, norms: bool = True):
        within("sharing 'groups': groups", groups, 1)
        self.groups = groups
        self.norms = norms

    def functions(self, site: Site) -> list[int]:
        if self.groups > site.n_layers:
            raise UserError(f"sharing 'groups': groups {self.groups} must be at most the {site.n_layers} layers")
        group_of = [layer * self.groups // site.n_layers for layer in range(site.n_layers)]
        return [group_of.index(group) for group in group_of]

    def residuals(self, site: Site) -> list[int]:
        return self.functions(site) if self.norms else list(range(site.n_layers))
