"""What a model does in one pass, on the meta device: which layers run on which length, and who calls what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ablate.build import Tower
from ablate.contracts import Embedding, Position
from ablate.probe import overridden


@dataclass
class Seen:
    """What was seen of one pass."""

    # tower, layer in the order of running, sublayer's module -> the length that it read
    lengths: dict[tuple[int, int, int], int] = field(default_factory=dict)
    runs: dict[int, int] = field(default_factory=dict)  # of a tower: layers run, each as often as it was
    hooks: dict[int, set[str]] = field(default_factory=dict)  # of a sublayer: the position's hooks that it called
    given: dict[int, tuple[Any, ...]] = field(default_factory=dict)  # to a sublayer, when it was first called
    embedding_read: bool = False  # after the tokens were embedded: by a head that is tied to it


def watch(model: nn.Module, length: int) -> Seen:
    """Run the model once, without values."""
    seen = Seen()
    current: list[int] = []

    def before(tower: nn.Module, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            current.append(id(module))
            x, ctx = args[0], args[1]
            seen.given.setdefault(id(module), (x, replace(ctx)))
            seen.lengths[id(tower), ctx.layer, index] = x.shape[1]
            seen.runs[id(tower)] = max(seen.runs.get(id(tower), 0), ctx.layer + 1)

        return hook

    def after(*_: Any) -> None:
        current.pop()

    for module in model.modules():
        if isinstance(module, Tower):
            for functions in module.functions.values():
                sublayers: list[nn.Module] = list(functions)  # type: ignore[call-overload]
                for index, function in enumerate(sublayers):
                    function.register_forward_pre_hook(before(module, index))
                    function.register_forward_hook(after)
        if isinstance(module, Position):
            _watch_position(module, seen, current)
        if isinstance(module, Embedding):
            _watch_embedding(module, seen)
    with torch.device("meta"), torch.no_grad():
        model.nll(*model.example(1, length))  # type: ignore[operator]
    return seen


def _watch_position(position: Position, seen: Seen, current: list[int]) -> None:
    for hook in overridden(position):
        original = getattr(position, hook)

        def called(*args: Any, hook: str = hook, original: Any = original) -> Any:
            if current:
                seen.hooks.setdefault(current[-1], set()).add(hook)
            return original(*args)

        setattr(position, hook, called)


def _watch_embedding(embedding: Embedding, seen: Seen) -> None:
    for name in ("logits", "rows"):
        original = getattr(embedding, name)

        def read(*args: Any, original: Any = original) -> Any:
            seen.embedding_read = True
            return original(*args)

        setattr(embedding, name, read)
