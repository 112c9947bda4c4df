"""Recurrent mixers: what they share, and the LSTM. One direction, also where the task sees both sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.contracts import Context, Linear, Mixer, Site
from ablate.errors import UserError, within
from ablate.registry import register


class Recurrent(Mixer):
    """h_t from x_t and h_{t-1}, h before the first token being 0; `cells` is one of torch's recurrent layers.

    `hidden` cells, d_model by default; where they differ a matrix maps h_t back. It looks back alone, so that
    padding, which ends a row, moves nothing.
    """

    def __init__(self, site: Site, kind: Callable[..., nn.RNNBase], hidden: int | None, **how: Any):
        super().__init__(site)
        hidden = site.d_model if hidden is None else hidden
        within(f"mixer {self.component.split('/')[-1]!r}: hidden", hidden, 1)
        self.cells = kind(site.d_model, hidden, batch_first=True, bias=site.bias, **how)
        self.out = None
        if hidden != site.d_model:
            self.out = Linear(hidden, site.d_model, bias=site.bias, role="write")

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        past = swapped(ctx.recall())
        y_BTD, state = self.count(x_BTD) if x_BTD.is_meta else self.unroll(x_BTD, past)
        ctx.remember(swapped(state))
        return y_BTD if self.out is None else self.out(y_BTD)

    def unroll(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        """h_t for all t, and the state after the last, going on from `state` where there is one."""
        return self.cells(x_BTD, state)

    def weights(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """W and U, the gates one below the other, and their biases where the architecture has any."""
        weight_ih, weight_hh, *biases = self.cells.parameters()
        bias_ih, bias_hh = biases or (None, None)
        return weight_ih, weight_hh, bias_ih, bias_hh

    def count(self, x_BTD: Tensor) -> tuple[Tensor, Any]:
        """The shapes and matrix products of `unroll` in one go: step by step, counting takes seconds a layer."""
        weight_ih, weight_hh, bias_ih, bias_hh = self.weights()
        hidden = self.cells.hidden_size
        gates_BTG = F.linear(x_BTD, weight_ih, bias_ih)
        h_BTH = x_BTD.new_zeros(*x_BTD.shape[:2], hidden, requires_grad=x_BTD.requires_grad)
        gates_BTG = gates_BTG + F.linear(h_BTH, weight_hh, bias_hh)
        y_BTH = gates_BTG.unflatten(-1, (-1, hidden)).sum(2)
        last_1BH = y_BTH[None, :, -1]
        return y_BTH, (last_1BH, last_1BH) if isinstance(self.cells, nn.LSTM) else last_1BH


def swapped(state: Any) -> Any:
    """The state of torch's layers, (1, B, H) or two of them, with the rows first as in a cache; and back."""
    if state is None:
        return None
    return state.transpose(0, 1) if isinstance(state, Tensor) else tuple(each.transpose(0, 1) for each in state)


@register("mixer", "lstm", paper="Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000 (forget gate)")
class LSTM(Recurrent):
    """i, f, o = sigmoid(W x_t + U h_{t-1} + b), g = tanh(...); c_t = f c_{t-1} + i g; h_t = o tanh(c_t).

    `hidden` cells, d_model by default; where they differ a matrix maps h_t back. Starts from U(+-1/sqrt(hidden)).
    Differs from the paper: two bias vectors, as cuDNN has them, where the architecture has biases;
    `forget_bias` is added to one of them (Jozefowicz et al. 2015 advise 1). One direction only, also where the
    task would allow two.
    """

    def __init__(self, site: Site, *, hidden: int | None = None, forget_bias: float = 0.0):
        super().__init__(site, nn.LSTM, hidden)
        if forget_bias and not site.bias:
            raise UserError(f"mixer 'lstm': forget_bias {forget_bias:g} needs arch.bias: true")
        self.forget_bias = forget_bias
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.cells.reset_parameters()
        if self.forget_bias:
            hidden = self.cells.hidden_size
            bias: Tensor = self.cells.bias_ih_l0  # type: ignore[assignment]
            with torch.no_grad():
                bias[hidden : 2 * hidden] += self.forget_bias
