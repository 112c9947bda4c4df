"""How much each attention head matters, and what is lost when the least important ones go."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ablate.components.mixers.attention import Attention
from ablate.diagnose.inside import Losses, attentions, head_count, plain, undisturbed
from ablate.tasks.base import Batch, Meter

TENTHS = 10


@contextlib.contextmanager
def masked(masks: Sequence[tuple[Attention, Tensor]]) -> Iterator[None]:
    """Each head's output times its mask, (H,) or (B, H), before W_O: 0 is as good as no columns of W_O for it."""

    def scale(mask: Tensor) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            (y_BTE,) = args
            factor = mask.repeat_interleave(y_BTE.shape[-1] // mask.shape[-1], -1)
            return (y_BTE * factor.to(y_BTE.dtype).unsqueeze(-2),)

        return hook

    with contextlib.ExitStack() as stack:
        for module, mask in masks:
            stack.callback(module.out.register_forward_pre_hook(scale(mask)).remove)
        yield


def head_importance(model: nn.Module, batches: Iterable[Batch], losses: Losses = plain) -> list[Tensor]:
    """I_h = E_x |dL(x) / dxi_h|, (H,) for each attention of the model, xi_h = 1 the mask of head h.

    Michel, Levy and Neubig 2019, arXiv:1905.10650, equation 2: x is a row, L(x) its mean loss over its targets. Rows
    without a target do not count. One mask serves all layers that share an attention's weights.
    """
    modules = [module for _, module in attentions(model)]
    total: list[Tensor] = []
    rows = 0
    with undisturbed(model), torch.enable_grad():
        for batch in batches:
            masks = [
                torch.ones(len(batch), head_count(each), dtype=torch.float64, device=batch.targets.device)
                for each in modules
            ]
            masks = [mask.requires_grad_() for mask in masks]
            with masked(list(zip(modules, masks, strict=True))):
                nll = losses(model, batch).double()
            counts = torch.ones_like(nll) if batch.counts is None else batch.counts.to(nll)
            dims = tuple(range(1, nll.ndim))
            per_row = (nll * counts, counts)
            loss_B, n_B = (each.sum(dims) if dims else each for each in per_row)
            grads = torch.autograd.grad((loss_B / n_B.clamp(min=1)).sum(), masks)
            found = [grad_BH.abs().sum(0).cpu() for grad_BH in grads]
            total = [one + other for one, other in zip(total, found, strict=True)] if total else found
            rows += int((n_B > 0).sum())
    return [each_H / max(1, rows) for each_H in total]


def pruning_order(importance: Sequence[Tensor]) -> list[tuple[int, int]]:
    """(attention, head), the least important first. As in the paper, importances are first divided by the l2 norm of
    those of their attention; where that leaves two equal, the undivided one decides."""
    keys = []
    for index, values_H in enumerate(importance):
        norm = torch.linalg.vector_norm(values_H).item()
        for head, value in enumerate(values_H.tolist()):
            keys.append((value / norm if norm else 0.0, value, index, head))
    return [(index, head) for *_, index, head in sorted(keys)]


@torch.no_grad()
def loss_without(
    model: nn.Module, removed: Iterable[tuple[int, int]], batches: Iterable[Batch], losses: Losses = plain
) -> float:
    """The mean loss over the targets with some heads, (attention, head), masked out."""
    modules = [module for _, module in attentions(model)]
    masks = [torch.ones(head_count(each), device=next(each.parameters()).device) for each in modules]
    for index, head in removed:
        masks[index][head] = 0.0
    meter = Meter()
    with undisturbed(model), masked(list(zip(modules, masks, strict=True))):
        for batch in batches:
            meter.add_loss(losses(model, batch), batch)
    return meter.result()["loss"]


def heads(
    model: nn.Module, train: Sequence[Batch], valid: Sequence[Batch], losses: Losses = plain
) -> dict[str, Any] | None:
    """Importances, and the curve of pruning; None for a model without softmax attention.

    `heads`: the importance of each on training rows. `removed`, `loss`: the validation loss with so many heads
    masked out, the least important first, at each tenth of them; the order is not made anew on the way.
    `one_each`: the loss with the most important head of each attention alone.
    """
    found = attentions(model)
    if not found:
        return None
    importance = head_importance(model, train, losses)
    order = pruning_order(importance)
    removed = sorted({round(len(order) * tenth / TENTHS) for tenth in range(TENTHS + 1)})
    best = dict(order)  # the last one of each is its most important
    return {
        "heads": [
            {"tower": place.tower, "layer": place.layer, "component": place.component, "importance": each_H.tolist()}
            for (place, _), each_H in zip(found, importance, strict=True)
        ],
        "removed": removed,
        "loss": [loss_without(model, order[:n], valid, losses) for n in removed],
        "one_each": loss_without(model, [each for each in order if best[each[0]] != each[1]], valid, losses),
    }
