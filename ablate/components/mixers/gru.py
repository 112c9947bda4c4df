"""The gated recurrent unit."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.components.mixers.recurrent import Recurrent
from ablate.contracts import Site
from ablate.registry import register


@register("mixer", "gru", paper="Cho et al. 2014, arXiv:1406.1078, section 2.3 (reset: before); cuDNN (reset: after)")
class GRU(Recurrent):
    """r, z = sigmoid(W x_t + U h_{t-1} + b), n = tanh(...); h_t = (1 - z) n + z h_{t-1}.

    `reset: after`, as cuDNN and torch have it: n = tanh(W_n x_t + b + r (U_n h_{t-1} + b')). `reset: before`, as in
    the paper: n = tanh(W_n x_t + b + U_n (r h_{t-1}) + b'); a loop over time in Python, slower than the other.
    `hidden` units, d_model by default; where they differ a matrix maps h_t back. Starts from U(+-1/sqrt(hidden)).
    Differs from the paper: two bias vectors, as cuDNN has them, where the architecture has biases. One direction
    only, also where the task would allow two.
    """

    def __init__(self, site: Site, *, hidden: int | None = None, reset: Literal["after", "before"] = "after"):
        super().__init__(site, nn.GRU, hidden)
        self.before = reset == "before"

    def unroll(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        if not self.before:
            return self.cells(x_BTD, state)
        hidden = self.cells.hidden_size
        weight_ih, weight_hh, bias_ih, bias_hh = self.weights()
        inputs_BTG = F.linear(x_BTD, weight_ih, None if bias_ih is None or bias_hh is None else bias_ih + bias_hh)
        gates_BTG, candidates_BTH = inputs_BTG.split((2 * hidden, hidden), -1)
        to_gates, to_candidate = (part.t() for part in weight_hh.split((2 * hidden, hidden)))
        h_BH = torch.zeros_like(candidates_BTH[:, 0]) if state is None else state[0]
        steps = []
        for gate_BG, candidate_BH in zip(gates_BTG.unbind(1), candidates_BTH.unbind(1), strict=True):
            r_BH, z_BH = torch.addmm(gate_BG, h_BH, to_gates).sigmoid().chunk(2, -1)
            n_BH = torch.addmm(candidate_BH, r_BH * h_BH, to_candidate).tanh()
            h_BH = torch.lerp(n_BH, h_BH, z_BH)
            steps.append(h_BH)
        return torch.stack(steps, 1), h_BH[None]
