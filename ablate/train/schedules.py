"""Learning-rate schedules: the factor on `train.lr` at step s of S, s = 0..S-1.

`warmup` (and a decay's length) is a fraction of the run below 1, a number of steps from 1 on. During warm-up
the factor rises linearly, (s + 1) / warmup.
"""

from __future__ import annotations

import math
from typing import Literal

from ablate.errors import within
from ablate.registry import register


class Schedule:
    """A factor for every step."""

    def __init__(self, *, warmup: float = 0.0):
        within("schedule: warmup", warmup, 0)
        self.warmup = warmup

    def factor(self, step: int, steps: int) -> float:
        """Warm-up, then `after`."""
        warm = length(self.warmup, steps)
        return (step + 1) / warm if step < warm else self.after(step, warm, steps)

    def after(self, step: int, warm: int, steps: int) -> float:
        raise NotImplementedError

    def shared(self, steps: int, more: int) -> int:
        """For how many first steps a run of `steps` and one of `more` certainly have the same factors."""
        return 0

    def _same_warmup(self, steps: int, more: int) -> bool:
        return length(self.warmup, steps) == length(self.warmup, more)


def length(value: float, steps: int) -> int:
    """Steps that `value` stands for, at most the whole run."""
    return min(steps, round(value * steps) if value < 1 else round(value))


@register("schedule", "constant", paper="the absence of decay; Porian et al. 2024, arXiv:2406.19146")
class Constant(Schedule):
    """1."""

    def after(self, step: int, warm: int, steps: int) -> float:
        return 1.0

    def shared(self, steps: int, more: int) -> int:
        return min(steps, more) if self._same_warmup(steps, more) else 0


@register("schedule", "cosine", paper="Loshchilov and Hutter 2017, arXiv:1608.03983; Hoffmann et al. 2022")
class Cosine(Schedule):
    """final + (1 - final) (1 + cos(pi p)) / 2, p the part of the run after warm-up that is done.

    The last step is at `final`.
    """

    def __init__(self, *, warmup: float = 0.05, final: float = 0.1):
        super().__init__(warmup=warmup)
        within("schedule: final", final, 0, 1)
        self.final = final

    def after(self, step: int, warm: int, steps: int) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * _progress(step, warm, steps))) / 2


@register("schedule", "linear", paper="Devlin et al. 2019 (BERT), arXiv:1810.04805, appendix A.2")
class LinearDecay(Schedule):
    """1 - (1 - final) p, p the part of the run after warm-up that is done."""

    def __init__(self, *, warmup: float = 0.05, final: float = 0.0):
        super().__init__(warmup=warmup)
        within("schedule: final", final, 0, 1)
        self.final = final

    def after(self, step: int, warm: int, steps: int) -> float:
        return 1 - (1 - self.final) * _progress(step, warm, steps)


@register(
    "schedule",
    "one_cycle",
    paper="Smith and Topin 2018, arXiv:1708.07120; Geiping and Goldstein 2022, arXiv:2212.14034, section 4.3",
)
class OneCycle(Schedule):
    """A triangle: from `start` straight up to 1 over `warmup` of the run, half of it unless given, and straight down
    to `final` in its last step.

    Differs from Smith and Topin: no third phase below the first rate, and momentum stays; as Geiping and Goldstein
    train BERT in a day.
    """

    def __init__(self, *, warmup: float = 0.5, start: float = 0.0, final: float = 0.0):
        super().__init__(warmup=warmup)
        within("schedule: start", start, 0, 1)
        within("schedule: final", final, 0, 1)
        self.start = start
        self.final = final

    def factor(self, step: int, steps: int) -> float:
        warm = length(self.warmup, steps)
        if step < warm:
            return self.start + (1 - self.start) * (step + 1) / warm
        top = max(0, warm - 1)  # the step that is at 1
        return 1 - (1 - self.final) * _progress(step, top, steps)


@register("schedule", "inverse_sqrt", paper="Vaswani et al. 2017, arXiv:1706.03762, equation 3")
class InverseSqrt(Schedule):
    """sqrt(warmup / (s + 1)) after a linear warm-up.

    Differs from the paper: normalised to 1 at the end of warm-up, so that `train.lr` is the peak. With train.lr
    (d_model warmup)^-1/2 it is the paper's d_model^-1/2 min(s^-1/2, s warmup^-3/2), "Noam".
    """

    def __init__(self, *, warmup: float = 0.1):
        super().__init__(warmup=warmup)

    def after(self, step: int, warm: int, steps: int) -> float:
        return math.sqrt(max(1, warm) / (step + 1))

    def shared(self, steps: int, more: int) -> int:
        return min(steps, more) if self._same_warmup(steps, more) else 0


@register(
    "schedule",
    "wsd",
    paper="Hu et al. 2024 (MiniCPM), arXiv:2404.06395; Hägele et al. 2024, arXiv:2405.18392",
)
class WarmupStableDecay(Schedule):
    """Warm-up, constant, then a decay to `final` over the last `decay` of the run.

    With q the part of the decay that is done: `linear` 1 - q, `sqrt` 1 - sqrt(q), scaled to end at `final`.
    """

    def __init__(
        self,
        *,
        warmup: float = 0.05,
        decay: float = 0.2,
        shape: Literal["linear", "sqrt"] = "sqrt",
        final: float = 0.0,
    ):
        super().__init__(warmup=warmup)
        within("schedule: decay", decay, 0)
        within("schedule: final", final, 0, 1)
        self.decay = decay
        self.shape = shape
        self.final = final

    def after(self, step: int, warm: int, steps: int) -> float:
        begin = self._decay_begins(warm, steps)
        if step < begin:
            return 1.0
        done = _progress(step, begin, steps)
        left = 1 - (math.sqrt(done) if self.shape == "sqrt" else done)
        return self.final + (1 - self.final) * left

    def _decay_begins(self, warm: int, steps: int) -> int:
        return max(warm, steps - length(self.decay, steps))

    def shared(self, steps: int, more: int) -> int:
        if not self._same_warmup(steps, more):
            return 0
        return min(self._decay_begins(length(self.warmup, each), each) for each in (steps, more))


def _progress(step: int, begin: int, steps: int) -> float:
    """0 at `begin`, 1 at the last step."""
    return (step - begin) / max(1, steps - 1 - begin)
