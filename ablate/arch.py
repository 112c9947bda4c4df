"""The architecture's part of a specification: ten slots, the pattern of sublayers, sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ablate import registry
from ablate.errors import SpecError, unknown
from ablate.orders import expand

SUBLAYER = ("mixer", "channel")  # a sublayer is one or the other; their names do not clash
MOST_SUBLAYERS = 10_000
TOWERS = ("both", "encoder", "decoder")


@dataclass(frozen=True)
class Component:
    """A slot's choice: a registered name, and the options that differ from their defaults."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def get(self, option: str, otherwise: Any = None) -> Any:
        return dict(self.options).get(option, otherwise)


def slot(slots: str | tuple[str, ...], name: str) -> Any:
    """A field that holds a component of the slot, `name` by default."""
    return field(default=Component(name), metadata={"slot": slots})


@dataclass(frozen=True)
class Swap:
    """Another component in place of `sublayer` in some layers: in every `every`-th, or in layer `layer` alone
    (-1 is the last). `tower` says in which tower of an encoder-decoder."""

    sublayer: str = "f"
    by: Component = slot(SUBLAYER, "ffn")
    every: int | None = None
    layer: int | None = None
    tower: str = field(default="both", metadata={"known": TOWERS})

    def __post_init__(self) -> None:
        if (self.every is None) == (self.layer is None):
            raise SpecError(["every"], "give either every or layer")
        if self.every is not None:
            positive(self, "every")
        if self.tower not in TOWERS:
            raise SpecError(["tower"], unknown("tower", self.tower, TOWERS))

    def at(self, layer: int, depth: int) -> bool:
        """Whether layer `layer` of `depth` is meant."""
        if self.every is not None:
            return (layer + 1) % self.every == 0
        assert self.layer is not None
        return layer == (self.layer if self.layer >= 0 else depth + self.layer)


@dataclass(frozen=True)
class ArchSpec:
    """An architecture: sizes, the pattern of sublayers, and one component for each slot.

    `d_model` is the width of the stream, `n_heads` the number of attention's heads. `d_head` is d_model / n_heads and
    `d_ff` is 4 d_model unless given. `bias` says whether matrices have one. `order` is a string over the letters of
    `sublayers`, or a rule that makes one (`ablate.orders`); it is one *layer*, repeated `depth` times. `swap` puts
    another component in some of the layers. `model` names a whole model, in place of all slots.

    `encoder` makes an encoder-decoder. `encoder_depth` and `encoder_order` are the decoder's, without
    cross-attention, unless given. `share_embeddings` gives both sides one input embedding.

    The defaults are GPT-2's shape, with exact GELU and an initialisation that suits any width (0.02, made for width
    768 and more, cripples gates at width 48).
    """

    d_model: int = 128
    n_heads: int = 4
    d_head: int | None = None
    d_ff: int | None = None
    depth: int = 4
    order: str = "sf"
    encoder: bool = False
    encoder_depth: int | None = None
    encoder_order: str | None = None
    share_embeddings: bool = True
    sublayers: tuple[tuple[str, Component], ...] = (
        ("c", Component("cross")),
        ("f", Component("ffn")),
        ("s", Component("attention")),
    )
    bias: bool = True
    embedding: Component = slot("embedding", "table")
    position: Component = slot("position", "learned")
    norm: Component = slot("norm", "layernorm")
    residual: Component = slot("residual", "pre")
    stack: Component = slot("stack", "plain")
    sharing: Component = slot("sharing", "none")
    init: Component = slot("init", "lecun")
    head: Component = slot("head", "softmax")
    swap: Swap | None = None
    model: Component | None = field(default=None, metadata={"slot": "model"})

    def __post_init__(self) -> None:
        for name in ("d_model", "n_heads", "depth"):
            positive(self, name)
        try:
            order, depth = expand(self.order, self.depth)
        except ValueError as error:
            raise SpecError(["order"], str(error)) from None
        object.__setattr__(self, "order", order)
        object.__setattr__(self, "depth", depth)
        self._check_order("order", self.depth)
        self._complete_encoder()
        if self.swap is not None:
            self._check_swap(self.swap)
        if self.d_head is None:
            if self.d_model % self.n_heads:
                raise SpecError(
                    ["n_heads"],
                    f"{self.n_heads} does not divide d_model {self.d_model}: choose one of "
                    f"{_divisors(self.d_model)}, or give d_head",
                )
            object.__setattr__(self, "d_head", self.d_model // self.n_heads)
        if self.d_ff is None:
            object.__setattr__(self, "d_ff", 4 * self.d_model)
        positive(self, "d_head")
        positive(self, "d_ff")
        letters = set(self.decoder_order) | set(self.encoder_order or "")
        used = tuple(sorted((letter, part) for letter, part in self.sublayers if letter in letters))
        object.__setattr__(self, "sublayers", used)

    def _check_order(self, name: str, depth: int) -> None:
        order = getattr(self, name)
        if depth * len(order) > MOST_SUBLAYERS:
            raise SpecError(["depth"], f"{depth} makes more than {MOST_SUBLAYERS:,} sublayers")
        if not order:
            raise SpecError([name], "is empty: a layer needs at least one sublayer")
        letters = dict(self.sublayers)
        for letter in order:
            if letter not in letters:
                raise SpecError([name], unknown("sublayer", letter, letters))

    def _complete_encoder(self) -> None:
        """An encoder is as deep as the decoder, and has its order without cross-attention, unless given."""
        if not self.encoder:
            for name in ("encoder_depth", "encoder_order"):
                if getattr(self, name) is not None:
                    raise SpecError([name], "needs an encoder: set arch.encoder to true")
            object.__setattr__(self, "share_embeddings", True)  # there is one input embedding
            return
        if "c" not in dict(self.sublayers):  # a specification of one tower has dropped it as unused
            object.__setattr__(self, "sublayers", (("c", Component("cross")), *self.sublayers))
        if self.encoder_depth is None:
            object.__setattr__(self, "encoder_depth", self.depth)
        if self.encoder_order is None:
            parts = dict(self.sublayers)
            own = "".join(letter for letter in self.order if not reads_memory(parts[letter]))
            object.__setattr__(self, "encoder_order", own)
        positive(self, "encoder_depth")
        self._check_order("encoder_order", self.encoder_depth or 1)

    def _check_swap(self, swap: Swap) -> None:
        if swap.sublayer not in self.order:
            raise SpecError(["swap", "sublayer"], unknown("sublayer", swap.sublayer, dict.fromkeys(self.order)))
        if not any(swap.at(layer, self.depth) for layer in range(self.depth)):
            where = f"every {swap.every}" if swap.every else f"layer {swap.layer}"
            raise SpecError(["swap"], f"no layer is swapped: depth is {self.depth}, and {where} is meant")

    @property
    def decoder_order(self) -> str:
        """The order of the tower that makes the output. In an encoder-decoder whose order has no cross-attention,
        sublayer `c` follows every mixer."""
        parts = dict(self.sublayers)
        if not self.encoder or any(reads_memory(parts[letter]) for letter in self.order):
            return self.order
        mixers = {letter for letter in self.order if registry_slot(parts[letter]) == "mixer"}
        return "".join(letter + "c" * (letter in mixers) for letter in self.order)


def reads_memory(sublayer: Component) -> bool:
    """Whether a sublayer reads an encoder's memory, as cross-attention does."""
    return registry.find(SUBLAYER, sublayer.name).form == "pair"


def registry_slot(sublayer: Component) -> str:
    """mixer or channel."""
    return registry.find(SUBLAYER, sublayer.name).slot


def positive(spec: Any, name: str) -> None:
    """Raise `SpecError` where the field is below 1."""
    if getattr(spec, name) < 1:
        raise SpecError([name], f"{getattr(spec, name)} must be at least 1")


def _divisors(number: int) -> str:
    return ", ".join(str(each) for each in range(1, number + 1) if number % each == 0)
