"""How a trial is trained: the `train` section of a specification."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ablate.arch import Component, positive, slot
from ablate.errors import SpecError, unknown
from ablate.train.ramp import ramp

PRECISIONS = ("auto", "fp32", "bf16")
DIAGNOSTICS = ("activations", "attention", "gradients", "heads", "train_curve")  # see `ablate.diagnose`


@dataclass(frozen=True)
class TrainSpec:
    """How a trial is trained. Lengths are in tokens.

    `tokens` is the length of training, and a step sees `batch_tokens` of them, in `accumulate` parts that are
    computed one after the other. `epochs` stands for `tokens`: so many times the training split. `lr` is the
    highest learning rate, which `schedule` varies over the steps. `weight_decay` is on matrices. `clip` bounds the
    norm of the gradient. `dropout`, `label_smoothing` and `z_loss`, the weight of the squared log of the softmax's
    normaliser, are 0 unless given. `ema` evaluates and keeps an exponential moving average of the weights, with
    this decay. `precision` auto is bf16 where a trial gets a GPU and fp32 on a CPU.

    The curve has `eval_points` evaluations on `eval_tokens` held-out tokens each, the end one on
    `final_eval_tokens`. A trial has diverged where its loss is not finite or above `diverge_above` times its first.
    `diagnostics` are looks inside the model that the record then has.

    Batches grow over the first share `batch_ramp` of the tokens from batch_tokens / `ramp_parts` to batch_tokens,
    in the form `ramp_shape`, the tokens of the run unchanged: see `Ramp`. Over the first share `seq_warmup` of the
    tokens rows are cut, at `seq_start` tokens at first; every step reads what it would have read: see
    `PacedBatches`.

    Fine-tuning: `layer_decay` xi gives a parameter the rate lr xi^(its distance from the head): see `distances`.
    The `reinit_layers` top layers do not take their parent's weights. `decay_to` start draws weights to where this
    training began. `mixout` p: see `Mixout`.
    """

    tokens: int = 1_000_000
    epochs: float | None = None
    batch_tokens: int = 4096
    accumulate: int = 1
    optimizer: Component = slot("optimizer", "adamw")
    lr: float = 1e-3
    schedule: Component = slot("schedule", "cosine")
    weight_decay: float = 0.1
    clip: float | None = 1.0
    dropout: float = 0.0
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    ema: float = 0.0
    batch_ramp: float = 0.0
    ramp_parts: int = 8
    ramp_shape: Literal["linear", "doubling"] = "linear"
    seq_warmup: float = 0.0
    seq_start: int = 8
    layer_decay: float = 1.0
    reinit_layers: int = 0
    decay_to: Literal["zero", "start"] = "zero"
    mixout: float = 0.0
    precision: str = field(default="auto", metadata={"known": PRECISIONS})
    eval_points: int = 12
    eval_tokens: int = 8192
    final_eval_tokens: int = 65536
    diverge_above: float = 3.0
    diagnostics: tuple[str, ...] = field(default=(), metadata={"known": DIAGNOSTICS})

    def __post_init__(self) -> None:
        for name in self.diagnostics:
            if name not in DIAGNOSTICS:
                raise SpecError(["diagnostics"], unknown("diagnostic", name, DIAGNOSTICS))
        object.__setattr__(self, "diagnostics", tuple(sorted(set(self.diagnostics))))
        for name in (
            "batch_tokens",
            "accumulate",
            "eval_points",
            "eval_tokens",
            "final_eval_tokens",
        ):
            positive(self, name)
        for name in ("dropout", "label_smoothing", "ema", "mixout"):
            if not 0 <= getattr(self, name) < 1:
                raise SpecError([name], f"{getattr(self, name)} must be at least 0 and below 1")
        for name in ("batch_ramp", "seq_warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise SpecError([name], f"{getattr(self, name)} must be a share of the tokens, from 0 to 1")
        if not 0 < self.layer_decay <= 1:
            raise SpecError(["layer_decay"], f"{self.layer_decay} must be above 0 and at most 1")
        for name in ("weight_decay", "z_loss", "reinit_layers"):
            if getattr(self, name) < 0:
                raise SpecError([name], f"{getattr(self, name)} must not be negative")
        for name in ("lr", "clip", "diverge_above"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SpecError([name], f"{value} must be positive")
        if self.precision not in PRECISIONS:
            raise SpecError(["precision"], unknown("precision", self.precision, PRECISIONS))
        if self.tokens < self.batch_tokens and self.tokens != 0:  # 0 measures a trained model as it is
            raise SpecError(["tokens"], f"{self.tokens} is less than one batch of {self.batch_tokens} tokens")
        if self.epochs is not None and not self.epochs > 0:
            raise SpecError(["epochs"], f"{self.epochs} must be positive")
        self._check_pace()

    def _check_pace(self) -> None:
        for switch, names in {"batch_ramp": ("ramp_parts", "ramp_shape"), "seq_warmup": ("seq_start",)}.items():
            for name in names:
                if not getattr(self, switch) and getattr(self, name) != getattr(TrainSpec, name):
                    raise SpecError([name], f"{getattr(self, name)} has no effect: train.{switch} is 0")
        if self.ramp_parts < 2 or (self.ramp_shape == "doubling" and self.ramp_parts.bit_count() > 1):
            legal = "a power of two, from 2" if self.ramp_shape == "doubling" else "at least 2"
            raise SpecError(["ramp_parts"], f"{self.ramp_parts} must be {legal}")
        if self.batch_ramp and self.batch_tokens % self.ramp_parts:
            raise SpecError(["ramp_parts"], f"{self.ramp_parts} must divide batch_tokens {self.batch_tokens}")
        if self.seq_start < 8 or self.seq_start % 8:
            raise SpecError(["seq_start"], f"{self.seq_start} must be a multiple of 8")

    @property
    def batches(self) -> int:
        """The whole batches of the run's tokens."""
        return round(self.tokens / self.batch_tokens)

    @property
    def steps(self) -> int:
        if not self.batch_ramp:
            return self.batches
        return ramp(self.batches, self.ramp_parts, self.batch_ramp, self.ramp_shape).steps

    def tokens_at(self, step: int) -> int:
        """Tokens read in the first `step` steps."""
        if not self.batch_ramp:
            return step * self.batch_tokens
        found = ramp(self.batches, self.ramp_parts, self.batch_ramp, self.ramp_shape)
        return found.units_at(step) * (self.batch_tokens // self.ramp_parts)
