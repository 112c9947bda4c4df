"""Heads of classifiers: what is said of a whole row."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ablate.contracts import ClassHead, Context, Embedding, Linear, Site
from ablate.registry import register


@register(
    "head",
    "classify",
    paper="Devlin et al. 2019, arXiv:1810.04805, section 4.1 (first token); Yang et al. 2016 (attention pooling)",
    form="classify",
    causal=False,
)
class ClassifyHead(ClassHead):
    """softmax(W pool(x) + b), pool over the row's tokens that are no padding.

    `mean` and `max` over time; `first` takes the first token, `last` the last, as of a causal tower (Radford et al.
    2018); `attention` is sum_t a_t x_t with
    a = softmax_t(u . tanh(W_a x_t + b_a)), u learned (Yang et al. 2016, equations 5 to 7).
    """

    def __init__(
        self, site: Site, embedding: Embedding, *, pool: Literal["mean", "max", "first", "last", "attention"] = "mean"
    ):
        super().__init__(site, embedding)
        self.pool = pool
        self.project = Linear(site.d_model, site.classes, bias=True, role="logits")
        self.attend = None
        if pool == "attention":
            self.attend = Linear(site.d_model, site.d_model, bias=True)
            self.query = nn.Parameter(torch.empty(site.d_model))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.attend is not None:
            nn.init.normal_(self.query, std=self.query.shape[0] ** -0.5)

    def logits(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        valid_BT = x_BTD.new_ones(x_BTD.shape[:2], dtype=torch.bool) if ctx.valid_BT is None else ctx.valid_BT
        return self.project(self.pooled(x_BTD, valid_BT))

    def pooled(self, x_BTD: Tensor, valid_BT: Tensor) -> Tensor:
        """(B, D)"""
        if self.pool == "first":
            return x_BTD[:, 0]
        if self.pool == "last":
            return x_BTD[torch.arange(len(x_BTD), device=x_BTD.device), valid_BT.sum(1) - 1]
        if self.pool == "max":
            return x_BTD.masked_fill(~valid_BT[..., None], -torch.inf).amax(1)
        if self.attend is None:
            weights_BT = valid_BT.to(x_BTD.dtype) / valid_BT.sum(1, keepdim=True)
        else:
            scores_BT = self.attend(x_BTD).tanh() @ self.query.to(x_BTD.dtype)
            weights_BT = scores_BT.masked_fill(~valid_BT, -torch.inf).softmax(-1)
        return (weights_BT[..., None] * x_BTD).sum(1)
