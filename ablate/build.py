"""ArchSpec + sizes -> Tower -> TokenModel.

The tower is the same for every topology. `TokenModel` puts an embedding in front of it and a head behind: a
decoder when it is causal, an encoder when it is not.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate import registry
from ablate.contracts import Cache, Context, Embedding, Head, Init, Position, Residual, Site, Stack
from ablate.errors import MaxLenError, UserError
from ablate.spec import SUBLAYER, ArchSpec, Component


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
        sharing = registry.make("sharing", arch.sharing)
        function_of, residual_of = sharing.functions(arch.depth), sharing.residuals(arch.depth)
        parts = dict(arch.sublayers)
        self.functions = nn.ModuleDict()
        self.residuals = nn.ModuleDict()
        for layer in range(arch.depth):
            here = replace(site, layer=layer)
            if function_of[layer] == layer:
                made = [registry.make(SUBLAYER, parts[letter], here) for letter in arch.order]
                self.functions[str(layer)] = nn.ModuleList(made)
            if residual_of[layer] == layer:
                joins = [registry.make("residual", arch.residual, here) for _ in arch.order]
                self.residuals[str(layer)] = nn.ModuleList(joins)
        self.stack: Stack = registry.make("stack", arch.stack, site)
        first: Residual = self.residuals["0"][0]  # type: ignore[index, assignment]
        self.final_norm = site.new_norm() if first.needs_final_norm else None
        self.layers = [
            Layer(self.functions[str(f)], self.residuals[str(r)], dropout)  # type: ignore[arg-type]
            for f, r in zip(function_of, residual_of, strict=True)
        ]

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        x_BTD = self.stack(x_BTD, self.layers, ctx)
        return x_BTD if self.final_norm is None else self.final_norm(x_BTD)


class TokenModel(nn.Module):
    """tokens_BT -> what the head says at every position: of the next token, in a causal model.

    Raises `UserError` for a component that cannot be used causally, in a causal model.
    """

    def __init__(self, arch: ArchSpec, vocab: int, max_len: int, dropout: float = 0.0, causal: bool = True):
        super().__init__()
        if causal:
            refuse_bidirectional(arch)
        site = site_of(arch, vocab, max_len, causal)
        self.max_len = max_len
        self.dropout = dropout
        self.embedding: Embedding = registry.make("embedding", arch.embedding, site)
        self.position: Position = registry.make("position", arch.position, site)
        self.tower = Tower(arch, site, dropout)
        self.head: Head = registry.make("head", arch.head, site, self.embedding)

    def forward(self, tokens_BT: Tensor, cache: Cache | None = None) -> tuple[Tensor, Context]:
        """The tower's output, (B, T, D), and the context of the pass. With a cache, T more tokens of a sequence."""
        start = 0 if cache is None else cache.length
        stop = start + tokens_BT.shape[1]
        if stop > self.max_len:
            raise MaxLenError(f"a sequence of {stop} tokens is longer than the model's {self.max_len}")
        positions_T = torch.arange(start, stop, device=tokens_BT.device)
        ctx = Context(self.position, positions_T, cache)
        x_BTD = self.position.embed(self.embedding(tokens_BT), ctx)
        x_BTD = self.tower(F.dropout(x_BTD, self.dropout, self.training), ctx)
        if cache is not None:
            cache.length = stop
        return x_BTD, ctx

    def log_probs(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        return self.head.log_probs(self(tokens_BT, cache)[0])

    def nll(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """-log p(target) in nats at every position, (B, T)."""
        return self.head.nll(self(tokens_BT)[0], targets_BT)


def site_of(arch: ArchSpec, vocab: int, max_len: int, causal: bool) -> Site:
    """What the architecture tells its components, at layer 0."""
    assert arch.d_head is not None and arch.d_ff is not None
    return Site(
        d_model=arch.d_model,
        n_heads=arch.n_heads,
        d_head=arch.d_head,
        d_ff=arch.d_ff,
        vocab=vocab,
        max_len=max_len,
        n_layers=arch.depth,
        sublayers=arch.depth * len(arch.order),
        causal=causal,
        bias=arch.bias,
        norm=arch.norm,
    )


def build_model(
    arch: ArchSpec,
    vocab: int,
    max_len: int,
    *,
    seed: int = 0,
    dropout: float = 0.0,
    causal: bool = True,
) -> TokenModel:
    """A model with its parameters set, on the CPU; a pure function of its arguments.

    Every module is initialised under a seed made of `seed` and the module's own name, so that two variants
    start from the same values wherever they have a module of the same name and shape: comparisons are paired.
    """
    torch.manual_seed(seed)
    model = TokenModel(arch, vocab, max_len, dropout, causal)
    init: Init = registry.make("init", arch.init, site_of(arch, vocab, max_len, causal))
    for name, module in reversed(list(model.named_modules())):  # children first: a parent may refine them
        torch.default_generator.manual_seed(_seed_of(seed, name))
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        init(module)
    return model


def build_on_meta(arch: ArchSpec, vocab: int, max_len: int, causal: bool = True) -> TokenModel:
    """The model without values: for counting and for probing."""
    with torch.device("meta"):
        return TokenModel(arch, vocab, max_len, causal=causal)


def refuse_bidirectional(arch: ArchSpec) -> None:
    """Raise `UserError` naming a component that is declared `causal=False`."""
    parts: list[tuple[str | tuple[str, ...], Component]] = [(SUBLAYER, part) for _, part in arch.sublayers]
    parts += [(slot, getattr(arch, slot)) for slot in registry.SLOTS if hasattr(arch, slot)]
    for slots, part in parts:
        entry = registry.find(slots, part.name)
        if not entry.causal:
            raise UserError(f"{entry.slot} {entry.name!r} sees the future and cannot be used in a causal model")


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest(), "little")
