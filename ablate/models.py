"""The models that are made of the ten slots.

All of them have `nll(*inputs, targets)`, `objective(*inputs, targets, ...)` and `example(...)`, so that training,
counting and probing need not tell them apart. A whole model of the `model` slot has the same methods.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate import registry
from ablate.build import Tower, encoder_site
from ablate.contracts import Cache, ClassHead, Context, Embedding, Head, Loss, Memory, Position, Site
from ablate.errors import MaxLenError, UserError
from ablate.spec import ArchSpec


class Reader(nn.Module):
    """Embedding, position and tower: what every model of tokens has once or twice."""

    def __init__(self, arch: ArchSpec, site: Site, dropout: float, embedding: Embedding | None = None):
        super().__init__()
        self.max_len = site.max_len
        self.dropout = dropout
        self.borrowed = [] if embedding is None else [embedding]  # in a list, so that its parameters stay one's own
        if embedding is None:
            self.embedding: Embedding = registry.make("embedding", arch.embedding, site)
        self.closing = (embedding or self.embedding).closing(site)
        # in a prefix, distances go both ways
        around = replace(site, causal=site.causal and not site.prefix)
        self.position: Position = registry.make("position", arch.position, around)
        self.tower = Tower(arch, site, dropout)

    def context(self, inputs: Tensor, cache: Cache | None = None, valid_BT: Tensor | None = None) -> Context:
        """Of a pass over a batch; with a cache, over T more tokens of each sequence. Raises `MaxLenError`."""
        start = 0 if cache is None else cache.length
        stop = start + inputs.shape[1]
        if stop > self.max_len:
            raise MaxLenError(f"a sequence of {stop} tokens is longer than the model's {self.max_len}")
        return Context(self.position, torch.arange(start, stop, device=inputs.device), cache=cache, valid_BT=valid_BT)

    def embed(self, inputs: Tensor, ctx: Context) -> Tensor:
        embedding = self.borrowed[0] if self.borrowed else self.embedding
        return self.placed(embedding(inputs), ctx)

    def placed(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        """Embedded tokens, with their positions."""
        x_BTD = self.position.embed(x_BTD, ctx)
        if self.closing is not None:
            x_BTD = self.closing(x_BTD)
        return F.dropout(x_BTD, self.dropout, self.training)


class TokenModel(Reader):
    """tokens_BT -> what the head says at every position: of the next token, in a causal model."""

    def __init__(self, arch: ArchSpec, site: Site, dropout: float = 0.0, embedding: Embedding | None = None):
        super().__init__(arch, site, dropout, embedding)
        self.prefix = site.prefix
        self.head: Head = registry.make("head", arch.head, site, embedding or self.embedding)

    def forward(
        self,
        tokens_BT: Tensor,
        cache: Cache | None = None,
        valid_BT: Tensor | None = None,
        prefix_BT: Tensor | None = None,
        trace: list[Tensor] | None = None,
    ) -> tuple[Tensor, Context]:
        """The tower's output, (B, T, D), and the context of the pass. With a cache, T more tokens of a sequence."""
        if prefix_BT is not None and not self.prefix:
            raise UserError("this model was not built to see a prefix from both sides")
        ctx = self.context(tokens_BT, cache, valid_BT)
        ctx.prefix_BT, ctx.trace = prefix_BT, trace
        x_BTD = self.tower(self.embed(tokens_BT, ctx), ctx)
        if cache is not None:
            cache.length += tokens_BT.shape[1]
        return x_BTD, ctx

    def log_probs(
        self,
        tokens_BT: Tensor,
        cache: Cache | None = None,
        valid_BT: Tensor | None = None,
        prefix_BT: Tensor | None = None,
    ) -> Tensor:
        return self.head.log_probs(self(tokens_BT, cache, valid_BT, prefix_BT)[0])

    def nll(self, tokens_BT: Tensor, targets_BT: Tensor, **marks: Tensor) -> Tensor:
        """-log p(target) in nats at every position, (B, T). `marks` are keyword arguments of `forward`."""
        return self.head.nll(self(tokens_BT, **marks)[0], targets_BT)

    def objective(
        self, tokens_BT: Tensor, targets_BT: Tensor, label_smoothing: float, z_loss: float, **marks: Tensor
    ) -> Loss:
        x_BTD, ctx = self(tokens_BT, **marks)
        return (*self.head.objective(x_BTD, targets_BT, label_smoothing, z_loss), ctx.aux)

    def example(self, rows: int, length: int) -> tuple[Tensor, ...]:
        """Inputs and targets of the shapes that `nll` takes."""
        tokens = torch.zeros(rows, length, dtype=torch.long)
        return tokens, tokens


class EncoderDecoder(nn.Module):
    """source_BS, tokens_BT -> what the head says after every token, having read the source and the tokens so far.

    Both sides have one vocabulary and, unless `arch.share_embeddings` is false, one input embedding; a tied head
    uses the decoder's. Each tower has a position of its own.
    """

    def __init__(self, arch: ArchSpec, site: Site, dropout: float = 0.0):
        super().__init__()
        self.decoder = Reader(arch, site, dropout)
        shared = self.decoder.embedding if arch.share_embeddings else None
        self.encoder = Reader(arch, encoder_site(arch, site), dropout, shared)
        self.head: Head = registry.make("head", arch.head, site, self.decoder.embedding)

    def encode(
        self, source_BS: Tensor, valid_BS: Tensor | None = None, trace: list[Tensor] | None = None
    ) -> tuple[Memory, Context]:
        """What the decoder reads, and the context of the encoder's pass."""
        ctx = self.encoder.context(source_BS, valid_BT=valid_BS)
        ctx.trace = trace
        return self.encoder.tower.remember(self.encoder.embed(source_BS, ctx), ctx), ctx

    def forward(
        self,
        source_BS: Tensor,
        tokens_BT: Tensor,
        cache: Cache | None = None,
        valid_BS: Tensor | None = None,
        trace: list[Tensor] | None = None,
    ) -> tuple[Tensor, Context]:
        """The decoder's output, (B, T, D), and the context of its pass, the encoder's auxiliary losses included.

        With a cache the source is read once, and T more tokens of each sequence are given.
        """
        aux: dict[str, Tensor] = {}
        if cache is not None and cache.memory is not None:
            memory = cache.memory
        else:
            memory, read = self.encode(source_BS, valid_BS)
            aux = read.aux
        ctx = self.decoder.context(tokens_BT, cache)
        ctx.memory, ctx.trace = memory, trace
        for name, loss in aux.items():
            ctx.add_aux(name, loss)
        x_BTD = self.decoder.tower(self.decoder.embed(tokens_BT, ctx), ctx)
        if cache is not None:
            cache.memory = memory
            cache.length += tokens_BT.shape[1]
        return x_BTD, ctx

    def log_probs(
        self, source_BS: Tensor, tokens_BT: Tensor, cache: Cache | None = None, valid_BS: Tensor | None = None
    ) -> Tensor:
        return self.head.log_probs(self(source_BS, tokens_BT, cache, valid_BS)[0])

    def nll(self, source_BS: Tensor, tokens_BT: Tensor, targets_BT: Tensor, **marks: Tensor) -> Tensor:
        """-log p(target) in nats at every position of the decoder, (B, T)."""
        return self.head.nll(self(source_BS, tokens_BT, **marks)[0], targets_BT)

    def objective(
        self,
        source_BS: Tensor,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        label_smoothing: float,
        z_loss: float,
        **marks: Tensor,
    ) -> Loss:
        x_BTD, ctx = self(source_BS, tokens_BT, **marks)
        return (*self.head.objective(x_BTD, targets_BT, label_smoothing, z_loss), ctx.aux)

    def example(self, rows: int, length: int) -> tuple[Tensor, ...]:
        """Inputs and targets of the shapes that `nll` takes: a source as long as the target."""
        tokens = torch.zeros(rows, length, dtype=torch.long)
        return tokens, tokens, tokens


class Classifier(Reader):
    """A row of tokens (B, T), or an image (B, C, H, W), -> what the head says of its class.

    The tower is causal where the task says so, as of a model that was trained to predict the next token.
    """

    def __init__(self, arch: ArchSpec, site: Site, dropout: float = 0.0):
        super().__init__(arch, site, dropout)
        self.image = site.image
        self.head: ClassHead = registry.make("head", arch.head, site, self.embedding)

    def forward(
        self, inputs: Tensor, valid_BT: Tensor | None = None, trace: list[Tensor] | None = None
    ) -> tuple[Tensor, Context]:
        """The tower's output, (B, T, D), and the context of the pass. An image's T is its number of patches."""
        embedded = self.embedding(inputs)
        ctx = self.context(embedded, valid_BT=valid_BT)
        ctx.trace = trace
        return self.tower(self.placed(embedded, ctx), ctx), ctx

    def log_probs(self, inputs: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """(B, C)"""
        return self.head.log_probs(*self(inputs, valid_BT))

    def nll(self, inputs: Tensor, targets_B: Tensor, **marks: Tensor) -> Tensor:
        """-log p(class) in nats, (B,)."""
        x_BTD, ctx = self(inputs, **marks)
        return self.head.nll(x_BTD, ctx, targets_B)

    def objective(
        self, inputs: Tensor, targets_B: Tensor, label_smoothing: float, z_loss: float, **marks: Tensor
    ) -> Loss:
        x_BTD, ctx = self(inputs, **marks)
        return (*self.head.objective(x_BTD, ctx, targets_B, label_smoothing, z_loss), ctx.aux)

    def example(self, rows: int, length: int) -> tuple[Tensor, ...]:
        """Inputs and targets of the shapes that `nll` takes."""
        inputs: Any = torch.zeros(rows, length, dtype=torch.long)
        if self.image is not None:
            inputs = torch.zeros(rows, *self.image)
        return inputs, torch.zeros(rows, dtype=torch.long)
