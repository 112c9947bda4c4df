"""The Evolved Transformer's own sublayers: branched convolutions, and attention beside cross-attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.components.mixers.attention import Attention, Score
from ablate.components.mixers.cross import CrossAttention
from ablate.contracts import Cache, Context, Linear, Mixer, Role, Site
from ablate.registry import register


class SeparableConv(nn.Module):
    """A filter of `kernel` taps for each channel, then a matrix: W (sum_j w_j * x_{t+j}). No padding: it takes
    kernel - 1 inputs more than it gives outputs. The filters start from N(0, 1/kernel)."""

    def __init__(self, d_in: int, d_out: int, kernel: int, bias: bool, role: Role = "inner"):
        super().__init__()
        self.taps = nn.Parameter(torch.empty(d_in, 1, kernel))
        self.pointwise = Linear(d_in, d_out, bias=bias, role=role)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.taps, std=self.taps.shape[-1] ** -0.5)

    def forward(self, x_BSD: Tensor) -> Tensor:
        filtered_BDT = F.conv1d(x_BSD.transpose(1, 2), self.taps, groups=len(self.taps))
        y_BTD: Tensor = self.pointwise(filtered_BDT.transpose(1, 2))
        return y_BTD


class BranchedConv(Mixer):
    """Two branches of convolutions summed, a norm, and a separable convolution: what both sides have in common.

    Every window ends at its own position where the future must not be seen, and is centred elsewhere. Out of range
    is zero. Decoding keeps as many inputs of either stage as its widest window needs besides the current one.
    """

    widest: int  # kernel of the first stage
    last: int  # kernel of the second

    def __init__(self, site: Site, width: int):
        super().__init__(site)
        self.causal = site.causal
        self.norm = site.new_norm(width)

    def branches(self, x_BSD: Tensor) -> Tensor:
        """The two branches, summed, of inputs that reach as far as the widest window on either side."""
        raise NotImplementedError

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        past_x, past_hidden = ctx.recall() or (None, None)
        x_BSD = self.extended(ctx.zero_padding(x_BTD), past_x, self.widest)
        hidden_BTF = ctx.zero_padding(self.norm(self.branches(x_BSD)))
        hidden_BSF = self.extended(hidden_BTF, past_hidden, self.last)
        T = x_BTD.shape[1]
        ctx.remember((x_BSD[:, T:], hidden_BSF[:, T:]))
        return self.join(hidden_BSF)

    def join(self, hidden_BSF: Tensor) -> Tensor:
        raise NotImplementedError

    def extended(self, x_BTD: Tensor, past: Tensor | None, kernel: int) -> Tensor:
        """x with the kernel - 1 inputs around it: the past that was kept, or zeros."""
        if past is not None:
            return torch.cat((past, x_BTD), 1)
        ahead = 0 if self.causal else kernel // 2
        return F.pad(x_BTD, (0, 0, kernel - 1 - ahead, ahead))

    def inner(self, x_BSD: Tensor, kernel: int) -> Tensor:
        """Of inputs for the widest window, those for a window of `kernel`."""
        spare = self.widest - kernel
        ahead = 0 if self.causal else spare // 2
        return x_BSD[:, spare - ahead : x_BSD.shape[1] - ahead]


@register("mixer", "evolved_encoder_conv", paper="So, Liang and Le 2019, arXiv:1901.11117, figure 3")
class EvolvedEncoderConv(BranchedConv):
    """SepConv9(N(relu(W x) + relu(Conv3 x))), 4d channels wide inside and d/2 at its end.

    W (4d, d); Conv3 gives d/2 channels and SepConv9 takes 4d to d/2; zeros fill up both to what they are added to.
    As in the mesh code of Narang et al. 2021. In a decoder (the paper has it in encoders only) it looks back alone.
    """

    widest, last = 3, 9

    def __init__(self, site: Site):
        super().__init__(site, 4 * site.d_model)
        d, half = site.d_model, max(1, site.d_model // 2)
        self.left = Linear(d, 4 * d, bias=site.bias)
        self.right = Linear(3 * d, half, bias=site.bias)  # of three inputs, the oldest first
        self.out = SeparableConv(4 * d, half, 9, site.bias, role="write")
        self.missing = d - half

    def branches(self, x_BSD: Tensor) -> Tensor:
        T = x_BSD.shape[1] - 2
        right_BTF = self.right(torch.cat([x_BSD[:, j : j + T] for j in range(3)], -1)).relu()
        left_BTF = self.left(self.inner(x_BSD, 1)).relu()
        return left_BTF + F.pad(right_BTF, (0, left_BTF.shape[-1] - right_BTF.shape[-1]))

    def join(self, hidden_BSF: Tensor) -> Tensor:
        return F.pad(self.out(hidden_BSF), (0, self.missing))


@register("mixer", "evolved_decoder_conv", paper="So, Liang and Le 2019, arXiv:1901.11117, figure 3")
class EvolvedDecoderConv(BranchedConv):
    """SepConv7(N(relu(SepConv11 x) + SepConv7' x)), 2d channels wide inside.

    SepConv11 takes d channels to 2d, SepConv7' d to d/2, filled up with zeros, and the last SepConv7 2d to d. As in
    the mesh code of Narang et al. 2021. Where both sides are seen (an encoder, which the paper does not treat)
    the windows are centred.
    """

    widest, last = 11, 7

    def __init__(self, site: Site):
        super().__init__(site, 2 * site.d_model)
        d = site.d_model
        self.left = SeparableConv(d, 2 * d, 11, site.bias)
        self.right = SeparableConv(d, max(1, d // 2), 7, site.bias)
        self.out = SeparableConv(2 * d, d, 7, site.bias, role="write")

    def branches(self, x_BSD: Tensor) -> Tensor:
        left_BTF = self.left(x_BSD).relu()
        right_BTF = self.right(self.inner(x_BSD, 7))
        return left_BTF + F.pad(right_BTF, (0, left_BTF.shape[-1] - right_BTF.shape[-1]))

    def join(self, hidden_BSF: Tensor) -> Tensor:
        y_BTD: Tensor = self.out(hidden_BSF)
        return y_BTD


@register("mixer", "evolved_self", paper="So, Liang and Le 2019, arXiv:1901.11117, figure 3")
class EvolvedSelf(Attention):
    """Attention with twice as many heads, each d_head wide: the first item of the evolved decoder, which a
    decoder without an encoder has without its cross-attention.

    Ours: a position's heads 1..H serve heads 1..H and H+1..2H alike (the paper's positions know of no heads). Both
    halves stand beside each other in the batch, so that positions see H heads.
    """

    def __init__(self, site: Site, *, score: Score = "scaled_dot", dropout: float = 0.0):
        super().__init__(replace(site, n_heads=2 * site.n_heads), score=score, dropout=dropout)
        self.n_heads = site.n_heads

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        if ctx.valid_BT is not None:  # masks of padding have a row for each of the batch: here there are two
            ctx = replace(ctx, once={}, valid_BT=ctx.valid_BT.repeat_interleave(2, 0))
        past = ctx.recall()
        inner = branch(ctx, past and tuple(each.flatten(0, 1) for each in past))
        y_BHTK = self.heads(x_BTD, inner)
        if ctx.cache is not None:  # a row's two halves together: in a cache the rows stand first
            ctx.remember(tuple(each.unflatten(0, (-1, 2)) for each in inner.recall()))
        return self.out(y_BHTK.unflatten(0, (-1, 2)).permute(0, 3, 1, 2, 4).flatten(2))

    def split(self, x_BTE: Tensor) -> Tensor:
        """(B, T, 2 H K) -> (2 B, H, T, K), the two halves of a row's heads one after the other."""
        return x_BTE.unflatten(-1, (2, self.n_heads, -1)).permute(0, 2, 3, 1, 4).flatten(0, 1)


@register("mixer", "evolved_parallel", paper="So, Liang and Le 2019, arXiv:1901.11117, figure 3", form="pair")
class EvolvedParallel(Mixer):
    """The evolved decoder's first item: self-attention with 2H heads plus cross-attention with H, of one input."""

    def __init__(self, site: Site, *, score: Score = "scaled_dot", dropout: float = 0.0):
        super().__init__(site)
        self.own = EvolvedSelf(site, score=score, dropout=dropout)
        self.cross = CrossAttention(site, score=score, dropout=dropout)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        own, cross = (branch(ctx, state) for state in ctx.recall() or (None, None))
        y_BTD = self.own(x_BTD, own) + self.cross(x_BTD, cross)
        ctx.remember((own.recall(), cross.recall()))
        return y_BTD


def branch(ctx: Context, state: Any) -> Context:
    """The context of one of several mixers in a sublayer, with the past that is its own."""
    if ctx.cache is None:
        return ctx
    states = {} if state is None else {ctx.call: state}
    return replace(ctx, cache=Cache(ctx.cache.length, states, ctx.cache.memory))
