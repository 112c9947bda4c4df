"""What is checked: a component with one setting of its options, in its slot of a small model."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ablate import registry
from ablate.build import TokenModel, build_model
from ablate.registry import Entry
from ablate.spec import SUBLAYER, ArchSpec, Component, parse, parse_component

VOCAB, T, B = 13, 12, 3


@dataclass(frozen=True)
class Subject:
    """One component with one setting of its options, and the small architecture it is probed in."""

    entry: Entry
    component: Component

    @property
    def name(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in self.component.options)
        return f"{self.entry.slot} {self.entry.name}" + (f"({options})" if options else "")

    @property
    def arch(self) -> ArchSpec:
        tree: dict[str, Any] = {"d_model": 16, "n_heads": 4, "depth": 2, "d_ff": 24}
        arch: ArchSpec = parse(ArchSpec, tree)
        letter = {"mixer": "s", "channel": "f"}.get(self.entry.slot)
        if letter is None:
            changed: dict[str, Any] = {self.entry.slot: self.component}
            return replace(arch, **changed)
        letters = tuple(sorted({**dict(arch.sublayers), letter: self.component}.items()))
        return replace(arch, sublayers=letters)

    def model(self, dtype: torch.dtype = torch.float64, jitter: bool = True) -> TokenModel:
        """The model in evaluation mode. Jitter moves every parameter away from special values such as zero."""
        model = build_model(self.arch, VOCAB, T, causal=self.entry.causal).to(dtype).eval()
        if jitter:
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for parameter in model.parameters():
                    noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                    parameter.add_(0.1 * noise.to(dtype))
        return model


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, (B, T), generator=torch.Generator().manual_seed(seed))


def subjects(name: str | None = None) -> Iterator[Subject]:
    """Every component, or those of one name: with its defaults, and with every value of its literal options."""
    entries = [entry for entry in registry.catalogue() if name in (None, entry.name)]
    if not entries:
        registry.find(registry.KINDS, str(name))
    for entry in entries:
        yield Subject(entry, Component(entry.name))
        if entry.slot not in registry.SLOTS:
            continue
        for option in entry.options:
            for value in _alternatives(option.type, option.default):
                slots = SUBLAYER if entry.slot in SUBLAYER else entry.slot
                yield Subject(entry, parse_component(slots, {"name": entry.name, option.name: value}, ()))


def _alternatives(kind: str, default: Any) -> list[Any]:
    """The other values of a literal or boolean option."""
    node = ast.parse(kind, mode="eval").body
    values: list[Any] = []
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
        choices = ast.literal_eval(node.slice)
        values = list(choices) if isinstance(choices, tuple) else [choices]
    elif kind == "bool":
        values = [True, False]
    return [value for value in values if value != default]
