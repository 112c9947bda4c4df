"""The head of masked language models."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ablate.components.heads import SoftmaxHead
from ablate.contracts import Embedding, Linear, Site
from ablate.registry import register


@register("head", "bert", paper="Devlin et al. 2019, arXiv:1810.04805, section 3.1, as its released code has it")
class BertHead(SoftmaxHead):
    """softmax(W N(gelu(W_h x + b_h)) + b): W the embedding's table when `tied`, N the architecture's norm.

    d^2 + d, the norm and V parameters beside the table; exact GELU.
    """

    def __init__(self, site: Site, embedding: Embedding, *, tied: bool = True):
        super().__init__(site, embedding, tied=tied, bias=True)
        self.hidden = Linear(site.d_model, site.d_model, bias=site.bias)
        self.norm = site.new_norm()

    def logits(self, x_BTD: Tensor) -> Tensor:
        return super().logits(self.norm(F.gelu(self.hidden(x_BTD))))
