"""Refuses an architecture in which something configured has no effect: found by running it, on the meta device.

No table of forbidden pairs exists anywhere. A position whose hook nobody calls, and a parameter that no output
depends on, show themselves in one forward and backward pass without values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ablate.build import build_on_meta
from ablate.contracts import Position
from ablate.errors import UserError
from ablate.spec import ArchSpec

HOOKS = {
    "embed": "adds to the embedded tokens",
    "step": "adds at the entry of every layer",
    "rotate": "rotates queries and keys",
    "bias": "adds to attention scores",
    "value": "adds to attention's output",
}


def probe(arch: ArchSpec, vocab: int, max_len: int, causal: bool = True, **shape: Any) -> None:
    """Raise `UserError` naming what has no effect; return when everything has. `shape` as for `count`."""
    model = build_on_meta(arch, vocab, max_len, causal, **shape)
    if arch.model is not None:
        refuse_slots_beside(arch)
    positions = [module for module in model.modules() if isinstance(module, Position)]
    called = [watch_hooks(position) for position in positions]
    with torch.device("meta"):
        loss = model.nll(*model.example(1, max_len)).mean()
    if loss.requires_grad:
        loss.backward()
    name = arch.position.name
    mixers = sorted({part.name for _, part in arch.sublayers})
    for position, hooks in zip(positions, called, strict=True):
        for hook in overridden(position):
            if hook not in hooks:
                raise UserError(
                    f"position {name!r} has no effect: it {HOOKS[hook]}, and no sublayer of {arch.order!r} "
                    f"({', '.join(mixers)}) asks for that; use position 'none', or a sublayer with attention"
                )
    if unused := unused_parameters(model):
        raise UserError(f"parameters have no effect on the output: {', '.join(unused[:3])}")


def overridden(position: Position) -> list[str]:
    """The hooks that a position defines itself."""
    return [hook for hook in HOOKS if getattr(type(position), hook) is not getattr(Position, hook)]


def watch_hooks(position: Position) -> set[str]:
    """The set of hooks called from now on; it fills up as the model runs."""
    called: set[str] = set()
    for hook in HOOKS:
        original = getattr(position, hook)

        def recorded(*args: Any, hook: str = hook, original: Any = original) -> Any:
            called.add(hook)
            return original(*args)

        setattr(position, hook, recorded)
    return called


def unused_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters that got no gradient."""
    return [name for name, parameter in model.named_parameters() if parameter.grad is None]


def refuse_slots_beside(arch: ArchSpec) -> None:
    """A whole model is made of no other slots: raise `UserError` for one that is set to something."""
    plain = ArchSpec(d_model=arch.d_model, n_heads=arch.n_heads)
    for slot in ("embedding", "position", "norm", "residual", "stack", "sharing", "head", "order", "encoder", "swap"):
        if getattr(arch, slot) != getattr(plain, slot):
            raise UserError(f"arch.{slot} has no effect beside arch.model {arch.model.name!r}")  # type: ignore[union-attr]
