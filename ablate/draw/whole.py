"""Whole models, which are not made of slots: how they compute, or what runs in one pass, in its order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ablate import registry
from ablate.draw.flow import flow
from ablate.draw.folding import folded
from ablate.draw.inside import parameters_of, shapes, step, summary
from ablate.draw.parts import Box, Chain, Frame, Part, counted, joined

STEPS = 8  # of a sequence that is run: enough to see that a step comes again


@dataclass
class Call:
    """One call of a module, and those that it made."""

    name: str
    module: nn.Module
    given: tuple[Any, ...] = ()
    calls: list[Call] = field(default_factory=list)

    def kind(self) -> Any:
        """Calls of one kind are drawn once."""
        return type(self.module).__name__, shapes(self.module), tuple(call.kind() for call in self.calls)


def whole(model: Any, text: str, length: int, changed: bool) -> Chain:
    """The model between its input and its output."""
    form = registry.find("model", model.component.split("/")[-1]).form
    with torch.device("meta"):
        inputs = model.example(1, min(length, STEPS))[:-1]
    call = model.forward if form == "denoise" else model.log_probs
    calls = calls_of(model, call, inputs)
    followed = None if form == "pair" else flow(model, step_of(calls), *inputs, call=call)
    body = chain_folded(followed, True) if followed else chain_folded(listed(model, calls), False)
    apart = "its parts, in the order of their definition" if body and not followed else ""
    fitted = "fitted by counting" if getattr(model, "fitted", False) else ""
    note, about = joined((counted(parameters_of(model)), fitted, apart)), summary(model)
    inner: Part = Box(text, note, about, changed=changed)
    if body:
        inner = Frame(body, text, note, about, linked=bool(followed), changed=changed)
    start = {"image": "image", "denoise": "noised image, time, class", "pair": "source and tokens so far"}
    end = {"image": "p(class)", "classify": "p(class)", "denoise": "noise"}
    return (
        Box(start.get(form, "tokens"), kind="end"),
        inner,
        Box(end.get(form, "p(next token)"), kind="end"),
    )


def calls_of(model: Any, call: Any, inputs: tuple[Any, ...]) -> list[Call]:
    """The modules that run in one pass, each with those that run inside of it."""
    root = Call("", model)
    running = [root]
    names = {module: name for name, module in model.named_modules()}

    def before(module: nn.Module, args: Any) -> None:
        made = Call(names[module], module, args)
        running[-1].calls.append(made)
        running.append(made)

    def after(*_: Any) -> None:
        running.pop()

    handles = []
    for module in model.modules():
        if module is not model:
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        with torch.device("meta"), torch.no_grad():
            call(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return root.calls


def step_of(calls: list[Call]) -> Any:
    """Draws a module with what its first call was given."""
    known = {id(call.module): call for call in reversed(calls)}

    def show(module: nn.Module, name: str) -> Chain:
        call = known.get(id(module))
        return part_of(call) if call else step(module, _named(name, module))

    return show


def listed(model: nn.Module, calls: list[Call]) -> Chain:
    """What a model is made of, whether or not it was called as a module."""
    known = {id(call.module): call for call in reversed(calls)}
    found: list[Part] = []
    for name, child in model.named_children():
        several = list(child) if isinstance(child, nn.ModuleList) else [child]
        for each in several:
            call = known.get(id(each))
            label = name if child is each else _named(f"{name}.0", each)
            found += part_of(Call(label, each, call.given, call.calls)) if call else step(each, label)
    return tuple(found)


def chain_folded(chain: Chain, linked: bool) -> Chain:
    """A chain with what comes again said once."""
    parts: list[Part] = []
    for run in folded(chain):
        same = chain[run.start : run.stop]
        parts += same if run.times == 1 else (Frame(same, f"× {run.times}", repeat=True, linked=linked),)
    return tuple(parts)


def chain_of(calls: list[Call]) -> Chain:
    """Calls one after the other, equal ones in a row once."""
    parts: list[Part] = []
    for run in folded([call.kind() for call in calls]):
        inner = tuple(part for call in calls[run.start : run.stop] for part in part_of(call))
        if run.times == 1 or not inner:
            parts += inner
            continue
        same = calls[run.start].module is calls[run.stop].module
        text, note = ("every step", "the same weights") if same else (f"× {run.times}", "")
        parts.append(Frame(inner, text, note, repeat=True, linked=False))
    return tuple(parts)


def part_of(call: Call) -> Chain:
    """One call, and what is inside of it."""
    name = _named(call.name, call.module)
    if not call.calls:
        return step(call.module, name)
    followed = flow(call.module, step, *call.given) if call.given and isinstance(call.given[0], Tensor) else None
    body = followed or chain_of(call.calls)
    if len(body) == 1 and isinstance(body[0], Box):
        return (Box(name.replace("_", " "), shapes(call.module), summary(call.module)),)
    note = counted(parameters_of(call.module))
    return (Frame(body, name.replace("_", " "), note, linked=bool(followed)),)


def _named(name: str, module: nn.Module) -> str:
    """Modules in a list have a number alone: it is said what they are, or what their list is called."""
    *above, last = name.split(".")
    if not last.isdigit():
        return last
    return (
        above[-1]
        if above and type(module).__module__.startswith(("torch.", "ablate.context"))
        else type(module).__name__.lower()
    )
