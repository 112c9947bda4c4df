"""Where the parts of a model sit, and how to look at it so that nothing of it has changed afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ablate.build import Tower
from ablate.components.mixers.attention import Attention
from ablate.components.mixers.evolved import EvolvedSelf
from ablate.contracts import Context
from ablate.tasks.base import Batch

Losses = Callable[[nn.Module, Batch], Tensor]  # of every target, of the targets' shape


def plain(model: nn.Module, batch: Batch) -> Tensor:
    """What a task's `losses` are unless it says otherwise."""
    return batch.nll(model)


@dataclass(frozen=True)
class Place:
    """A sublayer: its tower (`only`, `encoder`, `decoder`; of several alike, its place in the model), the layer
    that owns its weights, its component's name."""

    tower: str
    layer: int
    component: str


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, with a gradient for every parameter where gradients are asked for.

    Modes, what is trained, and the random state are then as they were. Gradients are left alone by those who ask
    for them with `torch.autograd.grad`. The fused recurrences of cuDNN, which have no gradient in evaluation mode,
    are not used.
    """
    modes = [(module, module.training) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    devices = sorted({parameter.device.index or 0 for parameter, _ in trained if parameter.is_cuda})
    with torch.random.fork_rng(devices), torch.backends.cudnn.flags(enabled=False):
        try:
            model.eval()
            for parameter, _ in trained:
                parameter.requires_grad_(True)
            yield
        finally:
            for module, training in modes:
                module.training = training
            for parameter, asked in trained:
                parameter.requires_grad_(asked)


@contextlib.contextmanager
def replaced(changes: list[tuple[nn.Module, str, Any]]) -> Iterator[None]:
    """Other values for attributes of single modules: what their classes define is seen again afterwards."""
    before = [(module, name, module.__dict__.get(name)) for module, name, _ in changes]
    try:
        for module, name, value in changes:
            module.__dict__[name] = value
        yield
    finally:
        for module, name, value in before:
            if value is None:
                del module.__dict__[name]
            else:
                module.__dict__[name] = value


def towers(model: nn.Module) -> dict[str, Tower]:
    """The towers of a model by their names, an encoder first; none in a model that is not made of slots."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, Tower)]
    kinds = [tower.site.tower for _, tower in found]
    named: dict[str, Tower] = {}
    for name, tower in found:
        kind = tower.site.tower
        named[kind if kinds.count(kind) == 1 else name.removesuffix(".tower")] = tower
    return dict(sorted(named.items(), key=lambda each: each[0] == "decoder"))


def sublayers(model: nn.Module) -> list[tuple[Place, nn.Module]]:
    """Every sublayer that has weights of its own, from the bottom up."""
    found = []
    for name, tower in towers(model).items():
        for layer, functions in tower.functions.items():
            for function in functions:  # type: ignore[attr-defined]
                component = getattr(function, "component", "") or type(function).__name__
                found.append((Place(name, int(layer), component.split("/")[-1]), function))
    return found


def attentions(model: nn.Module) -> list[tuple[Place, Attention]]:
    """Every module of softmax attention with an output matrix; two of them where a sublayer has two."""
    return [
        (Place(place.tower, place.layer, module.component.split("/")[-1]), module)
        for place, function in sublayers(model)
        for module in function.modules()
        if isinstance(module, Attention) and hasattr(module, "out")
    ]


def head_count(attention: Attention) -> int:
    return attention.n_heads * (2 if isinstance(attention, EvolvedSelf) else 1)


def valid_tokens(ctx: Context | None, shape: torch.Size) -> Tensor | None:
    """Which of the tokens of a tensor (B, T, ...) or (B, H, T, ...) are no padding; None for all."""
    valid_BT = None if ctx is None else ctx.valid_BT
    if valid_BT is None:
        return None
    if shape[:2] == valid_BT.shape:
        return valid_BT
    if len(shape) == 4 and (shape[0], shape[2]) == tuple(valid_BT.shape):
        return valid_BT[:, None].expand(-1, shape[1], -1)
    return None
