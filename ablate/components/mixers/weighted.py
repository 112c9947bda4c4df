"""The Weighted Transformer's branches: attention whose heads go through the feed-forward network one by one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.components.channels.ffn import ACTIVATIONS, Activation
from ablate.components.mixers.attention import Attention, Score
from ablate.components.mixers.cross import CrossAttention
from ablate.contracts import Linear, Site, Slot
from ablate.errors import within
from ablate.registry import register


class Branches(Slot):
    """sum_m alpha_m FFN(kappa_m W_m head_m): what takes the place of attention's output matrix.

    kappa and alpha lie on the simplex: they start from U(0, 1), and after every step each becomes
    relu(z) / sum(relu(z) + 1e-4). In the last `freeze` of the training they stay as they are.
    """

    held: Tensor

    def __init__(self, site: Site, d_value: int, activation: str, freeze: float):
        super().__init__()
        self.n_heads = site.n_heads
        self.activation = ACTIVATIONS[activation]
        self.freeze = freeze
        self.mix = Linear(site.n_heads * d_value, site.d_model, bias=False)
        self.up = Linear(site.d_model, site.d_ff, bias=site.bias)
        self.down = Linear(site.d_ff, site.d_model, bias=site.bias, role="write")
        self.kappa = nn.Parameter(torch.empty(site.n_heads))
        self.alpha = nn.Parameter(torch.empty(site.n_heads))
        self.register_buffer("held", torch.empty(2, site.n_heads))  # kappa and alpha after the last step
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for share_H in (self.kappa, self.alpha):
            nn.init.uniform_(share_H)
        self.project()

    @torch.no_grad()
    def project(self) -> None:
        for share_H, held_H in zip((self.kappa, self.alpha), self.held, strict=True):
            share_H.clamp_(min=0).div_((share_H + 1e-4).sum())
            held_H.copy_(share_H)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        if progress <= 1 - self.freeze:
            self.project()
        else:  # an optimizer's momentum moves a parameter even without a gradient
            self.kappa.copy_(self.held[0])
            self.alpha.copy_(self.held[1])

    def forward(self, y_BTE: Tensor) -> Tensor:
        heads_BHTK = y_BTE.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        mix_HKD = self.mix.weight.unflatten(1, (self.n_heads, -1)).permute(1, 2, 0)
        branches_BHTD = heads_BHTK @ (mix_HKD * self.kappa[:, None, None])
        hidden_BHTF = self.activation(self.up(branches_BHTD)) * self.alpha[:, None, None]
        # the second matrix is linear: the weighted sum over heads may be taken before it
        y_BTD = F.linear(hidden_BHTF.sum(1), self.down.weight)
        return y_BTD if self.down.bias is None else y_BTD + self.alpha.sum() * self.down.bias


@register("mixer", "weighted", paper="Ahmed, Keskar and Socher 2017, arXiv:1711.02132, section 3")
class WeightedAttention(Attention):
    """sum_m alpha_m FFN(kappa_m W_m head_m), sum alpha = sum kappa = 1, both >= 0: attention and feed-forward network
    in one, so that the order is `s` alone (`sc` with `c: weighted_cross` in a decoder).

    FFN(z) = W2 act(W1 z + b1) + b2, d_ff wide, one for all heads, as in the mesh code of Narang et al. 2021. kappa
    and alpha start from U(0, 1) and are projected after every optimizer step, z <- relu(z) / sum(relu(z) + 1e-4);
    in the last `freeze` of the training they stay as they are (20,000 of 524,288 steps of Narang et al.).
    Differs from the papers: Ahmed et al. give every branch an FFN of its own, and kappa and alpha learning rates of
    their own; W_m has no bias. The sum over heads is taken before W2, which is linear: the same function.
    """

    def __init__(
        self,
        site: Site,
        *,
        activation: Activation = "relu",
        freeze: float = 0.038,
        score: Score = "scaled_dot",
        d_value: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__(site, score=score, d_value=d_value, dropout=dropout)
        within(f"mixer {self.component.split('/')[-1]!r}: freeze", freeze, 0, 1)
        self.out = Branches(site, self.v.out_features // site.n_heads, activation, freeze)  # type: ignore[assignment]


@register("mixer", "weighted_cross", paper="Ahmed, Keskar and Socher 2017, arXiv:1711.02132, section 3", form="pair")
class WeightedCrossAttention(WeightedAttention, CrossAttention):
    """`weighted` over the encoder's output: cross-attention with a feed-forward network of its own, each head through
    it by itself, weighed by kappa and alpha. It differs from the papers as `weighted` does.
    """
