"""Continuous bags of words: the mean of the context's embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.components.embeddings import Table
from ablate.components.models.words import SoftmaxModel
from ablate.contracts import Cache, Linear, Site
from ablate.errors import UserError, within
from ablate.precision import wide
from ablate.registry import register


class BagModel(SoftmaxModel):
    """softmax(U mean C(w)), over the words of a context. U is C where `tied`."""

    def __init__(self, site: Site, *, window: int | None, tied: bool):
        super().__init__(site)
        if window is not None:
            within(f"model {self.component.removeprefix('model/')!r}: window", window, 1)
        self.window = window
        self.table = Table(site.vocab, site.d_model)
        self.output = None if tied else Linear(site.d_model, site.vocab, bias=False, role="logits")

    def words(self, mean_BTD: Tensor) -> Tensor:
        mean_BTD = self.dropout(mean_BTD)
        return F.linear(mean_BTD, self.table.weight) if self.output is None else self.output(mean_BTD)


@register("model", "cbow", paper="Mikolov et al. 2013, arXiv:1301.3781, section 3.1, as a language model")
class CBOW(BagModel):
    """p(w_{t+1} | ...) = softmax(U (1/n) sum_{j<n} C(w_{t-j})), n = min(`window`, t + 1) words read so far.

    Without `window` all of them. 2 V d parameters, or V d where `tied`.
    Differs from the paper: the context is the past alone; a full softmax, not a hierarchical one.
    """

    def __init__(self, site: Site, *, window: int | None = 4, tied: bool = False):
        super().__init__(site, window=window, tied=tied)

    def logits(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:  # type: ignore[override]
        T = tokens_BT.shape[1]
        start = self.advance(T, cache)
        x_BTD = self.table(tokens_BT)
        past_BTD = None if cache is None else cache.states.get(0)
        seen_T = torch.arange(start + 1, start + T + 1, device=x_BTD.device)
        if self.window is None:
            sums_BTD = x_BTD.cumsum(1) if past_BTD is None else past_BTD + x_BTD.cumsum(1)
            state_BTD = sums_BTD[:, -1:]
        else:
            before = self.window - 1
            padded_BTD = F.pad(x_BTD, (0, 0, before, 0)) if past_BTD is None else torch.cat((past_BTD, x_BTD), 1)
            sums_BTD = F.avg_pool1d(padded_BTD.mT, self.window, 1).mT * self.window
            seen_T = seen_T.clamp(max=self.window)
            state_BTD = padded_BTD[:, T:]
        if cache is not None:
            cache.states[0] = state_BTD
        return self.words(sums_BTD / seen_T[:, None].to(x_BTD.dtype))


@register(
    "model", "cbow_symmetric", paper="Mikolov et al. 2013, arXiv:1301.3781, section 3.1 and figure 1", causal=False
)
class SymmetricCBOW(BagModel):
    """p(w_t | ...) = softmax(U mean C(w_s)), over the words s != t with |s - t| <= `window`.

    It says which word stands *at* t, from both sides, and does not look at w_t itself. A word without a context is
    predicted from the zero vector. 2 V d parameters, or V d where `tied`.
    Differs from the paper: a full softmax, not a hierarchical one; the context is cut off at the ends of the row.
    """

    def __init__(self, site: Site, *, window: int = 4, tied: bool = False):
        if site.causal:
            raise UserError("model 'cbow_symmetric' sees the future and cannot be used in a causal model: use 'cbow'")
        super().__init__(site, window=window, tied=tied)
        self.reach = window

    def logits(  # type: ignore[override]
        self, tokens_BT: Tensor, cache: Cache | None = None, valid_BT: Tensor | None = None
    ) -> Tensor:
        if cache is not None:
            raise UserError("model 'cbow_symmetric' reads both sides: it cannot go on step by step")
        self.advance(tokens_BT.shape[1], None)
        x_BTD = self.table(tokens_BT)
        valid_BT = torch.ones_like(tokens_BT, dtype=torch.bool) if valid_BT is None else valid_BT
        valid_BT1 = valid_BT[..., None].to(x_BTD.dtype)
        seen_BT1 = self.around(valid_BT1).round().clamp(min=1)
        return self.words(self.around(x_BTD * valid_BT1) / seen_BT1)

    def around(self, x_BTD: Tensor) -> Tensor:
        """The sum over the window without its middle."""
        N, x_BDT = self.reach, x_BTD.mT
        before_BDT = F.avg_pool1d(F.pad(x_BDT, (N, -1)), N, 1)
        after_BDT = F.avg_pool1d(F.pad(x_BDT, (-1, N)), N, 1)
        return (before_BDT + after_BDT).mT * N

    def log_probs(  # type: ignore[override]
        self, tokens_BT: Tensor, cache: Cache | None = None, valid_BT: Tensor | None = None
    ) -> Tensor:
        return wide(self.logits(tokens_BT, cache, valid_BT)).log_softmax(-1)
