"""Google's neural machine translation: deep LSTMs with residual connections and attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.components.embeddings import Table
from ablate.components.mixers.recurrent import swapped
from ablate.components.models.words import AdditiveAttention, PairModel
from ablate.contracts import Cache, Linear, Memory, Site
from ablate.registry import register

State = tuple[Tensor, Tensor]


@register("model", "gnmt", paper="Wu et al. 2016, arXiv:1609.08144, section 3", form="pair")
class GNMT(PairModel):
    """`depth` LSTM layers a side. Encoder: x^1 = [->LSTM(E x); <-LSTM(E x)], x^l = LSTM(x^{l-1}), + x^{l-1} from
    the third layer on. Decoder: a_i = attention(y_{i-1}) over the encoder's output, y_{i-1} the bottom layer's
    output one step before; y_i = LSTM([E w_i; a_i]); x^l_i = LSTM([x^{l-1}_i; a_i]), + x^{l-1}_i from the third
    layer on; softmax(W x^depth + b).

    The attention has one hidden layer, v . tanh(W y + U x). d_model cells everywhere; starts from
    U(+-1/sqrt(d_model)). Not re-read: that the decoder starts from zeros, and that a_i enters the bottom layer too.
    Differs from the paper: tables, attention and output start from `arch.init` (there all is U(+-0.04)); two bias
    vectors a layer, as cuDNN has them; the training's dropout is on the input of every layer and of the softmax.
    """

    def __init__(self, site: Site):
        super().__init__(site)
        d, bias = site.d_model, site.bias

        def cells(d_in: int) -> nn.LSTM:
            return nn.LSTM(d_in, d, batch_first=True, bias=bias)

        self.source, self.target = Table(site.vocab, d), Table(site.vocab, d)
        self.right, self.left = cells(d), cells(d)
        self.encoder = nn.ModuleList(cells(2 * d if layer == 1 else d) for layer in range(1, site.n_layers))
        memory = d if site.n_layers > 1 else 2 * d
        self.attention = AdditiveAttention(d, memory, d, bias)
        self.bottom = cells(d + memory)
        self.decoder = nn.ModuleList(cells(d + memory) for _ in range(1, site.n_layers))
        self.output = Linear(d, site.vocab, bias=bias, role="logits")

    def encode(self, source_BS: Tensor, valid_BS: Tensor | None) -> tuple[Memory, list[Tensor]]:
        x_BSD = self.dropout(self.source(source_BS))
        turn_BS = turned(source_BS, valid_BS)[..., None]
        left_BSD = run(self.left, x_BSD.gather(1, turn_BS.expand_as(x_BSD)))[0]
        left_BSD = left_BSD.gather(1, turn_BS.expand_as(left_BSD))
        x_BSD = torch.cat((run(self.right, x_BSD)[0], left_BSD), -1)
        for layer, cells in enumerate(self.encoder, 2):
            y_BSD = run(cells, self.dropout(x_BSD))[0]
            x_BSD = y_BSD + x_BSD if layer > 2 else y_BSD
        return Memory(x_BSD, valid_BS, lambda layer: x_BSD), [self.attention.keys(x_BSD)]

    def decode(self, tokens_BT: Tensor, memory: Memory, read: list[Tensor], cache: Cache, start: int) -> Tensor:
        x_BTD, a_BTD = self.recur(self.dropout(self.target(tokens_BT)), memory, read[0], cache)
        for layer, cells in enumerate(self.decoder, 2):
            inputs_BTD = torch.cat((self.dropout(x_BTD), a_BTD), -1)
            y_BTD, state = run(cells, inputs_BTD, swapped(cache.states.get(layer)))
            cache.states[layer] = swapped(state)
            x_BTD = y_BTD + x_BTD if layer > 2 else y_BTD
        return self.output(self.dropout(x_BTD))

    def recur(self, x_BTD: Tensor, memory: Memory, keys_BSD: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
        """The bottom layer's outputs and the contexts."""
        B, T, d = x_BTD.shape
        weight_ih, weight_hh, *biases = self.bottom.parameters()
        of_word, of_context = weight_ih.split((d, weight_ih.shape[1] - d), 1)
        gates_BTG = F.linear(x_BTD, of_word, sum(biases) if biases else None)  # type: ignore[arg-type]
        if x_BTD.is_meta:  # the products of all steps in one
            y_BTD = x_BTD.new_zeros(B, T, d, requires_grad=x_BTD.requires_grad)
            a_BTD = self.attention(y_BTD, memory, keys_BSD)
            gates_BTG = gates_BTG + F.linear(a_BTD, of_context) + F.linear(y_BTD, weight_hh)
            y_BTD, c_BTD = lstm_step(gates_BTG, y_BTD)
            cache.states[1] = (y_BTD[:, -1], c_BTD[:, -1])
            return y_BTD, a_BTD
        zero_BD = x_BTD.new_zeros(B, d)
        y_BD, c_BD = cache.states.get(1, (zero_BD, zero_BD))
        outputs, contexts = [], []
        for gates_BG in gates_BTG.unbind(1):
            contexts.append(self.attention(y_BD[:, None], memory, keys_BSD)[:, 0])
            gates_BG = gates_BG + F.linear(contexts[-1], of_context) + F.linear(y_BD, weight_hh)
            y_BD, c_BD = lstm_step(gates_BG, c_BD)
            outputs.append(y_BD)
        cache.states[1] = (y_BD, c_BD)
        return torch.stack(outputs, 1), torch.stack(contexts, 1)


def lstm_step(gates: Tensor, c: Tensor) -> State:
    """h and c after one step: i, f, g, o in this order."""
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def run(cells: Any, x_BTD: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    """`cells`, an nn.LSTM, over a sequence; without values the products of all steps in one, to count them fast."""
    if not x_BTD.is_meta:
        return cells(x_BTD, state)
    weight_ih, weight_hh, *biases = cells.parameters()
    h_BTD = x_BTD.new_zeros(*x_BTD.shape[:2], cells.hidden_size, requires_grad=x_BTD.requires_grad)
    bias_ih, bias_hh = biases or (None, None)
    y_BTD, c_BTD = lstm_step(F.linear(x_BTD, weight_ih, bias_ih) + F.linear(h_BTD, weight_hh, bias_hh), h_BTD)
    return y_BTD, (y_BTD[None, :, -1], c_BTD[None, :, -1])


def turned(tokens_BS: Tensor, valid_BS: Tensor | None) -> Tensor:
    """Indices that turn every row round, and leave its padding where it is: their own inverse."""
    S = tokens_BS.shape[1]
    place_S = torch.arange(S, device=tokens_BS.device)
    if valid_BS is None:
        return (S - 1 - place_S).expand(tokens_BS.shape)
    length_B1 = valid_BS.sum(1, keepdim=True)
    return torch.where(place_S < length_B1, length_B1 - 1 - place_S, place_S)
