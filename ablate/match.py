"""Makes a comparison fair: solves a variant's sizes so that it has the baseline's parameters, FLOPs, or both.

Knobs, in this order: nothing at all, then d_ff, then d_model (with d_ff for the rest), then depth (likewise).
What a variant sets by itself is not touched. The first solution within the tolerance is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ablate.errors import UserError
from ablate.spec import ArchSpec

TARGETS = {"params": ("params",), "flops": ("flops",), "both": ("params", "flops"), "none": ()}
WIDEST = 64  # how many multiples of the step a knob may be moved in either direction

Values = dict[str, float]
Make = Callable[[Mapping[str, int]], ArchSpec]  # sizes by dotted path -> the variant with them


@dataclass(frozen=True)
class Candidate:
    """A variant at certain sizes, and how far it is from the baseline: value / baseline - 1 for each target."""

    arch: ArchSpec
    sizes: tuple[tuple[str, int], ...]
    residuals: tuple[tuple[str, float], ...]

    @property
    def worst(self) -> float:
        return max((abs(residual) for _, residual in self.residuals), default=0.0)

    def describe(self) -> str:
        sizes = ", ".join(f"{path} {value}" for path, value in self.sizes) or "sizes as they are"
        off = ", ".join(f"{name} {residual:+.1%}" for name, residual in self.residuals)
        return f"{sizes}: {off}"


class Unmatched(UserError):
    """No sizes bring the variant within the tolerance; the message has the nearest."""


class Matcher:
    """Solves one variant against one baseline."""

    def __init__(self, make: Make, params: Callable[[ArchSpec], int], flops: Callable[[ArchSpec], float]):
        self.make = make
        self.params = params
        self.flops = flops

    def solve(self, want: Values, tolerance: float, frozen: frozenset[str]) -> Candidate:
        """The first candidate within `tolerance` of every wanted value. Raises `Unmatched`."""
        tried: list[Candidate] = []
        for candidate in self._candidates(want, frozen):
            if candidate.worst <= tolerance:
                return candidate
            tried.append(candidate)
        nearest = sorted(tried, key=lambda candidate: candidate.worst)[:3]
        raise Unmatched(
            f"cannot be matched in {' and '.join(want)} within {100 * tolerance:g}%; nearest: "
            + "; ".join(candidate.describe() for candidate in nearest)
        )

    def _candidates(self, want: Values, frozen: frozenset[str]) -> Iterator[Candidate]:
        start = self.make({})
        yield self._measure({}, want)
        yield from self._with_d_ff({}, want, frozen)
        heads_follow = start.d_head == start.d_model // start.n_heads
        for path, step, now in (
            ("arch.d_model", 2 * start.n_heads if heads_follow else 8, start.d_model),
            ("arch.depth", 1, start.depth),
        ):
            if path not in frozen:
                for value in _around(now, step):
                    if self._possible({path: value}, want):
                        yield self._measure({path: value}, want)
                        yield from self._with_d_ff({path: value}, want, frozen)

    def _with_d_ff(self, sizes: dict[str, int], want: Values, frozen: frozenset[str]) -> Iterator[Candidate]:
        """Solve d_ff for the first target: a multiple of 8, then any whole number, or an even one where that is not
        legal, as in components that halve it."""
        if "arch.d_ff" in frozen:
            return
        target = next(iter(want))
        now = self.make(sizes).d_ff or 1
        low, high = now, 2 * now
        at_low, at_high = (self._value({**sizes, "arch.d_ff": d}, target) for d in (low, high))
        if at_high == at_low:
            return  # nothing here has a hidden layer
        # both targets are linear in d_ff, up to the rounding of gated widths
        exact = low + (want[target] - at_low) * (high - low) / (at_high - at_low)
        for step in (8, 1):
            for d_ff in (round(exact / step) * step, round(exact / 2) * 2):
                if d_ff < 1:
                    continue
                try:
                    candidate = self._measure({**sizes, "arch.d_ff": d_ff}, want)
                except UserError:
                    continue
                yield candidate
                break

    def _possible(self, sizes: dict[str, int], want: Values) -> bool:
        """Whether the sizes make a legal architecture that is not hopelessly large or small."""
        try:
            value = self._value(sizes, next(iter(want)))
        except UserError:
            return False
        return 0.2 < value / want[next(iter(want))] < 5

    def _measure(self, sizes: dict[str, int], want: Values) -> Candidate:
        residuals = tuple((name, self._value(sizes, name) / value - 1) for name, value in want.items())
        return Candidate(self.make(sizes), tuple(sizes.items()), residuals)

    def _value(self, sizes: Mapping[str, int], target: str) -> float:
        arch = self.make(sizes)
        return self.flops(arch) if target == "flops" else self.params(arch)


def _around(now: int, step: int) -> Iterator[int]:
    """Multiples of `step` near `now`, nearest first, up to twice and down to half of it."""
    for distance in range(1, WIDEST + 1):
        for value in (now - distance * step, now + distance * step):
            if max(1, now // 2) <= value <= 2 * now:
                yield value
