"""The ladders of scales of a plan: the trials at the largest scale of each, and those below."""

from __future__ import annotations

from dataclasses import dataclass

from ablate.errors import plural
from ablate.rows import Plan, PlannedTrial, Row

APART = 1.05  # times the FLOPs of the scale below: budgets are rounded to whole steps


@dataclass(frozen=True)
class Ladder:
    """The trials of one axis setting: those at its largest scale, named `scale`, where the baseline takes `flops`,
    and those below it."""

    axes: str
    scale: str
    flops: float
    below: tuple[PlannedTrial, ...]
    largest: tuple[PlannedTrial, ...]


def ladders(plan: Plan) -> list[Ladder]:
    """Every axis setting's ladder, the largest scale being the cell in which the baseline takes most FLOPs.

    Raises `UserError` where a plan has no variant beside the baseline, where two cells are the largest, and where
    fewer scales are below it than a law needs; cells whose FLOPs are within 5 % are one scale.
    """
    if len(plan.grid.variants) < 2:
        raise plan.grid.document.error(("promote",), "needs a variant besides the baseline: nothing is promoted")
    return [_ladder(plan, axes) for axes in dict.fromkeys(row.axes for row in plan.rows)]


def _ladder(plan: Plan, axes: str) -> Ladder:
    cells = [row for row in plan.rows if row.axes == axes and row.variant == plan.baseline]
    top = max(cells, key=lambda row: row.flops)
    _refuse_short(plan, cells, top)
    trials = [trial for trial in plan.trials if trial.row.axes == axes]
    largest = tuple(trial for trial in trials if _scale(trial.row) == _scale(top))
    below = tuple(trial for trial in trials if _scale(trial.row) != _scale(top))
    return Ladder(axes, _named(top), top.flops, below, largest)


def _refuse_short(plan: Plan, cells: list[Row], top: Row) -> None:
    from analysis.promotion import SCALES  # pandas, which other plans need not wait for

    where = f"at {top.axes}: " * bool(top.axes)
    for other in cells:
        if other is not top and top.flops <= APART * other.flops:
            raise plan.grid.document.error(
                ("promote",),
                f"{where}{_named(other)} and {_named(top)} take the same FLOPs, within {APART - 1:.0%}: none is the "
                "largest scale; give sizes or budgets of which one is larger than all others",
            )
    scales: list[float] = []
    for cost in sorted(row.flops for row in cells if row is not top):
        if not scales or cost > APART * scales[-1]:
            scales.append(cost)
    if len(scales) < SCALES:
        count = plural(len(scales), "scale")
        raise plan.grid.document.error(
            ("promote",),
            f"{where}{count} below the largest, {_named(top)}: a law needs at least {SCALES}; give more "
            "sizes or budgets",
        )


def _scale(row: Row) -> tuple[str, str]:
    return row.size, row.budget


def _named(row: Row) -> str:
    return ", ".join(filter(None, _scale(row)))
