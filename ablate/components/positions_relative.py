"""Positions by distance: a vector for every distance s - t, compared with queries and added to values.

Vectors are compared with the queries once for each distance and not once for each pair: (T, R) products, which a
shift of every row turns into scores (T, S) (the skewing of Huang et al. 2018). Memory O(S K), not O(T S K).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.components.positions_input import frequencies, sines
from ablate.contracts import Context, Position, Site
from ablate.errors import UserError, within
from ablate.registry import register

Rows = Callable[[Tensor, Context], Tensor]  # distances (...) -> vectors (H or 1, ..., K)


class RelativeKeys(Position):
    """Adds (q_t . a[s - t]) scale to the scores, scale the attention's own, so that a is added to the keys."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.causal = site.causal
        self.n_layers = site.n_layers

    def layer(self, ctx: Context) -> int:
        """Which table the layer at work has: a tower that runs its layers again comes back to the first."""
        return ctx.layer % self.n_layers

    def key_rows(self, distance: Tensor, ctx: Context) -> Tensor:
        raise NotImplementedError

    def bias(self, q_BHTK: Tensor, k_BHSK: Tensor, pos_S: Tensor, ctx: Context) -> Tensor | None:
        assert ctx.scale is not None, "attention says how it scales its scores before it asks for a bias"
        return compare(q_BHTK * ctx.scale, self.key_rows, pos_S, ctx, self.causal)


class RelativeKeysValues(RelativeKeys):
    """Adds sum_s weight_ts b[s - t] to the attention's output besides, so that b is added to the values."""

    def value_rows(self, distance: Tensor, ctx: Context) -> Tensor:
        raise NotImplementedError

    def value(self, weights_BHTS: Tensor, pos_S: Tensor, ctx: Context) -> Tensor | None:
        return collect(weights_BHTS, self.value_rows, pos_S, ctx, self.causal)


def compare(q_BHTK: Tensor, rows: Rows, pos_S: Tensor, ctx: Context, causal: bool) -> Tensor:
    """q_t . rows[pos_s - pos_t], (B, H, T, S). In a causal tower keys after the query get any finite value."""
    if (distance_R := distances(pos_S, ctx, causal)) is None:
        distance_TS = pos_S[None] - ctx.positions_T[:, None]
        return torch.einsum("bhtk,htsk->bhts", q_BHTK, rows(distance_TS, ctx).to(q_BHTK.dtype))
    rows_HRK = rows(distance_R, ctx).to(q_BHTK.dtype)
    return skew(q_BHTK @ rows_HRK.transpose(-1, -2), len(pos_S))


def collect(weights_BHTS: Tensor, rows: Rows, pos_S: Tensor, ctx: Context, causal: bool) -> Tensor:
    """sum_s weights_ts rows[pos_s - pos_t], (B, H, T, K). In a causal tower keys after the query have weight 0."""
    if (distance_R := distances(pos_S, ctx, causal)) is None:
        distance_TS = pos_S[None] - ctx.positions_T[:, None]
        return torch.einsum("bhts,htsk->bhtk", weights_BHTS, rows(distance_TS, ctx).to(weights_BHTS.dtype))
    return unskew(weights_BHTS, len(distance_R)) @ rows(distance_R, ctx).to(weights_BHTS.dtype)


def distances(pos_S: Tensor, ctx: Context, causal: bool) -> Tensor | None:
    """All distances s - t that occur, in order: S of them in a causal tower, else S + T - 1.

    Queries must be the last of the keys and evenly spaced, as they are wherever there are as many of either and
    wherever a cache holds the past; None elsewhere, where distances are to be taken pair by pair.
    """
    T, S = len(ctx.positions_T), len(pos_S)
    if T != S and ctx.cache is None:
        return None
    key = f"distances/{causal}/{T}/{S}"
    if key not in ctx.once:
        past_S = pos_S - pos_S[-1:]
        ctx.once[key] = past_S if causal else torch.cat((past_S, (pos_S - pos_S[:1])[1:T]))
    return ctx.once[key]


def skew(x_BHTR: Tensor, S: int) -> Tensor:
    """y[t, s] = x[t, s - t + T - 1] for the s where that exists, and anything elsewhere; (T, R) -> (T, S)."""
    T, R = x_BHTR.shape[-2:]
    flat = F.pad(x_BHTR, (1, 0)).flatten(-2)
    return flat[..., T:].unflatten(-1, (T, R))[..., :S]


def unskew(y_BHTS: Tensor, R: int) -> Tensor:
    """The inverse: x[t, s - t + T - 1] = y[t, s], zero elsewhere; what would fall outside (T, R) must be zero."""
    T, S = y_BHTS.shape[-2:]
    flat = F.pad(F.pad(y_BHTS, (0, R - S)).flatten(-2), (T, 0))
    return flat.unflatten(-1, (T, R + 1))[..., 1:]


@register("position", "shaw", paper="Shaw, Uszkoreit and Vaswani 2018, arXiv:1803.02155, equations 3 and 4")
class ShawPosition(RelativeKeysValues):
    """e_ts = q_t . (k_s + a^K[clip(s - t)]) scale, y_t = sum_s alpha_ts (v_s + a^V[clip(s - t)]), clip to [-c, c].

    2c + 1 learned vectors of d_head for the keys and as many for the values, shared by the heads, for each layer
    (attention sublayers of one layer share them); causal: the c + 1 of the past. `keys` and `values` say which are
    there. They start from U(+-sqrt(6 / (2c + 1 + d_head))), which is what the authors' framework does unasked.
    The scale is the attention's, 1/sqrt(d_head) or 1.
    """

    def __init__(self, site: Site, *, clip: int = 16, keys: bool = True, values: bool = True):
        super().__init__(site)
        within("position 'shaw': clip", clip, 1)
        if not (keys or values):
            raise UserError("position 'shaw': keys false and values false leave nothing; set one of them to true")
        self.clip = clip
        rows = clip + 1 if site.causal else 2 * clip + 1
        self.key_table = nn.Parameter(torch.empty(site.n_layers, rows, site.d_head)) if keys else None
        self.value_table = nn.Parameter(torch.empty(site.n_layers, rows, site.d_head)) if values else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for table in self.parameters():
            bound = math.sqrt(6 / (2 * self.clip + 1 + table.shape[-1]))
            nn.init.uniform_(table, -bound, bound)

    def row_of(self, distance: Tensor) -> Tensor:
        return distance.clamp(-self.clip, 0 if self.causal else self.clip) + self.clip

    def key_rows(self, distance: Tensor, ctx: Context) -> Tensor:
        assert self.key_table is not None
        return self.key_table[self.layer(ctx)][self.row_of(distance)][None]

    def value_rows(self, distance: Tensor, ctx: Context) -> Tensor:
        assert self.value_table is not None
        return self.value_table[self.layer(ctx)][self.row_of(distance)][None]

    def bias(self, q_BHTK: Tensor, k_BHSK: Tensor, pos_S: Tensor, ctx: Context) -> Tensor | None:
        return None if self.key_table is None else super().bias(q_BHTK, k_BHSK, pos_S, ctx)

    def value(self, weights_BHTS: Tensor, pos_S: Tensor, ctx: Context) -> Tensor | None:
        return None if self.value_table is None else super().value(weights_BHTS, pos_S, ctx)


class Sines(RelativeKeysValues):
    """Keys and values are given the same vectors: waves of the distance."""

    def __init__(self, site: Site):
        super().__init__(site)
        if site.d_head < 2:
            name = self.component.split("/")[-1]
            raise UserError(f"position {name!r} makes waves of pairs of features: d_head 1 must be at least 2")
        self.d_head = site.d_head

    def key_rows(self, distance: Tensor, ctx: Context) -> Tensor:
        return self.value_rows(distance, ctx)


@register("position", "sinusoidal_relative", paper="Wei et al. 2019 (NEZHA), arXiv:1909.00204")
class SinusoidalRelativePosition(Sines):
    """As `shaw`, with a^K = a^V fixed: a[r]_2i = sin(r / 10000^(2i/k)), a[r]_2i+1 = cos(r / 10000^(2i/k)).

    k = d_head; an odd one gets a zero in the last feature. r = s - t has both signs and is not clipped; the sine
    tells the past from the future. No parameters.
    """

    table: Tensor

    def __init__(self, site: Site):
        super().__init__(site)
        self.last = site.max_len - 1
        angle = torch.arange(-self.last, self.last + 1, dtype=torch.float64)[:, None] * frequencies(site.d_head)
        self.register_buffer("table", sines(angle, site.d_head).float(), persistent=False)

    def value_rows(self, distance: Tensor, ctx: Context) -> Tensor:
        key = f"sinusoidal_relative/{tuple(distance.shape)}"
        if key not in ctx.once:
            ctx.once[key] = self.table[distance + self.last][None]
        return ctx.once[key]


@register("position", "learned_sinusoidal_relative", paper="Wang et al. 2021, On Position Embeddings in BERT, ICLR")
class LearnedSinusoidalRelativePosition(Sines):
    """As `sinusoidal_relative` with learned frequencies: a[r]_2i = sin(w_i r), a[r]_2i+1 = cos(w_i r), w in R^(k/2).

    Each layer has its own frequencies, unless `shared`. They start from 10000^(-2i/k), where the vectors are the
    fixed ones; w_i r is computed in float32 at least. Differs from the paper: the frequencies have the learning rate
    of all other parameters.
    """

    def __init__(self, site: Site, *, shared: bool = False):
        super().__init__(site)
        self.n_tables = 1 if shared else site.n_layers
        # one vector for all layers: weight decay is for matrices
        self.omega = nn.Parameter(torch.empty(self.n_tables * (site.d_head // 2)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.omega.data.copy_(frequencies(self.d_head).repeat(self.n_tables))

    def value_rows(self, distance: Tensor, ctx: Context) -> Tensor:
        table = self.layer(ctx) % self.n_tables
        key = f"learned_sinusoidal_relative/{table}/{tuple(distance.shape)}"
        if key not in ctx.once:
            omega_I = self.omega.unflatten(0, (self.n_tables, -1))[table]
            ctx.once[key] = sines(distance[..., None].to(omega_I.dtype) * omega_I, self.d_head)[None]
        return ctx.once[key]


@register("position", "music", paper="Huang et al. 2018 (Music Transformer), arXiv:1809.04281, section 3.4")
class MusicPosition(RelativeKeys):
    """(Q K^T + S_rel) scale with S_rel = skew(Q E_r^T): S_rel[t, s] = q_t . E_r[s - t], for s <= t.

    E_r has a learned vector of d_head for each head and distance -(max_len - 1)..0, in each layer (attention
    sublayers of one layer share it); keys only, nothing clipped. Causal models only: distances to the future have no
    vectors. Starts from N(0, 1/d_head). The scale is the attention's, 1/sqrt(d_head) or 1.
    """

    def __init__(self, site: Site):
        super().__init__(site)
        if not site.causal:
            raise UserError("position 'music' is for causal models: it has no vectors for later keys; 'shaw' has")
        self.table = nn.Parameter(torch.empty(site.n_layers, site.n_heads, site.max_len, site.d_head))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table, std=self.table.shape[-1] ** -0.5)

    def key_rows(self, distance: Tensor, ctx: Context) -> Tensor:
        return self.table[self.layer(ctx)][:, distance.clamp(max=0) + self.table.shape[2] - 1]
