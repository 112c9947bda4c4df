"""Initialisations that know how deep the model is: DeepNorm's and Fixup's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ablate.components.channels.ffn import GLU
from ablate.components.inits import VaswaniInit
from ablate.components.residuals_scaled import deepnorm_constants
from ablate.contracts import Channel, Linear, Mixer, Site
from ablate.errors import UserError
from ablate.registry import register


def own_matrices(sublayer: nn.Module) -> Iterator[Linear]:
    """The matrices of a mixer or channel, without those of a mixer or channel inside it."""
    for child in sublayer.children():
        if isinstance(child, Linear):
            yield child
        elif not isinstance(child, Mixer | Channel):
            yield from own_matrices(child)


@register("init", "deepnorm", paper="Wang et al. 2022, arXiv:2203.00555, figure 2 (beta)")
class DeepNormInit(VaswaniInit):
    """Xavier-normal, N(0, 2 g^2 / (d_in + d_out)): g is beta in W_1, W_2, W_V and W_O, and 1 elsewhere.

    1 in W_Q and W_K. beta is a constant of the tower, see `deepnorm_constants`; the two towers of an
    encoder-decoder have different ones. Biases 0; embeddings N(0, 1/d_model).

    Differs from the paper: it says nothing of other sublayers. In each that has a matrix of role `write`, beta is
    for its `inner` and `write` matrices; the gate of a `glu` has g = 1, so that its branch scales with beta^2, as
    the plain network's does.
    """

    draw = staticmethod(nn.init.xavier_normal_)

    @torch.no_grad()
    def tower(self, tower: nn.Module, site: Site) -> None:
        beta = deepnorm_constants(site)[1]
        for part in tower.modules():
            if not isinstance(part, Mixer | Channel):
                continue
            matrices = list(own_matrices(part))
            if not any(matrix.role == "write" for matrix in matrices):
                continue
            for matrix in matrices:
                gates = isinstance(part, GLU) and matrix is part.gate
                if matrix.role in ("inner", "write") and not gates:
                    matrix.weight *= beta


@register("init", "fixup", paper="Zhang, Dauphin and Ma 2019, arXiv:1901.09321, section 3 (rules 1 and 2)")
class FixupInit(VaswaniInit):
    """The last matrix of every branch is 0, the others are uniform and scaled by L^(-1/(2m - 2)).

    L is the number of residual branches in the whole model, of both towers of an encoder-decoder, and m that of the
    matrices in the branch: 2 of a feed-forward network, whose W_1 is He-uniform L^(-1/2), +-sqrt(6 / d_in); 4 of
    attention, whose W_Q, W_K and W_V are L^(-1/6) times Glorot-uniform, +-sqrt(6 / (d_in + d_out)), or He-uniform,
    as `attention` says. Everything else is as in init `vaswani`. At the start every branch adds 0.

    Differs from the paper: the output matrix is not 0 (it may be the table of embeddings), as in the mesh code, of
    which Glorot is the default too. Neither says what other sublayers start from: those with a matrix of role
    `write` get the same rule, channels with He and mixers with `attention`, m counting all matrices (3 of a `glu`);
    a sublayer without one is left as it is, and adds something.
    """

    beside: ClassVar[dict[str, Any]] = {"norm": "none"}

    def __init__(self, site: Site, *, attention: Literal["glorot", "he"] = "glorot"):
        super().__init__(site)
        self.attention = attention
        if site.norm.name != "none":
            raise UserError(
                f"init 'fixup' takes the place of normalisation, and norm {site.norm.name!r} contradicts it: "
                "set arch.norm to none"
            )

    @torch.no_grad()
    def __call__(self, module: nn.Module) -> None:
        super().__call__(module)
        if isinstance(module, Mixer | Channel):
            self.scale(module, he=isinstance(module, Channel) or self.attention == "he")

    def scale(self, sublayer: nn.Module, he: bool) -> None:
        """Zero the matrices that write, scale the others."""
        matrices = list(own_matrices(sublayer))
        first = [matrix for matrix in matrices if matrix.role != "write"]
        if len(first) == len(matrices):
            return
        for matrix in matrices:
            if matrix.role == "write":
                matrix.weight.zero_()
                continue
            if matrix.role == "score" and matrix.gain != 1.0:
                raise UserError("init 'fixup' contradicts score 'dot', which folds 1/sqrt(d_head) into the queries")
            from_glorot = math.sqrt(1 + matrix.out_features / matrix.in_features) if he else 1.0
            matrix.weight *= from_glorot * self.site.sublayers ** (-1 / (2 * len(first)))
