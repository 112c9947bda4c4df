"""Positions that are added to the attention scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ablate.contracts import Context, Position, Site
from ablate.errors import within
from ablate.registry import register


@register("position", "alibi", paper="Press, Smith and Lewis 2022, arXiv:2108.12409, section 3")
class Alibi(Position):
    """Adds -m_h |t - s| to head h's score of query t and key s, m_h = 2^(-8h/H) for h = 1..H.

    For H that is no power of two: the slopes of the next lower power, then every second one of twice that
    power. No position embedding is added. Differs from the paper: |t - s| also where attention sees both
    sides, which the paper does not treat.
    """

    slopes: Tensor

    def __init__(self, site: Site):
        super().__init__(site)
        slopes = torch.tensor(alibi_slopes(site.n_heads), dtype=torch.float32)
        self.register_buffer("slopes", slopes, persistent=False)

    def bias(self, q_BHTK: Tensor, k_BHSK: Tensor, pos_S: Tensor, ctx: Context) -> Tensor:
        if "alibi" not in ctx.once:
            distance_TS = (ctx.positions_T[:, None] - pos_S[None]).abs()
            ctx.once["alibi"] = -self.slopes[:, None, None] * distance_TS
        return ctx.once["alibi"]


def alibi_slopes(n_heads: int) -> list[float]:
    """m_1..m_H, from 2^(-8/H) down to 2^-8 for a power of two."""
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2.0 ** (-8 * (h + 1) / power) for h in range(power)]
    between = [2.0 ** (-8 * (h + 1) / (2 * power)) for h in range(0, 2 * power, 2)]
    return slopes + between[: n_heads - power]


@register("position", "t5", paper="Raffel et al. 2020, arXiv:1910.10683, section 2.1")
class T5Position(Position):
    """Adds b[h, bucket(s - t)] to the scores, one table (buckets, H) shared by all layers.

    Causal: distances 0..buckets/2-1 have a bucket each, larger ones share buckets spaced logarithmically up to
    max_distance, beyond which all share the last. Where attention sees both sides each sign has half the
    buckets. `per_layer` gives every layer a table of its own (the "relative attention with bias" of Narang et al.
    2021; attention sublayers of one layer share it). Starts from N(0, 1/d_model), as the authors' code does.
    """

    def __init__(self, site: Site, *, buckets: int = 32, max_distance: int = 128, per_layer: bool = False):
        super().__init__(site)
        within("position 't5': buckets", buckets, 4)
        within("position 't5': max_distance", max_distance, buckets)
        self.buckets = buckets
        self.max_distance = max_distance
        self.causal = site.causal
        self.std = site.d_model**-0.5
        self.n_tables = site.n_layers if per_layer else 0
        tables = (site.n_layers,) if per_layer else ()
        self.table = nn.Parameter(torch.empty(*tables, buckets, site.n_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table, std=self.std)

    def bias(self, q_BHTK: Tensor, k_BHSK: Tensor, pos_S: Tensor, ctx: Context) -> Tensor:
        if "t5/buckets" not in ctx.once:
            relative_TS = pos_S[None] - ctx.positions_T[:, None]
            ctx.once["t5/buckets"] = t5_bucket(relative_TS, self.buckets, self.max_distance, self.causal)
        layer = ctx.layer % self.n_tables if self.n_tables else None
        if f"t5/{layer}" not in ctx.once:
            table = self.table if layer is None else self.table[layer]
            ctx.once[f"t5/{layer}"] = table[ctx.once["t5/buckets"]].permute(2, 0, 1)
        return ctx.once[f"t5/{layer}"]


def t5_bucket(relative: Tensor, buckets: int, max_distance: int, causal: bool) -> Tensor:
    """The bucket of each relative position s - t (key minus query)."""
    offset = torch.zeros_like(relative)
    if causal:
        distance = (-relative).clamp(min=0)
    else:
        buckets //= 2
        offset = (relative > 0).long() * buckets
        distance = relative.abs()
    exact = buckets // 2
    ratio = (distance.clamp(min=exact).double() / exact).log() / math.log(max_distance / exact)
    # a ratio that is whole in exact arithmetic must not fall short of it by rounding
    spaced = exact + (ratio * (buckets - exact) + 1e-9).long()
    return offset + torch.where(distance < exact, distance, spaced.clamp(max=buckets - 1))
