"""Residuals that scale the branch or the stream, so that deep towers train: DeepNorm, ReZero, Fixup."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ablate.contracts import Residual, Site
from ablate.errors import UserError
from ablate.registry import register


def deepnorm_constants(site: Site) -> tuple[float, float]:
    """alpha and beta of a tower with n sublayers: n^(1/4) and (4 n)^(-1/4).

    n is 2N of an encoder and 2M of a decoder alone, 3M of a decoder with cross-attention. The encoder of an
    encoder-decoder has 0.81 (N^4 M)^(1/16) and 0.87 (N^4 M)^(-1/16).
    """
    N, M = site.encoder_layers, site.decoder_layers
    if site.tower == "encoder":
        return 0.81 * (N**4 * M) ** (1 / 16), 0.87 * (N**4 * M) ** (-1 / 16)
    n = 3 * M if site.tower == "decoder" else site.sublayers
    return n**0.25, (4 * n) ** -0.25


@register("residual", "deepnorm", paper="Wang et al. 2022, arXiv:2203.00555, figure 2 (alpha, beta)")
class DeepNorm(Residual):
    """N(alpha x + f(x)), no final norm; alpha is a constant of the tower's depth, see `deepnorm_constants`.

    Its initialisation, which has the beta, is init `deepnorm`.

    Differs from the paper: in a tower alone the sublayers count, two to a layer in the paper, whatever the order
    says; in an encoder-decoder N and M are layers, as in the paper, whatever they hold.
    """

    def __init__(self, site: Site):
        super().__init__(site)
        self.alpha = deepnorm_constants(site)[0]
        self.norm = site.new_norm()

    def forward(self, x_BTD: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        return self.norm(self.alpha * x_BTD + f(x_BTD))


@register("residual", "rezero", paper="Bachlechner et al. 2020, arXiv:2003.04887, equation 7")
class ReZero(Residual):
    """x + a f(N(x)), a learned scalar that starts at 0; a final norm follows the last layer.

    With `norm: none` it is the paper's x + a f(x); with a norm ReZero + LayerNorm or ReZero + RMSNorm, as Narang
    et al. 2021 have it. `granularity` says whether every sublayer has a scalar of its own, as in the mesh code, or
    all sublayers of a layer share one, as in the authors' package.
    """

    needs_final_norm = True

    def __init__(self, site: Site, *, granularity: Literal["sublayer", "layer"] = "sublayer"):
        super().__init__(site)
        self.shared = granularity == "layer"
        self.norm = site.new_norm()
        self.owner: list[ReZero] = []  # in a list, so that its scalar stays its own
        self.scale: nn.Parameter | None = nn.Parameter(torch.zeros(()))

    def follow(self, first: Residual) -> None:
        if self.shared:
            assert isinstance(first, ReZero)
            self.scale, self.owner = None, [first]

    def reset_parameters(self) -> None:
        if self.scale is not None:
            nn.init.zeros_(self.scale)

    def forward(self, x_BTD: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        scale = self.owner[0].scale if self.owner else self.scale
        assert scale is not None
        return x_BTD + scale * f(self.norm(x_BTD))


@register("residual", "fixup", paper="Zhang, Dauphin and Ma 2019, arXiv:1901.09321, section 3 (rule 3)")
class Fixup(Residual):
    """x + s f(x + b): a learned scalar s that starts at 1, one b that starts at 0, and no norm.

    b stands before the branch's first linear layers. The scalars before its activation and before its last linear
    layer belong to the branch: channel `fixup_ffn`, mixers `fixup_attention` and `fixup_cross`. The initialisation
    that makes it work without norms is init `fixup`.
    """

    beside: ClassVar[dict[str, Any]] = {"norm": "none"}

    def __init__(self, site: Site):
        super().__init__(site)
        if site.norm.name != "none":
            raise UserError(
                f"residual 'fixup' does without normalisation, and norm {site.norm.name!r} contradicts it: "
                "set arch.norm to none"
            )
        self.scale = nn.Parameter(torch.ones(()))
        self.shift = nn.Parameter(torch.zeros(()))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.shift)

    def forward(self, x_BTD: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        return x_BTD + self.scale * f(x_BTD + self.shift)


@register("residual", "scaled", paper="Gehring et al. 2017 (ConvS2S), arXiv:1705.03122, section 3.5")
class ScaledResidual(Residual):
    """(x + f(N(x))) sqrt(1/2), which keeps the variance of the stream; a final norm follows the last layer.

    Differs from the paper: it has weight normalisation, and no N; with `norm: none` there is none here either.
    """

    needs_final_norm = True

    def __init__(self, site: Site):
        super().__init__(site)
        self.norm = site.new_norm()

    def forward(self, x_BTD: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        return (x_BTD + f(self.norm(x_BTD))) * math.sqrt(0.5)
