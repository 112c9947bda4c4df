"""ArchSpec -> Figure: what the built model is made of, and where it differs from a baseline.

Nothing is drawn from a list of names: layers, their lengths and who reads what come from one pass of the model on the
meta device, the joins and the insides from forward passes that `flow` follows, numbers from the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ablate.arch import ArchSpec, Component, reads_memory, registry_slot
from ablate.build import Layer, build_on_meta, form_of, parts_of
from ablate.build import Tower as LayerTower
from ablate.contracts import Norm, Position, Residual, Stack
from ablate.draw.flow import Sublayer, flow
from ablate.draw.folding import folded
from ablate.draw.inside import component, parameters_of, shapes, summary
from ablate.draw.parts import Box, Chain, Figure, Fork, Frame, Part, Tower, counted, joined, words
from ablate.draw.watching import Seen, watch
from ablate.draw.whole import whole
from ablate.probe import HOOKS, overridden
from ablate.spec import to_tree

# Of a tower, drawn with what is inside of them; more are drawn small, and explained beside
MOST_SUBLAYERS = 5
ENDS = {"tokens": ("tokens", "p(token)"), "classify": ("tokens", "p(class)"), "image": ("image", "p(class)")}


@dataclass(frozen=True)
class Given:
    """What is drawn, and against what."""

    arch: ArchSpec
    vocab: int
    length: int
    causal: bool = True
    shape: Mapping[str, Any] | None = None
    baseline: ArchSpec | None = None


def figure(title: str, given: Given, notes: tuple[str, ...] = ()) -> Figure:
    """The drawing of an architecture. Raises `UserError` for one that cannot be built."""
    arch, shape = given.arch, dict(given.shape or {})
    model = build_on_meta(arch, given.vocab, given.length, given.causal, **shape).eval()
    if arch.model is not None:
        same = given.baseline is not None and given.baseline.model == arch.model
        chain = whole(model, words(to_tree(arch.model)), given.length, given.baseline is not None and not same)
        return Figure(title, (Tower("model", chain),), notes=notes)
    drawer = Drawer(given, model, watch(model, given.length))
    towers = drawer.towers()
    beside = tuple(Tower(f"every {name}", chain) for name, chain in drawer.beside.items())
    return Figure(title, towers, beside, notes, memory=form_of(arch) == "pair")


class Drawer:
    """Draws the towers of one model."""

    def __init__(self, given: Given, model: Any, seen: Seen):
        self.given, self.arch, self.model, self.seen = given, given.arch, model, seen
        self.base = given.baseline or given.arch
        if self.base.model is not None:  # it has none of the slots: all of them are new
            self.base = replace(self.base, model=None)
        self.whole_new = given.baseline is not None and given.baseline.model is not None
        self.beside: dict[str, Chain] = {}  # sublayers that are drawn small, explained

    def towers(self) -> tuple[Tower, ...]:
        """The columns: of an encoder-decoder the encoder first."""
        model, form = self.model, form_of(self.arch)
        if form == "pair":
            made = [
                Tower("encoder", self.column(model.encoder, "source", Box("memory", kind="end"))),
                Tower("decoder", self.column(model.decoder, "tokens so far", Box("p(next token)", kind="end"))),
            ]
        else:
            start, end = ENDS.get(form, ENDS["tokens"])
            if form == "tokens" and self.given.causal:
                end = "p(next token)"
            name = "decoder" if self.given.causal else "encoder"
            made = [Tower(name, self.column(model, start, Box(end, kind="end")))]
        return tuple(made)

    def column(self, reader: Any, start: str, end: Box) -> Chain:
        """From the input of one tower to its output."""
        parts: list[Part] = [Box(joined((start, self.input_shape())), kind="end")]
        borrowed = bool(reader.borrowed)
        embedding = reader.borrowed[0] if borrowed else reader.embedding
        note = "shared with the decoder" if borrowed else self.size(embedding)
        parts.append(self.slot("embedding", embedding, note))
        hooks = overridden(reader.position)
        if "embed" in hooks:
            parts.append(self.slot("position", reader.position, self.size(reader.position)))
        elif not hooks and self.differs("position"):
            parts.append(Box("no position", kind="op", changed=True))
        if reader.closing is not None:
            parts.append(Box(type(reader.closing).__name__.lower(), self.size(reader.closing)))
        parts += self.layers(reader.tower, reader.position)
        if reader.tower.final_norm is not None:
            parts += self.norm(reader.tower.final_norm, "final ")
        if end.text != "memory":
            head = self.model.head
            tied = "weights of the embedding" if self.seen.embedding_read else ""
            parts.append(self.slot("head", head, joined((self.size(head), tied))))
        return (*parts, end)

    def input_shape(self) -> str:
        image = (self.given.shape or {}).get("image")
        return " × ".join(map(str, image)) if image else f"{self.given.length:,}"

    def size(self, module: nn.Module) -> str:
        return joined((shapes(module), counted(parameters_of(module))))

    def slot(self, name: str, module: nn.Module, note: str) -> Box:
        """The box of a component that is there once."""
        part: Component = getattr(self.arch, name)
        text = words(to_tree(part))
        return Box(f"{name}: {text}", note, summary(module), changed=self.differs(name))

    def differs(self, field: str) -> bool:
        return self.whole_new or getattr(self.arch, field) != getattr(self.base, field)

    def norm(self, module: nn.Module, which: str = "") -> Chain:
        """A norm; where the baseline has one and this architecture has none, that."""
        changed = self.differs("norm")
        if self.arch.norm.name == "none":
            return (Box(f"no {which}norm", kind="op", changed=True),) if changed else ()
        return (Box(which + words(to_tree(self.arch.norm)), "", summary(module), changed=changed),)

    def layers(self, tower: LayerTower, position: Position) -> Chain:
        """All layers, equal ones once, in the frame of their stack."""
        everyone = [self.layer(tower, index) for index in range(len(tower.layers))]
        small = sum(len(everyone[i]) for run in folded(everyone) for i in range(run.start, run.stop)) > MOST_SUBLAYERS
        body = self.repeated(tower, everyone, 0, small)
        if "step" in overridden(position):
            box = Box(
                f"position: {words(to_tree(self.arch.position))}", "at the entry of every layer", summary(position)
            )
            body = (replace(box, changed=self.differs("position")), *body)
        runs = self.seen.runs.get(id(tower), 0)
        over = runs // len(tower.layers) if runs > len(tower.layers) else 1
        if self.arch.stack.name == "plain" and over == 1:
            return body
        stack: Stack = tower.stack
        text = f"stack: {words(to_tree(self.arch.stack))}"
        note = joined((f"run {over} times" if over > 1 else "", counted(parameters_of(stack))))
        return (Frame(body, text, note, summary(stack), changed=self.differs("stack")),)

    def layer(self, tower: LayerTower, index: int) -> tuple[Any, ...]:
        """What tells a layer from others: its sublayers, the lengths that they read, whose weights they are."""
        site = replace(tower.site, layer=index)
        order = self.arch.encoder_order if site.tower == "encoder" else self.arch.decoder_order
        assert order is not None
        layer: Layer = tower.layers[index]
        sharers = [each for each in tower.layers if each.functions is layer.functions]
        owner = tower.layers.index(sharers[0]) if len(sharers) > 1 else -1
        full = self.seen.lengths.get((id(tower), 0, 0))
        lengths = [self.seen.lengths.get((id(tower), index, at)) for at in range(len(order))]
        return tuple(
            (part, length if length != full else None, owner)
            for part, length in zip(parts_of(self.arch, order, site), lengths, strict=True)
        )

    def repeated(self, tower: LayerTower, everyone: list[tuple[Any, ...]], first: int, small: bool) -> Chain:
        """Layers from `first` on; patterns that come again in one frame."""
        parts: list[Part] = []
        pattern = self.arch.order != self.base.order or self.arch.depth != self.base.depth
        pattern = pattern or self.whole_new or self.arch.encoder_depth != self.base.encoder_depth
        for run in folded(everyone):
            length = run.stop - run.start
            if length > 1:
                body = self.repeated(tower, everyone[run.start : run.stop], first + run.start, small)
            else:
                body = self.sublayers(tower, first + run.start, everyone[run.start], small)
            shared = {owner for _, _, owner in everyone[run.start]} - {-1}
            lengths = dict.fromkeys(length for _, length, _ in everyone[run.start] if length)
            if lengths and (full := self.seen.lengths.get((id(tower), 0, 0))) and everyone[run.start][0][1] is None:
                lengths = {full: None} | lengths
            note = joined(
                (
                    "one set of weights"
                    if shared and run.times > 1
                    else "weights of another layer"
                    if shared
                    else "",
                    "length " + " → ".join(f"{each:,}" for each in lengths) if lengths else "",
                )
            )
            none = {slot for slot in ("norm", "residual") if getattr(self.arch, slot).name == "none"}
            gone = [f"no {slot}" for slot in sorted(none) if self.differs(slot)]
            note = joined((note, *gone))
            changed = pattern or bool(gone) or self.differs("sharing")
            text = f"× {run.times}" if run.times > 1 else "one layer"
            parts.append(Frame(body, text, note, repeat=True, changed=changed))
        return tuple(parts)

    def sublayers(self, tower: LayerTower, layer: int, known: tuple[Any, ...], small: bool) -> Chain:
        """The sublayers of one layer, equal ones once."""
        parts: list[Part] = []
        for run in folded(known):
            inner: list[Part] = []
            for index in range(run.start, run.stop):
                inner += self.sublayer(tower, layer, index, known[index][0], small)
            if run.times == 1:
                parts += inner
            else:
                parts.append(
                    Frame(tuple(inner), f"× {run.times}", repeat=True, changed=self.arch.order != self.base.order)
                )
        return tuple(parts)

    def sublayer(self, tower: LayerTower, layer: int, index: int, part: Component, small: bool) -> Chain:
        """One sublayer as its residual joins it to the stream."""
        made: Layer = tower.layers[layer]
        function = made.functions[index]
        residual: Residual = made.residuals[index]  # type: ignore[assignment]
        slot = registry_slot(part)
        changed = self.whole_new or part not in self.known(slot)
        changed = changed or (slot == "channel" and self.differs("d_ff")) or (slot == "mixer" and self.heads_differ())
        reads = form_of(self.arch) == "pair" and reads_memory(part)
        text, hooks = words(to_tree(part)), self.hooks(function)
        changed = changed or (bool(hooks) and self.differs("position"))
        heads = getattr(function, "n_heads", 0)
        note = joined(
            (f"{heads} head{'s' * (heads > 1)}" if heads else "", "reads the memory" if reads else "", hooks)
        )
        drawn = component(function, text, self.seen.given.get(id(function), ()), note, changed, reads)
        if small and len(text) < 60:
            if text not in self.beside:
                self.beside[text] = self.joined(residual, replace(drawn, reads=False))
            return (Box(text, about=summary(function), changed=changed, reads=reads),)
        return self.joined(residual, drawn)

    def joined(self, residual: Residual, sublayer: Part) -> Chain:
        """A sublayer between the norms and the joins of its residual."""
        changed = self.differs("residual")

        def show(module: nn.Module, name: str) -> Chain:
            if isinstance(module, Sublayer):
                return (sublayer,)
            if isinstance(module, Norm):
                return self.norm(module) if self.arch.norm.name != "none" else ()
            return (Box(name, shapes(module), changed=changed),)

        x = torch.zeros(1, self.given.length, self.arch.d_model, device="meta")
        found = flow(residual, show, x, Sublayer())
        if found is None:  # it cannot be followed: said in words
            text = f"residual: {words(to_tree(self.arch.residual))}"
            return (Frame((sublayer,), text, counted(parameters_of(residual)), summary(residual), changed=changed),)
        return marked(found) if changed else found

    def known(self, slot: str) -> set[Component]:
        """The baseline's sublayers of a slot."""
        parts = [part for _, part in self.base.sublayers] + ([self.base.swap.by] if self.base.swap else [])
        return {part for part in parts if registry_slot(part) == slot}

    def heads_differ(self) -> bool:
        differ = self.differs("n_heads") or self.differs("d_head")
        return differ and self.arch.d_model == self.base.d_model

    def hooks(self, function: nn.Module) -> str:
        """What the position does within a sublayer."""
        called = [hook for hook in HOOKS if hook in self.seen.hooks.get(id(function), ())]
        own = [hook for hook in called if any(hook in overridden(each) for each in self.positions())]
        name = words(to_tree(self.arch.position))
        return f"position {name} {' and '.join(HOOKS[hook] for hook in own)}" if own else ""

    def positions(self) -> list[Position]:
        return [each for each in self.model.modules() if isinstance(each, Position)]


def marked(chain: Chain) -> Chain:
    """The joins of a chain, and norms between them, as differing from the baseline's."""
    return tuple(replace(part, changed=True) if isinstance(part, Fork) else part for part in chain)
