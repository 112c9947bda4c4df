"""The planner of a grid with `promote`: see `ablate.promoting`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace

import pandas as pd

from ablate.ladders import Ladder, ladders
from ablate.promoting import Promote
from ablate.rows import Plan, PlannedTrial
from ablate.run.ledger import Ledger
from ablate.run.planner import Ask
from ablate.run.race_planner import RacePlanner
from analysis.errors import AnalysisError
from analysis.promotion import Gates, promote
from analysis.table import study_table
from analysis.tables import by_comparable_loss


@dataclass(frozen=True)
class _Decided:
    """What a ladder's smaller scales came to: the trials at its largest that are wanted, and that in words."""

    trials: tuple[PlannedTrial, ...]
    promoted: bool  # whether any variant was
    told: str


class PromotePlanner:
    """Asks for all trials below the largest scales, then for those of the largest whose variants are promoted.

    What it asks for follows from the records alone, so that a killed study goes on with the same decisions. Losses
    are those of the study's table, in bits per byte where only they compare.
    """

    def __init__(self, plan: Plan, wanted: Promote, ledger: Ledger):
        self.plan, self.ledger = plan, ledger
        self.gates = Gates(**asdict(wanted))
        self.ladders = ladders(plan)
        self.told = ""  # why it ended
        self._asked: set[str] = set()
        self._decided: list[_Decided] = []
        self._race: RacePlanner | None = None  # at the largest scales, between what was promoted

    def next(self, done: Mapping[str, str]) -> list[Ask]:
        small = self._fresh((trial for ladder in self.ladders for trial in ladder.below), done)
        if small:
            return small
        if not self._decided:
            self._decide()
        asks = self._fresh((trial for each in self._decided for trial in each.trials), done)
        if self._race is not None:
            asks += self._race.next(done)
        if not asks:
            raced = [self._race.told] if self._race is not None else []
            self.told = ". ".join([*(each.told for each in self._decided), *raced])
        return asks

    def _fresh(self, trials: Iterable[PlannedTrial], done: Mapping[str, str]) -> list[Ask]:
        """Those that have not ended and were not asked for, the costliest first."""
        missing = [trial for trial in trials if trial.id not in done and trial.id not in self._asked]
        self._asked |= {trial.id for trial in missing}
        return [Ask(trial) for trial in sorted(missing, key=lambda trial: -trial.row.flops)]

    def _decide(self) -> None:
        """Every ladder by its own smaller scales. Where seeds are raced, those of ladders with a promoted variant are
        the race's; of the others the baseline has as many as a race begins with."""
        table, race = self._table(), self.plan.grid.race
        self._decided = [self._of(ladder, table) for ladder in self.ladders]
        if race is None:
            return
        raced = tuple(trial for each in self._decided if each.promoted for trial in each.trials)
        if raced:
            self._race = RacePlanner(replace(self.plan, trials=raced), race, self.ledger)
        self._decided = [
            replace(each, trials=() if each.promoted else each.trials[: race.first]) for each in self._decided
        ]

    def _of(self, ladder: Ladder, table: pd.DataFrame) -> _Decided:
        baseline = self.plan.baseline
        others = [each.name for each in self.plan.grid.variants[1:]]
        verdicts, trouble = dict.fromkeys(others, "unknown"), ""
        try:
            small = table[table["trial_id"].isin([trial.id for trial in ladder.below])]
            found = promote(small, baseline, ladder.flops, self.gates)
            verdicts |= dict(zip(found["variant"], found["verdict"], strict=True))
        except AnalysisError as error:  # as where the baseline diverged: nothing speaks for a variant
            trouble = f" ({error})"
        passed = [name for name, verdict in verdicts.items() if not verdict]
        left = [f"{name} ({verdict})" for name, verdict in verdicts.items() if verdict]
        told = f"{ladder.axes}: " * bool(ladder.axes)
        told += f"{len(passed)} of {len(others)} variants promoted to {ladder.scale}"
        told += f": {', '.join(passed)}" * bool(passed) + f"; not promoted: {', '.join(left)}" * bool(left) + trouble
        up = tuple(trial for trial in ladder.largest if trial.row.variant in (baseline, *passed))
        return _Decided(up, bool(passed), told)

    def _table(self) -> pd.DataFrame:
        """The trials, with the loss by which they compare as `loss`."""
        return by_comparable_loss(study_table(self.ledger.root, self.plan.grid.name))
