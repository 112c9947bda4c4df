"""Where attention looks: how evenly, and how far."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ablate.components.mixers.attention import Attention
from ablate.components.mixers.cross import CrossAttention
from ablate.components.mixers.linformer import Compressed
from ablate.components.mixers.longformer import Longformer
from ablate.components.mixers.sliding import SlidingWindow
from ablate.components.mixers.synthesizer import Synthesizer
from ablate.components.mixers.transformer_xl import TransformerXL
from ablate.contracts import Context
from ablate.diagnose.inside import Losses, Place, attentions, head_count, plain, replaced, undisturbed
from ablate.tasks.base import Batch

Weights = Callable[[Attention, Tensor, Tensor, Context], None]  # module, weights, which keys are seen, context


def attention(model: nn.Module, batch: Batch, losses: Losses = plain) -> list[dict[str, Any]] | None:
    """For every layer and head, means over queries: of a head's weights w over the keys s that a query t sees,

    `entropy`   H = -sum_s w_s log w_s, in nats;
    `relative`  H / log n, n the number of keys seen, over the queries that see two or more: 1 is even attention;
    `distance`  sum_s w_s |t - s|, in tokens as long as the layer has them. None where keys are not those tokens.

    Weights are those before dropout, computed plainly; of `rsa`, the softmax's part. None for a model without
    softmax attention. Not seen are `linformer_block_causal`, whose softmax is of its own make, and the queries of
    Longformer's global tokens; queries at padding do not count.
    """
    found = attentions(model)
    rows: dict[tuple[int, int], Row] = {}
    number = {id(module): index for index, (_, module) in enumerate(found)}
    scored_BT = batch.counts if batch.counts is not None and batch.counts.ndim == 2 else None

    def see(module: Attention, weights: Tensor, visible: Tensor, ctx: Context) -> None:
        index = number[id(module)]
        place = found[index][0]
        row = rows.setdefault((index, ctx.layer), Row(place, ctx.layer))
        valid_BT = ctx.valid_BT if ctx.valid_BT is not None or place.tower != "decoder" else scored_BT
        row.add(module, weights, visible, ctx, valid_BT)

    with undisturbed(model), torch.no_grad(), watched([module for _, module in found], see):
        if found:
            losses(model, batch)
    return [row.result() for row in rows.values()] or None


@contextlib.contextmanager
def watched(modules: list[Attention], see: Weights) -> Iterator[None]:
    """Every fused kernel of these modules gives way to `explicit`, whose weights are shown to `see`."""
    changes: list[tuple[nn.Module, str, Any]] = []
    for module in modules:
        changes += _watch(module, see)
    with replaced(changes):
        yield


def _watch(module: Attention, see: Weights) -> list[tuple[nn.Module, str, Any]]:
    under_way: list[Context] = []
    explicit = module.explicit

    def entering(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def enter(q: Tensor, k: Tensor, v: Tensor, ctx: Context, *others: Any) -> Tensor:
            under_way[:] = [ctx]
            return attend(q, k, v, ctx, *others)

        return enter

    def written(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        y, weights = explicit(q, k, v, mask)
        visible = torch.ones_like(weights[:1, :1], dtype=torch.bool) if mask is None else mask > -torch.inf
        see(module, weights, visible, under_way[0])
        return y, weights

    def fast(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        if causal:
            hidden_TT = torch.full((q.shape[2],) * 2, -torch.inf, dtype=q.dtype, device=q.device)
            mask = hidden_TT.triu(1)
        return written(q, k, v, mask)[0]

    changes: list[tuple[nn.Module, str, Any]] = [(module, "explicit", written), (module, "fast", fast)]
    for name in ("attend", "attend_segments"):
        if hasattr(module, name):
            changes.append((module, name, entering(getattr(module, name))))
    if isinstance(module, SlidingWindow):
        changes.append((module, "banded", lambda T, ctx: False))
    if isinstance(module, Synthesizer):
        weigh = module.weigh

        def weighing(scores: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            y, weights = weigh(scores, v)
            see(module, weights.expand(len(v), -1, -1, -1), scores > -torch.inf, under_way[0])
            return y, weights

        changes.append((module, "weigh", weighing))
    return changes


@dataclass
class Row:
    """Sums over the queries of one attention, run as one layer."""

    place: Place
    layer: int
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(
        self, module: Attention, weights_XHTS: Tensor, visible: Tensor, ctx: Context, valid_BT: Tensor | None
    ) -> None:
        """X is the batch, or more where a module cuts rows into segments or stacks its heads there."""
        weights_XHTS = weights_XHTS.double()
        T, S = weights_XHTS.shape[-2:]
        n_XHT = visible.sum(-1).expand(weights_XHTS.shape[:3])
        entropy_XHT = -torch.xlogy(weights_XHTS, weights_XHTS).sum(-1)
        values = {"entropy": entropy_XHT, "relative": entropy_XHT / n_XHT.double().log()}
        if not isinstance(module, CrossAttention | Compressed) and (S == T or isinstance(module, TransformerXL)):
            at_T, at_S = (torch.arange(end, device=weights_XHTS.device) for end in (T, S))
            far_TS = (at_T[:, None] + S - T - at_S[None]).abs().double()  # the last query stands at the last key
            values["distance"] = (weights_XHTS * far_TS).sum(-1)
        first = module.prefix if isinstance(module, Longformer) and module.globals is not None else 0
        place = {name: _by_row(each, module, ctx)[:, :, first:] for name, each in values.items()}
        several = _by_row(n_XHT, module, ctx)[:, :, first:] > 1
        counted = torch.ones_like(several)
        if valid_BT is not None and valid_BT.shape[1] == len(ctx.positions_T):
            rows = len(valid_BT) // len(counted)  # of the same row, where heads stand in the batch
            counted = counted & valid_BT[::rows, None, first:].bool()
        for name, value_BHT in place.items():
            use = counted & several if name == "relative" else counted
            total_H = torch.where(use, value_BHT, 0.0).sum((0, 2)).cpu()
            self.sums[name] = self.sums.get(name, torch.zeros_like(total_H)) + total_H
            self.counts[name] = self.counts.get(name, 0) + int(use[:, 0].sum())

    def result(self) -> dict[str, Any]:
        means = {
            name: (total_H / self.counts[name]).tolist() if self.counts[name] else None
            for name, total_H in self.sums.items()
        }
        names = {"tower": self.place.tower, "layer": self.layer, "component": self.place.component}
        return {**names, **{name: means.get(name) for name in ("entropy", "relative", "distance")}}


def _by_row(value_XHT: Tensor, module: Attention, ctx: Context) -> Tensor:
    """(X, H, T) -> (B, H, T) of whole rows."""
    halves = head_count(module) // module.n_heads
    if halves > 1:  # the second half of the heads stands in the batch
        value_XHT = value_XHT.unflatten(0, (-1, halves)).flatten(1, 2)
    length = len(ctx.positions_T)
    if value_XHT.shape[2] < length:  # segments
        n = -(-length // value_XHT.shape[2])
        value_XHT = value_XHT.unflatten(0, (-1, n)).transpose(1, 2).flatten(2)
    return value_XHT[:, :, :length]
