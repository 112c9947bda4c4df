"""What whole models of words share: the softmax over the vocabulary, the two sides, additive attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.contracts import Cache, Linear, Loss, Memory, Model
from ablate.errors import MaxLenError
from ablate.precision import wide


class SoftmaxModel(Model):
    """log p = log softmax of `logits`, which takes what `log_probs` takes."""

    def logits(self, *inputs: Tensor, cache: Cache | None = None, **marks: Any) -> Tensor:
        raise NotImplementedError

    def log_probs(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        return wide(self.logits(tokens_BT, cache=cache)).log_softmax(-1)

    def nll(self, *batch: Tensor, **marks: Any) -> Tensor:
        """-log p(target) in nats at every position, (B, T); of a classifier, (B,)."""
        *inputs, targets = batch
        logits = wide(self.logits(*inputs, **marks))
        return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none").view(targets.shape)

    def objective(self, *batch: Tensor, label_smoothing: float, z_loss: float, **marks: Any) -> Loss:
        """As `Head.objective`."""
        if not (label_smoothing or z_loss):
            nll = self.nll(*batch, **marks)
            return nll, nll, {}
        *inputs, targets = batch
        logits = wide(self.logits(*inputs, **marks))
        log_z = logits.logsumexp(-1)
        nll = log_z - logits.gather(-1, targets[..., None])[..., 0]
        uniform = log_z - logits.mean(-1)
        loss = (1 - label_smoothing) * nll + label_smoothing * uniform + z_loss * log_z.square()
        return loss, nll, {}

    def advance(self, length: int, cache: Cache | None) -> int:
        """The position of the first of `length` tokens. Raises `MaxLenError`."""
        return advance(self, length, cache)

    def dropout(self, x: Tensor) -> Tensor:
        """At the training's rate, in training."""
        return F.dropout(x, self.site.dropout, self.training)


def advance(model: Model, length: int, cache: Cache | None) -> int:
    """The position of the first of `length` tokens, which the cache counts from here on. Raises `MaxLenError`."""
    start = 0 if cache is None else cache.length
    if start + length > model.site.max_len:
        raise MaxLenError(f"a sequence of {start + length} tokens is longer than the model's {model.site.max_len}")
    if cache is not None:
        cache.length += length
    return start


class PairModel(SoftmaxModel):
    """An encoder-decoder: `encode` makes what `decode` reads, once for each source."""

    def encode(self, source_BS: Tensor, valid_BS: Tensor | None) -> tuple[Memory, list[Tensor]]:
        """The memory, and what a decoder reads that is computed once from it."""
        raise NotImplementedError

    def decode(self, tokens_BT: Tensor, memory: Memory, read: list[Tensor], cache: Cache, start: int) -> Tensor:
        """The logits, (B, T, V). Decoding goes on from `cache.states[i]`, i >= 0, and leaves its states there."""
        raise NotImplementedError

    def logits(  # type: ignore[override]
        self, source_BS: Tensor, tokens_BT: Tensor, cache: Cache | None = None, valid_BS: Tensor | None = None
    ) -> Tensor:
        start = self.advance(tokens_BT.shape[1], cache)
        cache = Cache() if cache is None else cache
        if cache.memory is None:
            self.advance(source_BS.shape[1], None)
            cache.memory, read = self.encode(source_BS, valid_BS)
            cache.states[-1] = [cache.memory.x_BSD, *read]
        return self.decode(tokens_BT, cache.memory, cache.states[-1][1:], cache, start)

    def log_probs(  # type: ignore[override]
        self, source_BS: Tensor, tokens_BT: Tensor, cache: Cache | None = None, valid_BS: Tensor | None = None
    ) -> Tensor:
        return wide(self.logits(source_BS, tokens_BT, cache, valid_BS)).log_softmax(-1)

    def example(self, rows: int, length: int) -> tuple[Tensor, ...]:
        """Inputs and targets of the shapes that `nll` takes: a source as long as the target."""
        tokens = torch.zeros(rows, length, dtype=torch.long)
        return tokens, tokens, tokens


class AdditiveAttention(nn.Module):
    """a_j = softmax_j(v . tanh(W q + U h_j)), sum_j a_j h_j over the source: Bahdanau et al. 2015, appendix A.1.2.

    `keys`, U h_j (+ b), is computed once for a source.
    """

    def __init__(self, d_query: int, d_memory: int, d: int, bias: bool):
        super().__init__()
        self.query = Linear(d_query, d, bias=False, role="score")
        self.keys = Linear(d_memory, d, bias=bias, role="score")
        self.v = Linear(d, 1, bias=False, role="score")

    def forward(self, q_BTQ: Tensor, memory: Memory, keys_BSK: Tensor) -> Tensor:
        """What is read for every query, (B, T, memory)."""
        hidden_BTSK = (self.query(q_BTQ)[:, :, None] + keys_BSK[:, None]).tanh()
        scores_BTS = wide(self.v(hidden_BTSK)[..., 0])
        if memory.valid_BS is not None:
            scores_BTS = scores_BTS.masked_fill(~memory.valid_BS[:, None], -torch.inf)
        return scores_BTS.softmax(-1).to(memory.x_BSD.dtype) @ memory.x_BSD
