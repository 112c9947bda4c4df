"""Hidden units that a ReLU has switched off for good."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.components.channels.ffn import ACTIVATIONS
from ablate.contracts import Context
from ablate.diagnose.inside import Losses, Place, plain, replaced, sublayers, undisturbed, valid_tokens
from ablate.tasks.base import Batch

RELUS = (F.relu, torch.relu)


@dataclass
class Units:
    """What is counted of one module's hidden units."""

    activation: str
    active: Tensor | None = None  # at any token so far
    zeros: float = 0.0
    seen: int = 0

    @torch.no_grad()
    def add(self, a: Tensor, valid: Tensor | None) -> None:
        rows = a[valid] if valid is not None else a.flatten(0, -2)
        if len(rows):
            nonzero = rows != 0
            some = nonzero.any(0)
            self.active = some if self.active is None else self.active | some
            self.zeros += nonzero.numel() - nonzero.sum().item()
            self.seen += nonzero.numel()


@dataclass
class Calls:
    """Of one sublayer, run as one layer."""

    tower: str
    layer: int
    component: str
    units: dict[int, Units] = field(default_factory=dict)

    def result(self) -> dict[str, Any]:
        parts = [each for each in self.units.values() if each.active is not None]
        total = sum(len(each.active) for each in parts if each.active is not None)
        dead = sum(int((~each.active).sum()) for each in parts if each.active is not None)
        seen = sum(each.seen for each in parts)
        name = next(iter(self.units.values())).activation
        defined = name == "relu" and seen > 0
        return {
            "tower": self.tower,
            "layer": self.layer,
            "component": self.component,
            "activation": name,
            "units": total,
            "dead": dead / total if defined else None,
            "zero": sum(each.zeros for each in parts) / seen if defined else None,
        }


def activations(model: nn.Module, batches: Iterable[Batch], losses: Losses = plain) -> list[dict[str, Any]] | None:
    """Each sublayer's dead units: the share that is 0 at every token of the sample. None where no sublayer has any.

    `zero` is the share of all activations that is 0. Both are defined for ReLU, whose gradient is 0 where it is 0,
    and None for all other activations, which are hardly ever exactly 0. A sublayer is seen where its class calls
    `self.activation` or an `nn.ReLU`: ffn, glu (its gate) and those made of them. Of experts those count that were
    sent a token; padding does not count. A sublayer that several layers run has a row for each of them.
    """
    calls: dict[tuple[int, int], Calls] = {}
    with undisturbed(model), torch.no_grad(), contextlib.ExitStack() as stack:
        changes: list[tuple[nn.Module, str, Any]] = []
        holders_there = False
        for index, (place, function) in enumerate(sublayers(model)):
            here: list[Context] = []  # of the call under way

            def enter(module: nn.Module, args: tuple[Any, ...], here: list[Context] = here) -> None:
                here[:] = [args[1]]

            def see(holder: nn.Module, name: str, a: Tensor, index: int = index, here: list[Context] = here,
                    place: Place = place) -> None:  # fmt: skip
                ctx = here[0] if here else None
                layer = place.layer if ctx is None else ctx.layer
                row = calls.setdefault((index, layer), Calls(place.tower, layer, place.component))
                row.units.setdefault(id(holder), Units(name)).add(a, valid_tokens(ctx, a.shape))

            holders = [module for module in function.modules() if _name_of(module)]
            if holders:
                holders_there = True
                stack.callback(function.register_forward_pre_hook(enter).remove)
            for holder in holders:
                if isinstance(holder, nn.ReLU):
                    hook = holder.register_forward_hook(lambda module, args, a, see=see: see(module, "relu", a))
                    stack.callback(hook.remove)
                else:
                    changes.append((holder, "activation", _watched(holder, see)))
        with replaced(changes):
            for batch in batches if holders_there else ():
                losses(model, batch)
    return [each.result() for each in calls.values()] or None


def _watched(holder: nn.Module, see: Callable[[nn.Module, str, Tensor], None]) -> Callable[[Tensor], Tensor]:
    activation: Callable[[Tensor], Tensor] = holder.__dict__["activation"]
    name = _name_of(holder)

    def watched(x: Tensor) -> Tensor:
        a = activation(x)
        see(holder, name, a)
        return a

    return watched


def _name_of(module: nn.Module) -> str:
    """The activation that a module applies; empty where it is none of ours to see."""
    if isinstance(module, nn.ReLU):
        return "relu"
    activation = module.__dict__.get("activation")
    if not callable(activation):
        return ""
    if activation in RELUS:
        return "relu"
    known = [name for name, each in ACTIVATIONS.items() if each is activation]
    return known[0] if known else getattr(activation, "__name__", "") or type(activation).__name__
