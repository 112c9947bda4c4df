"""Recurrent mixers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ablate.contracts import Context, Linear, Mixer, Site
from ablate.errors import UserError, within
from ablate.registry import register


@register("mixer", "lstm", paper="Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000 (forget gate)")
class LSTM(Mixer):
    """i, f, o = sigmoid(W x_t + U h_{t-1} + b), g = tanh(...); c_t = f c_{t-1} + i g; h_t = o tanh(c_t).

    `hidden` cells, d_model by default; where they differ a matrix maps h_t back. Starts from U(+-1/sqrt(hidden)).
    Differs from the paper: two bias vectors, as cuDNN has them, where the architecture has biases;
    `forget_bias` is added to one of them (Jozefowicz et al. 2015 advise 1). One direction only, also where the
    task would allow two.
    """

    cells: nn.LSTM

    def __init__(self, site: Site, *, hidden: int | None = None, forget_bias: float = 0.0):
        super().__init__(site)
        hidden = site.d_model if hidden is None else hidden
        within("mixer 'lstm': hidden", hidden, 1)
        if forget_bias and not site.bias:
            raise UserError(f"mixer 'lstm': forget_bias {forget_bias:g} needs arch.bias: true")
        self.forget_bias = forget_bias
        self.cells = nn.LSTM(site.d_model, hidden, batch_first=True, bias=site.bias)
        self.out = None
        if hidden != site.d_model:
            self.out = Linear(hidden, site.d_model, bias=site.bias, role="write")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.cells.reset_parameters()
        if self.forget_bias:
            hidden = self.cells.hidden_size
            bias: Tensor = self.cells.bias_ih_l0  # type: ignore[assignment]
            bias.data[hidden : 2 * hidden] += self.forget_bias

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        y_BTD, state = self.count(x_BTD) if x_BTD.is_meta else self.cells(x_BTD, ctx.recall())
        ctx.remember(state)
        return y_BTD if self.out is None else self.out(y_BTD)

    def count(self, x_BTD: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The shapes and matrix products of `cells` in one go: step by step, counting takes seconds a layer."""
        weight_ih, weight_hh, *biases = self.cells.parameters()
        bias_ih, bias_hh = biases or (None, None)
        gates_BTG = F.linear(x_BTD, weight_ih, bias_ih)
        h_BTH = x_BTD.new_zeros(*x_BTD.shape[:2], self.cells.hidden_size, requires_grad=x_BTD.requires_grad)
        gates_BTG = gates_BTG + F.linear(h_BTH, weight_hh, bias_hh)
        y_BTH = gates_BTG.unflatten(-1, (4, -1)).sum(2)
        return y_BTH, (y_BTH[None, :, -1], y_BTH[None, :, -1])
