"""The simple recurrent network."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.components.mixers.recurrent import Recurrent
from ablate.contracts import Site
from ablate.registry import register


@register("mixer", "elman", paper="Elman 1990, Finding structure in time; Mikolov et al. 2010 (sigmoid)")
class Elman(Recurrent):
    """h_t = act(W x_t + b + U h_{t-1} + b'), h_0 = 0.

    `hidden` units, d_model by default; where they differ a matrix maps h_t back. Starts from U(+-1/sqrt(hidden)).
    `nonlinearity: sigmoid` is a loop over time in Python, slower than the other two. Differs from the papers: two
    bias vectors, as cuDNN has them, where the architecture has biases; the output layer is the architecture's
    head. One direction only, also where the task would allow two.
    """

    def __init__(
        self,
        site: Site,
        *,
        hidden: int | None = None,
        nonlinearity: Literal["tanh", "relu", "sigmoid"] = "tanh",
    ):
        super().__init__(site, nn.RNN, hidden, nonlinearity="relu" if nonlinearity == "relu" else "tanh")
        self.sigmoid = nonlinearity == "sigmoid"

    def unroll(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        if not self.sigmoid:
            return self.cells(x_BTD, state)
        weight_ih, weight_hh, bias_ih, bias_hh = self.weights()
        inputs_BTH = F.linear(x_BTD, weight_ih, None if bias_ih is None or bias_hh is None else bias_ih + bias_hh)
        h_BH = torch.zeros_like(inputs_BTH[:, 0]) if state is None else state[0]
        weight_hh = weight_hh.t()
        steps = []
        for input_BH in inputs_BTH.unbind(1):
            h_BH = torch.addmm(input_BH, h_BH, weight_hh).sigmoid()
            steps.append(h_BH)
        return torch.stack(steps, 1), h_BH[None]
