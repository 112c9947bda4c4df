"""Components that are wrong on purpose, one fault each: a contract check that passes one of them checks nothing.

A plugin that only test_bad_components.py registers. Apart from the fault each component is a working one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ablate import (
    Attention,
    Channel,
    Context,
    Init,
    Linear,
    Mixer,
    Model,
    Norm,
    Position,
    Residual,
    Site,
    Stack,
    register,
)
from ablate.components.embeddings import Table
from ablate.components.heads import SoftmaxHead
from ablate.contracts import Layer
from ablate.data.tokenizers import ByteTokenizer, CharacterTokenizer
from ablate.train.optim import OptimizerChoice
from ablate.train.schedules import LinearDecay, Schedule

builds = itertools.count(1)


class Pointwise(Channel):
    """A good channel: W x."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.map = Linear(site.d_model, site.d_model, bias=False, role="write")

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return self.map(x_BTD)


class RunningMean(Mixer):
    """A good mixer: W times the mean of what came so far. Subclasses break it."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.map = Linear(site.d_model, site.d_model, bias=False, role="write")

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        y_BTD = self.map(x_BTD)
        sum_B1D, n = ctx.recall() or (torch.zeros_like(y_BTD[:, :1]), 0)
        sum_BTD = y_BTD.cumsum(1) + sum_B1D
        ctx.remember((sum_BTD[:, -1:], n + x_BTD.shape[1]))
        counts_T = torch.arange(n + 1, n + 1 + x_BTD.shape[1], dtype=y_BTD.dtype, device=y_BTD.device)
        return sum_BTD / counts_T[:, None]


# --- documented


@register("channel", "undocumented", paper="none")
class Undocumented(Pointwise):
    pass


@register("norm", "without_paper", paper=" ")
class WithoutPaper(Norm):
    """Says what it computes, not where that comes from."""

    def forward(self, x: Tensor) -> Tensor:
        return x


# --- shape, values


@register("head", "last_only", paper="none")
class LastOnly(SoftmaxHead):
    """Predicts after the last token alone."""

    def log_probs(self, x_BTD: Tensor) -> Tensor:
        return super().log_probs(x_BTD)[:, -1:]


@register("head", "one_token_short", paper="none")
class OneTokenShort(SoftmaxHead):
    """Drops the last entry of the vocabulary."""

    def log_probs(self, x_BTD: Tensor) -> Tensor:
        return super().log_probs(x_BTD)[..., :-1]


@register("channel", "infinite", paper="none")
class Infinite(Pointwise):
    """Divides by zero."""

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return super().forward(x_BTD, ctx) / 0.0


@register("mixer", "nan_at_length_1", paper="none")
class NanAtLength1(RunningMean):
    """Divides by an unbiased variance over time, which a single token does not have."""

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        T = x_BTD.shape[1]
        variance_B1D = x_BTD.var(1, correction=0, keepdim=True) * T / torch.tensor(T - 1)
        return super().forward(x_BTD, ctx) / (1 + variance_B1D)


@register("mixer", "wrong_width", paper="none")
class WrongWidth(RunningMean):
    """Gives one feature too few."""

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return super().forward(x_BTD, ctx)[..., :-1]


# --- gradient


@register("channel", "unused_parameter", paper="none")
class UnusedParameter(Pointwise):
    """Holds a parameter that its output does not depend on."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.spare = nn.Parameter(torch.zeros(3))


@register("channel", "annulled_parameter", paper="none")
class AnnulledParameter(Pointwise):
    """Multiplies a parameter by zero."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.spare = nn.Parameter(torch.zeros(site.d_model))

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return super().forward(x_BTD, ctx) + 0.0 * self.spare


@register("channel", "root_of_zero", paper="none")
class RootOfZero(Pointwise):
    """Adds sqrt(w - w), which is 0 and has no derivative."""

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        w_D = self.map.weight[0]
        return super().forward(x_BTD, ctx) + (w_D - w_D.detach()).sqrt()


# --- causal


@register("mixer", "sees_everything", paper="none")
class SeesEverything(Mixer):
    """The mean of all time steps, later ones too."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.map = Linear(site.d_model, site.d_model, bias=False, role="write")

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return self.map(x_BTD) + x_BTD.mean(1, keepdim=True)


@register("mixer", "sees_everything_in_training", paper="none")
class SeesEverythingInTraining(RunningMean):
    """Statistics over the whole sequence, in training mode alone, as a batch norm's."""

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        y_BTD = super().forward(x_BTD, ctx)
        return y_BTD - x_BTD.mean(1, keepdim=True) if self.training else y_BTD


@register("mixer", "causal_after_all", paper="none", causal=False)
class CausalAfterAll(RunningMean):
    """Declared to see the future, which it does not."""


# --- mixers, channels, rows


@register("mixer", "mixes_nothing", paper="none")
class MixesNothing(Mixer):
    """A channel in a mixer's place."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.map = Linear(site.d_model, site.d_model, bias=False, role="write")

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return self.map(x_BTD)


@register("channel", "token_shift", paper="none")
class TokenShift(Pointwise):
    """Adds the previous time step: causal, but a mixer's business."""

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        past_B1D = ctx.recall() if ctx.recall() is not None else torch.zeros_like(x_BTD[:, :1])
        ctx.remember(x_BTD[:, -1:])
        return super().forward(x_BTD, ctx) + torch.cat((past_B1D, x_BTD[:, :-1]), 1)


@register("channel", "token_shift_in_training", paper="none")
class TokenShiftInTraining(TokenShift):
    """The same, in training mode alone."""

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return super().forward(x_BTD, ctx) if self.training else self.map(x_BTD)


@register("channel", "batch_mean", paper="none")
class BatchMean(Pointwise):
    """Subtracts the mean over the batch."""

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return super().forward(x_BTD - x_BTD.mean(0, keepdim=True), ctx)


@register("channel", "batch_mean_in_training", paper="none")
class BatchMeanInTraining(Pointwise):
    """Subtracts the mean over the batch, in training mode alone."""

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return super().forward(x_BTD - x_BTD.mean(0, keepdim=True) if self.training else x_BTD, ctx)


# --- building, saving


@register("channel", "other_on_meta", paper="none")
class OtherOnMeta(Pointwise):
    """Makes an offset where there are values, and none where there are not: costs would be counted without it."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.offset = None if self.map.weight.is_meta else nn.Parameter(torch.zeros(site.d_model))

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        y_BTD = super().forward(x_BTD, ctx)
        return y_BTD if self.offset is None else y_BTD + self.offset


@register("channel", "noisy_forward", paper="none")
class NoisyForward(Pointwise):
    """Adds noise, also in evaluation mode."""

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return super().forward(x_BTD, ctx) + 0.01 * torch.randn_like(x_BTD)


@register("channel", "counts_builds", paper="none")
class CountsBuilds(Pointwise):
    """Starts from a value of its own at every build."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.offset = nn.Parameter(torch.full((site.d_model,), 1e-3 * next(builds)))

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return super().forward(x_BTD, ctx) + self.offset


@register("channel", "starts_at_minus_infinity", paper="none")
class StartsAtMinusInfinity(Pointwise):
    """Holds an infinite parameter behind an exponential."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.logarithm = nn.Parameter(torch.full((site.d_model,), -math.inf))

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return super().forward(x_BTD, ctx) + self.logarithm.exp()


@register("init", "one_seed_for_all", paper="none")
class OneSeedForAll(Init):
    """Seeds itself: every seed gives the same values."""

    def __call__(self, module: nn.Module) -> None:
        torch.manual_seed(0)
        if isinstance(module, Linear | Table):
            nn.init.normal_(module.weight, std=0.1)
        elif isinstance(table := getattr(module, "table", None), nn.Parameter):
            nn.init.normal_(table, std=0.1)
        if isinstance(module, Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


@register("channel", "hidden_state", paper="none")
class HiddenState(Pointwise):
    """Keeps random numbers where no checkpoint finds them."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.secret_D = torch.randn(site.d_model)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return super().forward(x_BTD, ctx) + self.secret_D.to(x_BTD.device, x_BTD.dtype)


@register("channel", "counts_steps", paper="none")
class CountsSteps(Pointwise):
    """Grows with every training step, by a number that no checkpoint has."""

    steps = 0

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        self.steps += self.training and torch.is_grad_enabled() and not x_BTD.is_meta
        return super().forward(x_BTD, ctx) * (1 + 0.01 * self.steps * self.training)


@register("channel", "couples_nothing", paper="none")
class CouplesNothing(Pointwise):
    """Declared to couple the rows of a batch, which it does not."""

    couples_rows = True


@register("mixer", "reads_padding", paper="none")
class ReadsPadding(RunningMean):
    """The mean of everything, padding too, where both sides are seen."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.causal = site.causal

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return super().forward(x_BTD, ctx) if self.causal else self.map(x_BTD.mean(1, keepdim=True)) + 0 * x_BTD


class Bigrams(Model):
    """Subclasses of this are broken: the next token's logits from the last token alone."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.table = nn.Parameter(torch.empty(site.vocab, site.vocab))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table, std=0.02)

    def log_probs(self, tokens_BT: Tensor, cache: Any = None) -> Tensor:
        return nn.functional.embedding(tokens_BT, self.table).log_softmax(-1)

    def nll(self, *batch: Tensor) -> Tensor:
        return -self.log_probs(batch[0]).gather(-1, batch[1][..., None])[..., 0]


@register("model", "reads_anything", paper="none")
class ReadsAnything(Bigrams):
    """Has no longest sequence."""


@register("model", "counts_nothing", paper="none")
class CountsNothing(Bigrams):
    """Is fitted, and stays as it was."""

    fitted = True

    def fit(self, tokens: Tensor) -> None:
        pass


# --- bfloat16, learning


@register("channel", "small_difference", paper="none")
class SmallDifference(Pointwise):
    """Divides by (1 + 0.001 - 1), which bfloat16 rounds to 0."""

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        y_BTD = super().forward(x_BTD, ctx)
        return 0.001 * y_BTD / ((torch.ones_like(y_BTD) + 0.001) - 1)


@register("channel", "large_sum", paper="none")
class LargeSum(Pointwise):
    """Adds 1000 and takes it away again: bfloat16 keeps nothing of a summand below 2."""

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return ((super().forward(x_BTD, ctx) + 1000) - 1000) * 1000


@register("channel", "mixed_types", paper="none")
class MixedTypes(Pointwise):
    """Writes into a buffer of the input's type what may be of another."""

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        y_BTD = super().forward(x_BTD, ctx)
        return torch.zeros_like(x_BTD).index_add(1, torch.arange(x_BTD.shape[1], device=x_BTD.device), y_BTD)


@register("residual", "faint", paper="none")
class Faint(Residual):
    """A stream so weak that nothing can be learned through it in thirty steps."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.norm = site.new_norm()

    def forward(self, x_BTD: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        return 1e-4 * (x_BTD + f(self.norm(x_BTD)))


# --- effect


@register("stack", "no_layers", paper="none")
class NoLayers(Stack):
    """Forgets to run the layers."""

    def forward(self, x_BTD: Tensor, layers: Sequence[Layer], ctx: Context) -> Tensor:
        return x_BTD


@register("stack", "forgets_step", paper="none")
class ForgetsStep(Stack):
    """Never asks the position at the entry of a layer."""

    def forward(self, x_BTD: Tensor, layers: Sequence[Layer], ctx: Context) -> Tensor:
        for layer in layers:
            x_BTD = layer(x_BTD, ctx)
        return x_BTD


@register("position", "at_every_layer", paper="none")
class AtEveryLayer(Position):
    """A good position: adds a vector at the entry of every layer."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.table = nn.Parameter(torch.zeros(site.n_layers, site.d_model))

    def step(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return x_BTD + self.table[ctx.layer]


@register("mixer", "ignores_bias", paper="none")
class IgnoresBias(Attention):
    """Attention that never asks for the position's bias."""

    def attend(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, ctx: Context) -> Tensor:
        return nn.functional.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, is_causal=True)


# --- cache


@register("mixer", "forgets", paper="none")
class Forgets(RunningMean):
    """Starts anew at every piece: leaves no state."""

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return super().forward(x_BTD, Context(ctx.position, ctx.positions_T))


@register("mixer", "one_at_a_time", paper="none")
class OneAtATime(RunningMean):
    """Decodes token by token only: of a longer piece it remembers the last token alone."""

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        past = ctx.recall() or (0.0, 0)
        y_BTD = super().forward(x_BTD, ctx)
        ctx.remember((past[0] + self.map(x_BTD[:, -1:]), past[1] + x_BTD.shape[1]))
        return y_BTD


# --- heads


@register("head", "unnormalised", paper="none")
class Unnormalised(SoftmaxHead):
    """Gives logits for log-probabilities."""

    def log_probs(self, x_BTD: Tensor) -> Tensor:
        return self.logits(x_BTD)


@register("head", "in_bits", paper="none")
class InBits(SoftmaxHead):
    """Measures its loss in bits."""

    def nll(self, x_BTD: Tensor, y_BT: Tensor) -> Tensor:
        return super().nll(x_BTD, y_BT) / math.log(2)


@register("head", "always_smoothed", paper="none")
class AlwaysSmoothed(SoftmaxHead):
    """Smooths labels though nobody asked."""

    def objective(self, x_BTD: Tensor, y_BT: Tensor, label_smoothing: float, z_loss: float) -> tuple[Tensor, Tensor]:
        return super().objective(x_BTD, y_BT, label_smoothing + 0.01, z_loss)


@register("head", "reports_bits", paper="none")
class ReportsBits(SoftmaxHead):
    """Minimises and reports a loss in bits, beside an nll in nats."""

    def objective(self, x_BTD: Tensor, y_BT: Tensor, label_smoothing: float, z_loss: float) -> tuple[Tensor, Tensor]:
        loss_BT, nll_BT = super().objective(x_BTD, y_BT, label_smoothing, z_loss)
        return loss_BT / math.log(2), nll_BT / math.log(2)


# --- training


@register("optimizer", "idle", paper="none")
class Idle(OptimizerChoice):
    """Does nothing."""

    def build(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=0.0)


@register("optimizer", "uphill", paper="none")
class Uphill(OptimizerChoice):
    """Maximises."""

    def build(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=lr, maximize=True)


@register("schedule", "above_one", paper="none")
class AboveOne(Schedule):
    """Overshoots by a half."""

    def after(self, step: int, warm: int, steps: int) -> float:
        return 1.5 - step / steps


@register("schedule", "below_zero", paper="none")
class BelowZero(Schedule):
    """Ends below zero."""

    def after(self, step: int, warm: int, steps: int) -> float:
        return 1 - 2 * step / steps


@register("schedule", "half_way", paper="none")
class HalfWay(Schedule):
    """Never gets above a half."""

    def after(self, step: int, warm: int, steps: int) -> float:
        return 0.5


@register("schedule", "claims_too_much", paper="none")
class ClaimsTooMuch(LinearDecay):
    """Says that longer runs begin as shorter ones do."""

    def shared(self, steps: int, more: int) -> int:
        return steps


# --- tokenizers


@register("tokenizer", "no_spaces", paper="none")
class NoSpaces(ByteTokenizer):
    """Encodes spaces and loses them in decoding."""

    def decode(self, ids: Iterable[int]) -> str:
        return super().decode(ids).replace(" ", "")


@register("tokenizer", "seven_bits", paper="none")
class SevenBits(ByteTokenizer):
    """Gives ids above its vocabulary."""

    vocab = 128


@register("tokenizer", "below_nothing", paper="none")
class BelowNothing(ByteTokenizer):
    """Gives negative ids."""

    def encode(self, text: str) -> np.ndarray:
        return super().encode(text).astype(np.int64) - 200

    def decode(self, ids: Iterable[int]) -> str:
        return super().decode(each + 200 for each in ids)


@register("tokenizer", "forgets_training", paper="none")
class ForgetsTraining(ByteTokenizer):
    """Learns a shift of all ids, which `state` does not save."""

    shift = 0

    def train(self, texts: Iterable[str]) -> None:
        self.shift = len(list(texts))

    def encode(self, text: str) -> np.ndarray:
        return (super().encode(text).astype(np.int64) + self.shift) % self.vocab

    def decode(self, ids: Iterable[int]) -> str:
        return super().decode((each - self.shift) % self.vocab for each in ids)


@register("tokenizer", "knows_all", paper="none")
class KnowsAll(CharacterTokenizer):
    """Never says what its unknown token stands for."""

    def unknown_pieces(self, text: str) -> list[str]:
        return []


@register("tokenizer", "writes_anew", paper="none")
class WritesAnew(CharacterTokenizer):
    """Gives the token for the text."""

    def unknown_pieces(self, text: str) -> list[str]:
        return ["<unk>"] * len(super().unknown_pieces(text))
