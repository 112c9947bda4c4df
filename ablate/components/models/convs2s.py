"""The convolutional encoder-decoder."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.components.models.words import PairModel
from ablate.contracts import Cache, Memory, Site
from ablate.errors import within
from ablate.precision import wide
from ablate.registry import register

HALF = math.sqrt(0.5)


class NormedLinear(nn.Module):
    """W x + b, the rows of W being g_i v_i / |v_i|: Salimans and Kingma 2016, arXiv:1602.07868, equation 2.

    Starts from W ~ N(0, deviation^2), b = 0.
    """

    def __init__(self, d_in: int, d_out: int, *, bias: bool, deviation: float):
        super().__init__()
        self.deviation = deviation
        self.v = nn.Parameter(torch.empty(d_out, d_in))
        self.g = nn.Parameter(torch.empty(d_out))
        self.bias = nn.Parameter(torch.empty(d_out)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.v, std=self.deviation)
        with torch.no_grad():
            self.g.copy_(self.v.norm(dim=1))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.v * (self.g / self.v.norm(dim=1))[:, None], self.bias)


class SmallTable(nn.Embedding):
    """A lookup table that starts from N(0, 0.1^2), whatever the architecture's init."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.1)


class ConvBlock(nn.Module):
    """glu(W x_{t-k+1..t} + b), from d features to 2 d and back; centred where both sides are seen.

    An even kernel looks one step further ahead than back where it is centred.
    """

    def __init__(self, site: Site, kernel: int, causal: bool):
        super().__init__()
        self.kernel = kernel
        self.back = kernel - 1 if causal else (kernel - 1) // 2
        deviation = math.sqrt(4 * (1 - site.dropout) / (kernel * site.d_model))
        self.taps = NormedLinear(kernel * site.d_model, 2 * site.d_model, bias=site.bias, deviation=deviation)

    def forward(self, x_BTD: Tensor, past_BTD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The output, and the last inputs, which the next piece needs."""
        T = x_BTD.shape[1]
        if past_BTD is None:
            x_BTD = F.pad(x_BTD, (0, 0, self.back, self.kernel - 1 - self.back))
        else:
            x_BTD = torch.cat((past_BTD, x_BTD), 1)
        taps_BTX = torch.cat([x_BTD[:, tap : tap + T] for tap in range(self.kernel)], -1)
        return F.glu(self.taps(taps_BTX), -1), x_BTD[:, T:]


@register("model", "convs2s", paper="Gehring et al. 2017, arXiv:1705.03122, sections 3.1 to 3.5", form="pair")
class ConvS2S(PairModel):
    """e = w + p, learned. Encoder: x = W e + b; `depth` times x = (glu(conv(x)) + x) sqrt(1/2), the window centred;
    z = W x + b. Decoder: g = w + p, x = W g + b; `depth` times h = glu(conv(x)), the window ending at t,
    d_i = W h_i + b + g_i, a_ij = softmax_j(d_i . z_j), c_i = sqrt(m) sum_j a_ij (z_j + e_j) over the m words of the
    source, x = (h + c + x) sqrt(1/2); softmax(W_o (W x + b) + b_o).

    All matrices are weight-normalised, dropout is before each of the convolutions, on the embeddings and before W_o.
    The gradient that reaches the encoder's z is divided by twice the number of attentions. Starts from b = 0,
    tables N(0, 0.1^2), W ~ N(0, 4 (1 - dropout) / (kernel d_model)) in front of a gated linear unit, else
    N(0, (1 - dropout) / d_in): part of the definition, so that `arch.init` has no effect.
    Differs from the authors' code: it has a matrix on c, and sqrt(1/2) on the sums d, z + e and h + c as well.
    """

    def __init__(self, site: Site, *, kernel: int = 3):
        super().__init__(site)
        within("model 'convs2s': kernel", kernel, 1)
        d, layers = site.d_model, range(site.n_layers)

        def linear(d_out: int = d, keep: float = 1.0) -> NormedLinear:
            return NormedLinear(d, d_out, bias=site.bias, deviation=math.sqrt(keep / d))

        self.source, self.source_places = SmallTable(site.vocab, d), SmallTable(site.max_len, d)
        self.target, self.target_places = SmallTable(site.vocab, d), SmallTable(site.max_len, d)
        keep = 1 - site.dropout
        self.encoder_in, self.encoder_out = linear(keep=keep), linear()
        self.encoder = nn.ModuleList(ConvBlock(site, kernel, causal=False) for _ in layers)
        self.decoder_in, self.decoder_out = linear(keep=keep), linear()
        self.decoder = nn.ModuleList(ConvBlock(site, kernel, causal=True) for _ in layers)
        self.attention = nn.ModuleList(linear() for _ in layers)
        self.output = linear(site.vocab, keep)

    def embed(self, tokens_BT: Tensor, words: SmallTable, places: SmallTable, start: int) -> Tensor:
        place_T = torch.arange(start, start + tokens_BT.shape[1], device=tokens_BT.device)
        return self.dropout(words(tokens_BT) + places(place_T))

    def encode(self, source_BS: Tensor, valid_BS: Tensor | None) -> tuple[Memory, list[Tensor]]:
        e_BSD = self.embed(source_BS, self.source, self.source_places, 0)
        x_BSD = self.encoder_in(e_BSD)
        for conv in self.encoder:
            inputs_BSD = x_BSD if valid_BS is None else x_BSD * valid_BS[..., None].to(x_BSD.dtype)
            x_BSD = (conv(self.dropout(inputs_BSD))[0] + x_BSD) * HALF
        z_BSD = self.encoder_out(x_BSD)
        if z_BSD.requires_grad:
            share = 1 / (2 * len(self.attention))
            z_BSD.register_hook(lambda gradient: gradient * share)
        return Memory(z_BSD, valid_BS, lambda layer: z_BSD), [z_BSD + e_BSD]

    def decode(self, tokens_BT: Tensor, memory: Memory, read: list[Tensor], cache: Cache, start: int) -> Tensor:
        g_BTD = self.embed(tokens_BT, self.target, self.target_places, start)
        x_BTD = self.decoder_in(g_BTD)
        for layer, (conv, query) in enumerate(zip(self.decoder, self.attention, strict=True)):
            h_BTD, cache.states[layer] = conv(self.dropout(x_BTD), cache.states.get(layer))
            x_BTD = (h_BTD + self.attend(query(h_BTD) + g_BTD, memory, read[0]) + x_BTD) * HALF
        return self.output(self.dropout(self.decoder_out(x_BTD)))

    def attend(self, d_BTD: Tensor, memory: Memory, values_BSD: Tensor) -> Tensor:
        """sqrt(m) sum_j softmax_j(d . z_j) (z_j + e_j)"""
        scores_BTS = wide(d_BTD @ memory.x_BSD.mT)
        if memory.valid_BS is None:
            return scores_BTS.softmax(-1).to(values_BSD.dtype) @ values_BSD * math.sqrt(values_BSD.shape[1])
        weights_BTS = scores_BTS.masked_fill(~memory.valid_BS[:, None], -torch.inf).softmax(-1)
        size_B = memory.valid_BS.sum(1).to(values_BSD.dtype).sqrt()
        return weights_BTS.to(values_BSD.dtype) @ values_BSD * size_B[:, None, None]
