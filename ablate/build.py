"""ArchSpec + sizes -> Tower -> model.

The tower is the same for every topology; `models.py` puts embeddings in front of it and a head behind: a decoder
when it is causal, an encoder when it is not, a classifier, or an encoder-decoder of two towers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate import registry
from ablate.contracts import Context, Init, Memory, Mixer, Norm, Residual, Site, Stack
from ablate.errors import UserError
from ablate.spec import SUBLAYER, ArchSpec, Component


@dataclass(frozen=True)
class Shape:
    """What the data tells a model."""

    vocab: int
    max_len: int
    classes: int = 0
    image: tuple[int, int, int] | None = None
    prefix: bool = False  # rows begin with tokens that a causal tower sees from both sides
    generator: float = 0.0  # of two networks, the first one's width as a part of the second's; 0 for one network
    masked: float = 0.0  # the share of the tokens that it fills in
    vocab_multiple: int = 1  # tables of the vocabulary have rows to the next multiple


class Layer:
    """One period of the order string at one depth: its sublayers, each joined to the stream by its residual."""

    def __init__(self, functions: nn.ModuleList, residuals: nn.ModuleList, dropout: float):
        self.functions = functions
        self.residuals = residuals
        self.dropout = dropout

    def __call__(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        for function, residual in zip(self.functions, self.residuals, strict=True):

            def sublayer(y_BTD: Tensor, function: nn.Module = function) -> Tensor:
                return F.dropout(function(y_BTD, ctx), self.dropout, function.training)

            x_BTD = residual(x_BTD, sublayer)
            ctx.call += 1
        return x_BTD


class Tower(nn.Module):
    """x_BTD -> x_BTD: all layers, run by the stack. Weights that layers share are held once."""

    def __init__(self, arch: ArchSpec, site: Site, dropout: float):
        super().__init__()
        self.site = site
        sharing = registry.make("sharing", arch.sharing)
        function_of, residual_of = sharing.functions(site), sharing.residuals(site)
        order = arch.encoder_order if site.tower == "encoder" else arch.decoder_order
        assert order is not None
        self.functions = nn.ModuleDict()
        self.residuals = nn.ModuleDict()
        for layer in range(site.n_layers):
            here = replace(site, layer=layer)
            if function_of[layer] == layer:
                made = [registry.make(SUBLAYER, part, here) for part in parts_of(arch, order, here)]
                self.functions[str(layer)] = nn.ModuleList(made)
            if residual_of[layer] == layer:
                joins: list[Residual] = [registry.make("residual", arch.residual, here) for _ in order]
                for later in joins[1:]:
                    later.follow(joins[0])
                self.residuals[str(layer)] = nn.ModuleList(joins)
        self.stack: Stack = registry.make("stack", arch.stack, site)
        first: Residual = self.residuals["0"][0]  # type: ignore[index, assignment]
        self.final_norm = site.new_norm() if first.needs_final_norm else None
        self.layers = [
            Layer(self.functions[str(f)], self.residuals[str(r)], dropout)  # type: ignore[arg-type]
            for f, r in zip(function_of, residual_of, strict=True)
        ]
        if site.prefix:
            refuse_blind([function for functions in self.functions.values() for function in functions])  # type: ignore[attr-defined]
        norms = [module for module in self.modules() if isinstance(module, Norm)]
        self.admitting = [norm for norm in norms if type(norm).admit is not Norm.admit]

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        for norm in self.admitting:
            norm.admit(ctx)
        x_BTD = self.stack(x_BTD, self.layers, ctx)
        return x_BTD if self.final_norm is None else self.final_norm(x_BTD)

    def remember(self, x_BTD: Tensor, ctx: Context) -> Memory:
        """Run the layers, and make of their output what a decoder reads."""
        mixes = type(self.stack).memory is not Stack.memory
        if mixes and ctx.trace is None:
            ctx.trace = []
        x_BSD = self(x_BTD, ctx)
        trace = ctx.trace or []
        return Memory(x_BSD, ctx.valid_BT, self.stack.memory(x_BSD, trace, self.final_norm))


def refuse_blind(functions: Iterable[nn.Module]) -> None:
    """Raise `UserError` naming a mixer that cannot see a prefix."""
    for function in functions:
        if isinstance(function, Mixer) and not function.sees_prefix():
            raise UserError(
                f"mixer {function.component.split('/')[-1]!r} is not known to see a prefix from both sides: use "
                "'attention', 'grouped_query', or one that only scores differently"
            )


def parts_of(arch: ArchSpec, order: str, site: Site) -> list[Component]:
    """The sublayers of one layer, the swapped one in its place."""
    parts = dict(arch.sublayers)
    swap = arch.swap
    sides = {"only": ("decoder" if site.causal else "encoder",)}.get(site.tower, (site.tower,))
    if swap is None or swap.tower not in ("both", *sides) or not swap.at(site.layer, site.n_layers):
        return [parts[letter] for letter in order]
    return [swap.by if letter == swap.sublayer else parts[letter] for letter in order]


def site_of(arch: ArchSpec, shape: Shape, causal: bool) -> Site:
    """What the architecture tells its components, at layer 0 of its decoder or only tower."""
    assert arch.d_head is not None and arch.d_ff is not None
    encoder_layers, encoder_order = arch.encoder_depth or 0, arch.encoder_order or ""
    return Site(
        d_model=arch.d_model,
        n_heads=arch.n_heads,
        d_head=arch.d_head,
        d_ff=arch.d_ff,
        vocab=shape.vocab,
        max_len=shape.max_len,
        n_layers=arch.depth,
        sublayers=arch.depth * len(arch.decoder_order) + encoder_layers * len(encoder_order),
        causal=causal,
        bias=arch.bias,
        norm=arch.norm,
        tower="decoder" if arch.encoder else "only",
        encoder_layers=encoder_layers,
        decoder_layers=arch.depth if arch.encoder else 0,
        classes=shape.classes,
        image=shape.image,
        prefix=shape.prefix,
        vocab_multiple=shape.vocab_multiple,
    )


def encoder_site(arch: ArchSpec, site: Site) -> Site:
    """The same for the encoder of an encoder-decoder."""
    return replace(site, n_layers=site.encoder_layers, causal=False, tower="encoder")


def form_of(arch: ArchSpec) -> str:
    """Which kind of model an architecture makes: see `register`."""
    if arch.model is not None:
        return registry.find("model", arch.model.name).form
    if arch.encoder:
        return "pair"
    if registry.find("embedding", arch.embedding.name).form == "image":
        return "image"
    return registry.find("head", arch.head.name).form


def build_model(
    arch: ArchSpec,
    vocab: int,
    max_len: int,
    *,
    seed: int = 0,
    dropout: float = 0.0,
    causal: bool = True,
    **data: Any,
) -> Any:
    """A model with its parameters set, on the CPU; a pure function of its arguments.

    A `TokenModel`, an `EncoderDecoder`, a `Classifier`, a `ReplacedTokenModel`, or the whole model that `arch.model`
    names. `data` are the other fields of `Shape`, as `classes` and `image`. Every module is initialised under a seed
    made of `seed` and the module's own name, so that two variants start from the same values wherever they have a
    module of the same name and shape: comparisons are paired.
    """
    torch.manual_seed(seed)
    shape = Shape(vocab, max_len, **data)
    model = _make(arch, shape, dropout, causal)
    init: Init = registry.make("init", arch.init, site_of(arch, shape, causal))
    for name, module in reversed(list(model.named_modules())):  # children first: a parent may refine them
        torch.default_generator.manual_seed(_seed_of(seed, name))
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        initialise(module, init)
    return model


def init_of(arch: ArchSpec, vocab: int, max_len: int, *, causal: bool = True, **data: Any) -> Init:
    """The initialisation that an architecture names, told of its sizes. `data` as for `build_model`."""
    init: Init = registry.make("init", arch.init, site_of(arch, Shape(vocab, max_len, **data), causal))
    return init


def initialise(module: nn.Module, init: Init) -> None:
    """What the init makes of one module whose children it has seen."""
    init(module)
    if isinstance(module, Tower):
        init.tower(module, module.site)


def build_on_meta(arch: ArchSpec, vocab: int, max_len: int, causal: bool = True, **data: Any) -> Any:
    """The model without values: for counting and for probing. `data` as for `build_model`."""
    shape = Shape(vocab, max_len, **data)
    with torch.device("meta"):
        init: Init = registry.make("init", arch.init, site_of(arch, shape, causal))
        model = _make(arch, shape, 0.0, causal)
        for module in reversed(list(model.modules())):
            initialise(module, init)  # it may refuse the architecture
    return model


def _make(arch: ArchSpec, shape: Shape, dropout: float, causal: bool) -> nn.Module:
    from ablate import models  # they build their towers here
    from ablate.replaced import ReplacedTokenModel

    refuse_misfits(arch, causal)
    site = site_of(arch, shape, causal)
    if shape.prefix or shape.generator:
        refuse_unread(arch, "prefix" if shape.prefix else "generator")
    if shape.generator:
        return ReplacedTokenModel(arch, site, dropout, shape.generator, shape.masked)
    if arch.model is not None:
        return registry.make("model", arch.model, replace(site, dropout=dropout))
    made = {"tokens": models.TokenModel, "pair": models.EncoderDecoder}.get(form_of(arch), models.Classifier)
    return made(arch, site, dropout)


def refuse_unread(arch: ArchSpec, what: str) -> None:
    """Raise `UserError` for a model that has no place for a prefix, or for a generator."""
    if arch.model is not None:
        raise UserError(f"model {arch.model.name!r} has no {what}: leave arch.model out")
    if form_of(arch) != "tokens":
        raise UserError(f"a model of form {form_of(arch)} has no {what}: it must be one tower with a head of tokens")


def refuse_misfits(arch: ArchSpec, causal: bool) -> None:
    """Raise `UserError` naming a component that cannot be what it is asked to be.

    One that is declared `causal=False`, where the future must not be seen; one for another form of model.
    """
    if arch.model is None and form_of(arch) == "image":
        if registry.find("head", arch.head.name).form != "classify":
            problem = f"embedding {arch.embedding.name!r} reads images, and head {arch.head.name!r} says something of"
            raise UserError(f"{problem} every token: set arch.head to classify")
    letters = dict(arch.sublayers)
    ahead = [letters[letter] for letter in arch.decoder_order]  # where a decoder must not see ahead
    parts: list[tuple[str | tuple[str, ...], Component]] = [(SUBLAYER, part) for part in letters.values()]
    parts += [(slot, getattr(arch, slot)) for slot in registry.SLOTS if hasattr(arch, slot)]
    if arch.model is not None:
        parts = [("model", arch.model)] * (form_of(arch) in ("tokens", "pair"))  # the others are never causal
    if arch.swap is not None:
        parts.append((SUBLAYER, arch.swap.by))
        ahead += [arch.swap.by] * (arch.swap.tower != "encoder")
    for slots, part in parts:
        entry = registry.find(slots, part.name)
        sees_ahead = not entry.causal and not part.get("train_stats_leak")
        spared = arch.encoder and (entry.slot == "stack" or (slots == SUBLAYER and part not in ahead))
        spared = spared or (slots == "head" and entry.form == "classify")  # it says one thing of the whole row
        if causal and sees_ahead and not spared:
            leak = "; with train_stats_leak: true it can, and the record says so"
            allowed = leak if "train_stats_leak" in entry.defaults else ""
            problem = f"{entry.slot} {entry.name!r} sees the future and cannot be used in a causal model"
            raise UserError(problem + allowed)
        if entry.form == "pair" and not arch.encoder and arch.model is None:
            raise UserError(f"{entry.slot} {entry.name!r} is for an encoder-decoder: set arch.encoder to true")


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest(), "little")
