"""An absolute and a relative position at once."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ablate.components.positions_input import LearnedPosition, LearnedSinusoidalPosition
from ablate.components.positions_relative import (
    LearnedSinusoidalRelativePosition,
    RelativeKeysValues,
    ShawPosition,
    SinusoidalRelativePosition,
)
from ablate.contracts import Context, Position, Site
from ablate.errors import UserError
from ablate.registry import register


@register("position", "combined", paper="Wang et al. 2021, On Position Embeddings in BERT, ICLR")
class CombinedPosition(Position):
    """The `absolute` position added to the embedded tokens, the `relative` one in every attention.

    Each is the component of that name. `clip` is that of `shaw`, 16 unless given; the others have none.
    """

    def __init__(
        self,
        site: Site,
        *,
        absolute: Literal["learned", "learned_sinusoidal"] = "learned",
        relative: Literal["shaw", "sinusoidal_relative", "learned_sinusoidal_relative"] = "shaw",
        clip: int | None = None,
    ):
        super().__init__(site)
        if clip is not None and relative != "shaw":
            raise UserError(f"position 'combined': clip {clip} is for relative 'shaw'; {relative!r} clips nothing")
        self.absolute: Position = LearnedPosition(site) if absolute == "learned" else LearnedSinusoidalPosition(site)
        self.relative: RelativeKeysValues
        if relative == "shaw":
            self.relative = ShawPosition(site, clip=16 if clip is None else clip)
        elif relative == "sinusoidal_relative":
            self.relative = SinusoidalRelativePosition(site)
        else:
            self.relative = LearnedSinusoidalRelativePosition(site)

    def embed(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return self.absolute.embed(x_BTD, ctx)

    def bias(self, q_BHTK: Tensor, k_BHSK: Tensor, pos_S: Tensor, ctx: Context) -> Tensor | None:
        return self.relative.bias(q_BHTK, k_BHSK, pos_S, ctx)

    def value(self, weights_BHTS: Tensor, pos_S: Tensor, ctx: Context) -> Tensor | None:
        return self.relative.value(weights_BHTS, pos_S, ctx)
