"""The recurrent encoder-decoder with attention."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ablate.components.embeddings import Table
from ablate.components.models.words import AdditiveAttention, PairModel
from ablate.contracts import Cache, Linear, Memory, Site
from ablate.errors import within
from ablate.registry import register


class GatedUnit(nn.Module):
    """The part of a gated recurrent unit that reads the state: U_r, U_z, U below one another.

    r, z = sigmoid(gates + U_{r,z} h), c = tanh(gates + U (r h)), h' = (1 - z) h + z c, `gates` being what the unit
    makes of its inputs. With `reset_after` c = tanh(gates + r (U h + b)).
    """

    def __init__(self, d: int, bias: bool, reset_after: bool):
        super().__init__()
        self.state = Linear(d, 3 * d, bias=bias and reset_after)
        self.reset_after = reset_after

    def weights(self) -> tuple[Tensor, Tensor | None]:
        return self.state.weight.mT, self.state.bias

    def forward(self, gates: Tensor, h: Tensor, weight_NG: Tensor, bias_G: Tensor | None) -> Tensor:
        """One step, for any number of leading dimensions that `weights` have as well."""
        d = h.shape[-1]
        outer, inner = gates.split((2 * d, d), -1)
        if self.reset_after:
            read = h @ weight_NG if bias_G is None else h @ weight_NG + bias_G
            r, z = (outer + read[..., : 2 * d]).sigmoid().chunk(2, -1)
            candidate = (inner + r * read[..., 2 * d :]).tanh()
        else:
            r, z = (outer + h @ weight_NG[..., : 2 * d]).sigmoid().chunk(2, -1)
            candidate = (inner + (r * h) @ weight_NG[..., 2 * d :]).tanh()
        return h + z * (candidate - h)


@register("model", "bahdanau", paper="Bahdanau, Cho and Bengio 2015, arXiv:1409.0473, appendix A", form="pair")
class Bahdanau(PairModel):
    """h_j = [->h_j; <-h_j] of two gated units over the source; s_0 = tanh(W_s <-h_1);
    c_i = sum_j softmax_j(v . tanh(W_a s_{i-1} + U_a h_j)) h_j; s_i = GRU(s_{i-1}, [E y_{i-1}; c_i]);
    p(y_i | ...) = softmax(W_o maxout(U_o s_{i-1} + V_o E y_{i-1} + C_o c_i)), maxout over pairs.

    GRU: r, z = sigmoid(W E y + U s + C c), s' = (1 - z) s + z tanh(W E y + U (r s) + C c); `reset_after` has
    r (U s) in its place, as cuDNN computes it. States have d_model features, maxout leaves half of them (rounded
    up); one layer a side, whatever the depth. Not re-read: the sizes, 1000 states and 500 maxout units there.
    Differs from the paper: biases where the architecture has them; `arch.init` sets all matrices (there the state
    matrices are orthogonal, the others N(0, 0.01^2)); the training's dropout, on embeddings and maxout.
    """

    def __init__(self, site: Site, *, reset_after: bool = False):
        super().__init__(site)
        d, bias = site.d_model, site.bias
        within("model 'bahdanau': arch.d_model", d, 1)
        self.source, self.target = Table(site.vocab, d), Table(site.vocab, d)
        self.inputs = nn.ModuleList(Linear(d, 3 * d, bias=bias) for _ in range(2))  # to the right, to the left
        self.units = nn.ModuleList(GatedUnit(d, bias, reset_after) for _ in range(2))
        self.start = Linear(d, d, bias=bias)
        self.attention = AdditiveAttention(d, 2 * d, d, bias)
        self.word, self.context = Linear(d, 3 * d, bias=bias), Linear(2 * d, 3 * d, bias=False)
        self.unit = GatedUnit(d, bias, reset_after)
        pairs = 2 * ((d + 1) // 2)
        self.out_state, self.out_word = Linear(d, pairs, bias=bias), Linear(d, pairs, bias=False)
        self.out_context = Linear(2 * d, pairs, bias=False)
        self.output = Linear(pairs // 2, site.vocab, bias=bias, role="logits")

    def encode(self, source_BS: Tensor, valid_BS: Tensor | None) -> tuple[Memory, list[Tensor]]:
        x_BSD = self.dropout(self.source(source_BS))
        right, left = (inputs(x_BSD) for inputs in self.inputs)
        gates_CBSG = torch.stack((right, left.flip(1)))  # the second direction reads from the end
        valid_CBS = None if valid_BS is None else torch.stack((valid_BS, valid_BS.flip(1)))
        h_CBSD = self.read(gates_CBSG, valid_CBS)
        h_BSD = torch.cat((h_CBSD[0], h_CBSD[1].flip(1)), -1)
        first_BD = self.start(h_BSD[:, 0, self.site.d_model :]).tanh()
        return Memory(h_BSD, valid_BS, lambda layer: h_BSD), [self.attention.keys(h_BSD), first_BD]

    def read(self, gates_CBSG: Tensor, valid_CBS: Tensor | None) -> Tensor:
        """Both directions at once; the state stays what it is at padding, which the second direction meets first."""
        weights, biases = zip(*(unit.weights() for unit in self.units), strict=True)  # type: ignore[operator]
        weight_CDG = torch.stack(weights)
        bias_C1G = None if biases[0] is None else torch.stack(biases)[:, None]
        unit, d = cast(GatedUnit, self.units[0]), self.site.d_model
        if gates_CBSG.is_meta:  # the products of all steps in one, because counting step by step takes seconds
            rows = gates_CBSG.flatten(1, 2)
            h = rows.new_zeros(*rows.shape[:-1], d, requires_grad=rows.requires_grad)
            return unit(rows, h, weight_CDG, bias_C1G).unflatten(1, gates_CBSG.shape[1:3])
        h_CBD = gates_CBSG.new_zeros(*gates_CBSG.shape[:2], d)
        steps = []
        for step, gates_CBG in enumerate(gates_CBSG.unbind(2)):
            new_CBD = unit(gates_CBG, h_CBD, weight_CDG, bias_C1G)
            h_CBD = new_CBD if valid_CBS is None else torch.where(valid_CBS[:, :, step, None], new_CBD, h_CBD)
            steps.append(h_CBD)
        return torch.stack(steps, 2)

    def decode(self, tokens_BT: Tensor, memory: Memory, read: list[Tensor], cache: Cache, start: int) -> Tensor:
        keys_BSD, first_BD = read
        y_BTD = self.dropout(self.target(tokens_BT))
        s_BTD, c_BTD = self.recur(self.word(y_BTD), memory, keys_BSD, cache.states.get(0, first_BD), cache)
        t_BTD = self.out_state(s_BTD) + self.out_word(y_BTD) + self.out_context(c_BTD)
        return self.output(self.dropout(t_BTD.unflatten(-1, (-1, 2)).amax(-1)))

    def recur(
        self, gates_BTG: Tensor, memory: Memory, keys_BSD: Tensor, s_BD: Tensor, cache: Cache
    ) -> tuple[Tensor, Tensor]:
        """s_{i-1} and c_i of every step."""
        weight_DG, bias_G = self.unit.weights()
        if gates_BTG.is_meta:  # as above; the new states stand for those one step before
            shape = (*gates_BTG.shape[:2], s_BD.shape[-1])
            s_BTD = s_BD.new_zeros(shape, requires_grad=s_BD.requires_grad) + s_BD[:, None]
            c_BTD = self.attention(s_BTD, memory, keys_BSD)
            s_BTD = self.unit(gates_BTG + self.context(c_BTD), s_BTD, weight_DG, bias_G)
            cache.states[0] = s_BTD[:, -1]
            return s_BTD, c_BTD
        states, contexts = [], []
        for gates_BG in gates_BTG.unbind(1):
            states.append(s_BD)
            contexts.append(self.attention(s_BD[:, None], memory, keys_BSD)[:, 0])
            s_BD = self.unit(gates_BG + self.context(contexts[-1]), s_BD, weight_DG, bias_G)
        cache.states[0] = s_BD
        return torch.stack(states, 1), torch.stack(contexts, 1)
