"""What is checked: a component with one setting of its options, in its slot of a small model."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ablate import registry
from ablate.build import build_model, form_of
from ablate.registry import Entry
from ablate.spec import SUBLAYER, ArchSpec, Component, parse, parse_component, to_tree

VOCAB, T, B = 13, 12, 3
MODELS = (*registry.SLOTS, "model")  # the kinds of components that are probed in a model
CLASSES, IMAGE = 5, (2, 8, 8)


EXACT = 1e-9  # in float64: larger differences are information, not rounding


class CheckFailed(AssertionError):
    """A component breaks a contract; the message says how."""


@dataclass(frozen=True)
class Subject:
    """One component with one setting of its options, and the small model it is probed in."""

    entry: Entry
    component: Component

    @property
    def name(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in self.component.options)
        return f"{self.entry.slot} {self.entry.name}" + (f"({options})" if options else "")

    @property
    def arch(self) -> ArchSpec:
        tree: dict[str, Any] = {"d_model": 16, "n_heads": 4, "depth": 2, "d_ff": 24}
        if self.entry.slot == "model":
            tree = {"d_model": 16, "n_heads": 4}
        if self.entry.form == "pair" and self.entry.slot != "model":
            tree["encoder"] = True
        if self.entry.form == "image" and self.entry.slot == "embedding":
            tree["head"] = "classify"
        tree |= getattr(registry.load(self.entry), "beside", {})
        if self.entry.slot not in SUBLAYER:
            arch: ArchSpec = parse(ArchSpec, tree)
            changed: dict[str, Any] = {self.entry.slot: self.component}
            return replace(arch, **changed)
        reads = self.entry.form == "pair"
        letter = "f" if self.entry.slot == "channel" else "c" if reads else "s"
        return parse(ArchSpec, {**tree, "sublayers": {letter: to_tree(self.component)}})

    @property
    def form(self) -> str:
        """Of the model that the component is probed in."""
        return form_of(self.arch)

    def build(self, seed: int = 0, causal: bool | None = None) -> Any:
        """The model as it is initialised; causal as declared, unless said otherwise."""
        causal = self.entry.causal if causal is None else causal
        return build_model(self.arch, VOCAB, T, seed=seed, causal=causal, **self.shape)

    @property
    def shape(self) -> dict[str, Any]:
        """What the data of the model's form tells it."""
        told: dict[str, dict[str, Any]] = {
            "classify": {"classes": CLASSES},
            "image": {"classes": CLASSES, "image": IMAGE},
            "denoise": {"classes": CLASSES, "image": IMAGE},
        }
        return told.get(self.form, {})

    def model(
        self, dtype: torch.dtype = torch.float64, jitter: bool = True, causal: bool | None = None, seed: int = 0
    ) -> Any:
        """The model in evaluation mode. Jitter moves every parameter away from special values such as zero."""
        model = self.build(seed=seed, causal=causal).to(dtype).eval()
        if jitter:
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for parameter in model.parameters():
                    noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                    parameter.add_(0.1 * noise.to(dtype))
        if getattr(model, "fitted", False):
            model.fit(tokens(3).flatten())
        return model

    def inputs(self, model: Any, seed: int = 0) -> tuple[Tensor, ...]:
        """What the model is given: of its form, the same for the same seed. The last entry runs along time."""
        images = torch.randn(B, *IMAGE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        dtype = next((parameter.dtype for parameter in model.parameters()), torch.float64)
        times, classes = torch.tensor([1, 5, 9]), torch.arange(B) % CLASSES
        return {
            "pair": (tokens(100), tokens(seed)),
            "image": (images.to(dtype),),
            "denoise": (images.to(dtype), times, classes),
        }.get(self.form, (tokens(seed),))

    def targets(self, model: Any, seed: int = 1) -> Tensor:
        if self.form == "denoise":
            return self.inputs(model, seed)[0]
        return tokens(seed)[:, 0] % CLASSES if self.form in ("classify", "image") else tokens(seed)

    def nll(self, model: Any) -> Tensor:
        return model.nll(*self.inputs(model), self.targets(model))

    def outputs(self, model: Any, *inputs: Tensor, **how: Any) -> Tensor:
        """What the model makes of its inputs: log-probabilities, or an image. Dropout is the same each time."""
        if model.training:
            torch.manual_seed(0)
        inputs = inputs or self.inputs(model)
        return model(*inputs) if self.form == "denoise" else model.log_probs(*inputs, **how)


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, (B, T), generator=torch.Generator().manual_seed(seed))


def subjects(name: str | None = None) -> Iterator[Subject]:
    """Every component, or those of one name: with its defaults, and with every value of its literal options."""
    entries = [entry for entry in registry.catalogue() if name in (None, entry.name)]
    if not entries:
        registry.find(registry.KINDS, str(name))
    for entry in entries:
        yield Subject(entry, Component(entry.name))
        if entry.slot not in MODELS:
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
