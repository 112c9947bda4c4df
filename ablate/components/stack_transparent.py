"""Stacks whose output is a learned mixture over depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.contracts import Context, Layer, Site, Stack
from ablate.errors import UserError, within
from ablate.registry import register


@register("stack", "transparent", paper="Bapna et al. 2018, arXiv:1808.07561, section 4", form="pair")
class TransparentStack(Stack):
    """Decoder layer j reads z_j = sum_i softmax_i(W)_ij h_i of the encoder, W (N+1, M) for N and M layers.

    h_0 is the embedded source, h_1 .. h_{N-1} the stream after each layer, h_N the encoder's output: with pre-norm
    that alone is normalised, as in the mesh code of Narang et al. 2021; `norm_each` (ours) has the final norm on all
    of them. W belongs to the encoder and starts from N(0, 1/(N+1)); `dropout` is on W before the softmax. In the
    decoder tower, layer after layer.
    Differs from the paper: no dropout on W unless asked for (0.1 there); W starts as in the mesh code.
    """

    def __init__(self, site: Site, *, dropout: float = 0.0, norm_each: bool = False):
        super().__init__(site)
        within("stack 'transparent': dropout", dropout, 0, 1)
        if site.tower == "only":
            raise UserError("stack 'transparent' needs an encoder: 'scalar_mix' mixes the layers of a single tower")
        self.dropout, self.norm_each = dropout, norm_each
        if site.tower == "encoder":
            self.mix = nn.Parameter(torch.empty(site.encoder_layers + 1, site.decoder_layers))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if hasattr(self, "mix"):
            nn.init.normal_(self.mix, std=len(self.mix) ** -0.5)

    def forward(self, x_BTD: Tensor, layers: Sequence[Layer], ctx: Context) -> Tensor:
        for index, layer in enumerate(layers):
            x_BTD = self.run(x_BTD, layer, index, ctx)
        return x_BTD

    def memory(self, x_BSD: Tensor, trace: Sequence[Tensor], norm: nn.Module | None) -> Callable[[int], Tensor]:
        if self.norm_each and norm is None:
            raise UserError("stack 'transparent': norm_each has no effect: this residual leaves no norm to the end")
        below = [norm(h_BSD) if self.norm_each and norm is not None else h_BSD for h_BSD in trace[:-1]]
        weights_NM = F.dropout(self.mix, self.dropout, self.training).softmax(0)
        mixed = mixture(weights_NM, [*below, x_BSD]).unbind(0)
        return lambda layer: mixed[layer]


@register(
    "stack",
    "scalar_mix",
    paper="Peters et al. 2018 (ELMo), arXiv:1802.05365, equation 1; Kondratyuk and Straka 2019 (UDify), "
    "arXiv:1904.02099, section 4.2",
)
class ScalarMixStack(Stack):
    """gamma sum_j softmax(s)_j h_j in place of the last layer's output, h_0 the input, h_j the stream after layer j.

    s starts at 0 and gamma at 1. `dropout` is UDify's layer dropout: in training each s_j is left out of the softmax
    with that probability (all have the same weight where none is left).
    Differs from the papers: trained with the model, not on top of a frozen one; the input counts as a layer; a final
    norm follows where the residual asks for one, which takes most of gamma's effect away.
    """

    def __init__(self, site: Site, *, dropout: float = 0.0):
        super().__init__(site)
        within("stack 'scalar_mix': dropout", dropout, 0, 1)
        self.dropout = dropout
        self.scores = nn.Parameter(torch.empty(site.n_layers + 1))
        self.gamma = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.scores)
        nn.init.ones_(self.gamma)

    def forward(self, x_BTD: Tensor, layers: Sequence[Layer], ctx: Context) -> Tensor:
        streams = [x_BTD]
        for index, layer in enumerate(layers):
            streams.append(self.run(streams[-1], layer, index, ctx))
        scores_N: Tensor = self.scores
        if self.training and self.dropout:
            left_out_N = torch.rand_like(scores_N) < self.dropout
            scores_N = scores_N.masked_fill(left_out_N, torch.finfo(scores_N.dtype).min)
        return self.gamma * mixture(scores_N.softmax(0)[:, None], streams)[0]


def mixture(weights_NM: Tensor, streams: Sequence[Tensor]) -> Tensor:
    """sum_n weights[n, m] streams[n], (M, B, T, D), in one product."""
    stacked_NX = torch.stack([each.to(weights_NM.dtype) for each in streams]).flatten(1)
    return (weights_NM.T @ stacked_NX).unflatten(1, streams[0].shape)
