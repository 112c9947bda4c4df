"""The feed-forward neural language model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.components.embeddings import Table
from ablate.components.models.words import SoftmaxModel
from ablate.contracts import Cache, Linear, Site
from ablate.errors import within
from ablate.registry import register


@register("model", "nnlm", paper="Bengio et al. 2003, JMLR 3, equation 1 and section 2.1")
class NNLM(SoftmaxModel):
    """y = b + W x + U tanh(d + H x), x = [C(w_t); C(w_{t-1}); ...; C(w_{t-N+1})], p(w_{t+1} | ...) = softmax(y).

    N is `context`; W is there where `direct`, and 0 otherwise. C has `arch.d_model` columns, H has `arch.d_ff` rows;
    the depth and the heads do not count. V m + h (N m + 1) + V (h + 1) parameters, and V N m with `direct`.
    Differs from the paper: words before the beginning are the zero vector, as no token is kept for padding; the
    training's dropout is on tanh(...); `context` counts the words that are read, one less than the paper's n.
    """

    def __init__(self, site: Site, *, context: int = 4, direct: bool = False):
        super().__init__(site)
        within("model 'nnlm': context", context, 1)
        self.context = context
        self.table = Table(site.vocab, site.d_model)
        self.hidden = Linear(context * site.d_model, site.d_ff, bias=site.bias)
        self.output = Linear(site.d_ff, site.vocab, bias=site.bias, role="logits")
        self.direct = Linear(context * site.d_model, site.vocab, bias=False, role="logits") if direct else None

    def logits(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:  # type: ignore[override]
        self.advance(tokens_BT.shape[1], cache)
        x_BTX = self.windows(self.table(tokens_BT), cache)
        y_BTV = self.output(self.dropout(self.hidden(x_BTX).tanh()))
        return y_BTV if self.direct is None else y_BTV + self.direct(x_BTX)

    def windows(self, x_BTD: Tensor, cache: Cache | None) -> Tensor:
        """Every position's last `context` embeddings side by side, the most recent first: (B, T, context D)."""
        before = self.context - 1
        past_BTD = None if cache is None else cache.states.get(0)
        padded_BTD = F.pad(x_BTD, (0, 0, before, 0)) if past_BTD is None else torch.cat((past_BTD, x_BTD), 1)
        if cache is not None:
            cache.states[0] = padded_BTD[:, x_BTD.shape[1] :]
        return padded_BTD.unfold(1, self.context, 1).flip(-1).mT.flatten(-2)
