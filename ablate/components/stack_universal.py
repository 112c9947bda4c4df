"""Universal Transformers: the same layers over and over, for as long as each position needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ablate.components.positions_input import frequencies, sines
from ablate.contracts import Context, Layer, Linear, Site, Stack
from ablate.errors import UserError, within
from ablate.precision import wide
from ablate.registry import register


@register(
    "stack",
    "universal",
    paper="Dehghani et al. 2019, arXiv:1807.03819, sections 2.1 and 2.2, appendix C; Graves 2016, arXiv:1603.08983",
)
class UniversalStack(Stack):
    """The tower's layers (one, in the paper: `arch.depth: 1`) run over `steps` times: H^t = layers(H^{t-1} + P^t).

    `coordinates`: sinusoidal is the paper's P^t[i, 2j] = sin(i / 10000^(2j/d)) + sin(t / 10000^(2j/d)), cosines at
    2j+1, with t from 1 and i from 0, added at every step (use `arch.position: none` beside it); learned is a vector
    for each step, sqrt(d) E[t], E from N(0, 1/d), as in the mesh code of Narang et al. 2021; none.

    `act` halts each position by itself. With p = sigmoid(w . (H^{t-1} + P^t) + b) and h the sum of a position's p so
    far, its weight at step t is u = p while h + p <= threshold, u = 1 - h where that is exceeded (or, with
    `force_halt`, at the last step), and 0 afterwards. The output starts at 0 and becomes out (1 - u) + u H^t
    (replace: the paper's listing) or out + u H^t (sum: Graves). Without `force_halt`, as in the paper's listing,
    the u of a position that never halts do not sum to 1. All positions are computed in every step, halted ones too:
    others attend to them. `ponder` times the mean of N + R, the steps taken and the remainder, is added to the
    objective. b starts at `halt_bias`.

    Differs from the papers: the norms are where `arch.residual` has them (post in the paper, pre in mesh); the mesh
    code runs steps + 1 times, and without a ponder cost.
    """

    waves: Tensor

    def __init__(
        self,
        site: Site,
        *,
        steps: int = 6,
        coordinates: Literal["sinusoidal", "learned", "none"] = "sinusoidal",
        act: bool = True,
        threshold: float = 0.99,
        ponder: float = 0.01,
        halt_bias: float = 1.0,
        force_halt: bool = False,
        accumulate: Literal["replace", "sum"] = "replace",
    ):
        super().__init__(site)
        within("stack 'universal': steps", steps, 1)
        within("stack 'universal': threshold", threshold, 0, 1)
        within("stack 'universal': ponder", ponder, 0)
        if act and steps == 1:
            raise UserError("stack 'universal': with steps 1 there is nothing to halt: set act to false")
        if not act and (threshold, ponder, halt_bias, force_halt, accumulate) != (0.99, 0.01, 1.0, False, "replace"):
            raise UserError("stack 'universal': options of halting have no effect with act false: leave them out")
        self.steps, self.coordinates, self.act = steps, coordinates, act
        self.threshold, self.ponder, self.force_halt, self.accumulate = threshold, ponder, force_halt, accumulate
        self.initial_bias, self.d_model = halt_bias, site.d_model
        if coordinates == "sinusoidal":
            angle = torch.arange(max(site.max_len, steps + 1))[:, None] * frequencies(site.d_model)
            self.register_buffer("waves", sines(angle, site.d_model).float(), persistent=False)
        if coordinates == "learned":
            self.step_table = nn.Parameter(torch.empty(steps, site.d_model))
        if act:
            self.halt = Linear(site.d_model, 1, bias=False)
            self.halt_bias = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.coordinates == "learned":
            nn.init.normal_(self.step_table, std=self.d_model**-0.5)
        if self.act:
            nn.init.constant_(self.halt_bias, self.initial_bias)

    def forward(self, x_BTD: Tensor, layers: Sequence[Layer], ctx: Context) -> Tensor:
        halting = Halting(self, x_BTD) if self.act else None
        for step in range(self.steps):
            x_BTD = self.mark(x_BTD, step, ctx)
            weight_BT = None if halting is None else halting.weight(x_BTD, last=step == self.steps - 1)
            for index, layer in enumerate(layers, step * len(layers)):
                x_BTD = self.run(x_BTD, layer, index, ctx)
            if halting is not None and weight_BT is not None:
                halting.add(x_BTD, weight_BT)
        if halting is None:
            return x_BTD
        if self.ponder:
            ctx.add_aux("ponder", self.ponder * halting.cost(ctx))
        return halting.out_BTD

    def mark(self, x_BTD: Tensor, step: int, ctx: Context) -> Tensor:
        """The state with where and when it stands."""
        if self.coordinates == "none":
            return x_BTD
        if self.coordinates == "learned":
            return x_BTD + self.step_table[step] * self.d_model**0.5
        rows_TD = self.waves[: x_BTD.shape[1]] if ctx.cache is None else self.waves[ctx.positions_T]
        return x_BTD + (rows_TD + self.waves[step + 1]).to(x_BTD.dtype)


class Halting:
    """Adaptive computation time: what each position of one pass has used up, and its output so far."""

    def __init__(self, stack: UniversalStack, x_BTD: Tensor):
        self.stack = stack
        zeros_BT = torch.zeros_like(wide(x_BTD[..., 0]))
        self.sum_BT = self.remainder_BT = self.updates_BT = zeros_BT
        self.running_BT = torch.ones_like(zeros_BT, dtype=torch.bool)
        self.out_BTD = torch.zeros_like(x_BTD, dtype=zeros_BT.dtype)

    def weight(self, x_BTD: Tensor, last: bool) -> Tensor:
        """u of this step, from the state before the layers."""
        stack = self.stack
        p_BT = (stack.halt(x_BTD)[..., 0].to(self.sum_BT.dtype) + stack.halt_bias).sigmoid()
        beyond_BT = self.sum_BT + p_BT > stack.threshold
        if last and stack.force_halt:
            beyond_BT = torch.ones_like(beyond_BT)
        zero = torch.zeros_like(p_BT)
        remainder_BT = torch.where(self.running_BT & beyond_BT, 1 - self.sum_BT, zero)
        self.updates_BT = self.updates_BT + self.running_BT
        self.running_BT = self.running_BT & ~beyond_BT
        spent_BT = torch.where(self.running_BT, p_BT, zero)
        self.sum_BT = self.sum_BT + spent_BT
        self.remainder_BT = self.remainder_BT + remainder_BT
        return spent_BT + remainder_BT

    def add(self, x_BTD: Tensor, weight_BT: Tensor) -> None:
        weight_BT1 = weight_BT[..., None]
        kept_BTD = self.out_BTD * (1 - weight_BT1) if self.stack.accumulate == "replace" else self.out_BTD
        self.out_BTD = kept_BTD + weight_BT1 * x_BTD

    def cost(self, ctx: Context) -> Tensor:
        """The mean of N + R over the positions that are no padding."""
        cost_BT = self.updates_BT + self.remainder_BT
        if ctx.valid_BT is None:
            return cost_BT.mean()
        return (cost_BT * ctx.valid_BT).sum() / ctx.valid_BT.sum()
