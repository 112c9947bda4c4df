"""One `ablate run`: plan, train what is missing, mirror, and remember what was done."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from types import FrameType
from typing import Any

from rich.console import Console

from ablate import registry
from ablate.designs import Designed
from ablate.hypothesis import registration
from ablate.resolve import default_gpus
from ablate.rows import Plan, PlannedTrial
from ablate.run.background import BackgroundMirror
from ablate.run.executor import Executor, give_up
from ablate.run.files import append_json, write_json, write_text
from ablate.run.ledger import Ledger
from ablate.run.planner import Ask, GridPlanner, Planner, RungPlanner
from ablate.run.predict_planner import PredictPlanner
from ablate.run.progress import ProgressView
from ablate.run.promote_planner import PromotePlanner
from ablate.run.race_planner import RacePlanner
from ablate.run.tracking import Mirror
from ablate.run.tune_planner import TunePlanner
from ablate.run.worker import Event
from ablate.spec import Resources
from ablate.train.trial import Job, plan_trial


@dataclass
class Outcome:
    """What a run came to. `interrupted` is true when it was asked to stop before the end."""

    trained: list[str]
    reused: list[str]
    statuses: dict[str, str]
    interrupted: bool
    tracking_trouble: str | None
    enough: str = ""  # why the planner asked for no more, where it leaves trials out

    @property
    def exit_code(self) -> int:
        if self.interrupted:
            return 130
        bad = ("failed",) if self.enough else ("failed", "pending")
        return 1 if any(status in bad for status in self.statuses.values()) else 0


def study_tree(plan: Plan) -> dict[str, Any]:
    """The study as it is kept: every trial's id with its labels, and what the rows of the plan say."""
    rows = []
    for row in plan.rows:
        rows.append(
            {
                "stage": row.stage,
                "variant": row.variant,
                "size": row.size,
                "axes": row.axes,
                "budget": row.budget,
                "params_total": row.cost.params_total,
                "flops_per_token": row.cost.flops_forward,
                "residuals": dict(row.residuals),
                "tuned": dict(row.tuned),
                "solved": dict(row.solved),
                "differs_in": list(row.differs_in),
                "confounded": row.confounded,
            }
        )
    return {
        "study": plan.grid.name,
        "question": plan.grid.question,
        "baseline": plan.baseline,
        "match": plan.grid.match,
        "tolerance": plan.grid.tolerance,
        "design": {each.name: dict(each.on) for each in plan.grid.variants if isinstance(each, Designed)} or None,
        "published": plan.grid.published,
        "smallest": plan.grid.smallest,
        "race": None if plan.grid.race is None else asdict(plan.grid.race),
        "promote": None if plan.grid.promote is None else asdict(plan.grid.promote),
        "tune": None if plan.grid.tune is None else list(plan.grid.tune.paths),
        "predict": None if plan.grid.predict is None else asdict(plan.grid.predict),
        "stages": [{"name": stage.name, "from": stage.parent} for stage in plan.grid.stages if stage.name],
        "data": dict(plan.facts),
        "rows": rows,
        "trials": [
            {
                "id": trial.id,
                "group_id": trial.spec.group_id,
                "stage": trial.row.stage,
                "parent": trial.spec.parent,
                "variant": trial.row.variant,
                "size": trial.row.size,
                "axes": trial.row.axes,
                "axis_values": dict(trial.row.axis_values),
                "tuned": dict(trial.row.tuned),
                "budget": trial.row.budget,
                "seed": trial.spec.seed,
                "train_flops": trial.row.flops,
            }
            for trial in plan.trials
        ],
    }


def write_study(ledger: Ledger, plan: Plan, enough: str = "") -> dict[str, Any]:
    """Write the study's folder: the grid as given, and the study as resolved; with `enough`, why its planner has
    ended and left the trials out that have no record."""
    tree = study_tree(plan) | {"enough": enough}
    folder = ledger.study_folder(plan.grid.name)
    write_text(folder / "grid.yaml", plan.grid.document.text)
    write_json(folder / "study.json", tree)
    return tree


class StudyRun:
    """Trains what a plan misses, with one executor, under the study's lock."""

    def __init__(self, ledger: Ledger, plan: Plan, executor: Executor, console: Console, checkpoint_every_s: float):
        self.ledger = ledger
        self.plan = plan
        self.executor = executor
        self.console = console
        self.checkpoint_every_s = checkpoint_every_s
        self.stop = threading.Event()

    def run(self, tracking_uri: str, retry_failed: bool = False, log_models: bool = False) -> Outcome:
        """Run to the end, or until a signal asks to stop. Raises `Fatal` when the machine is at fault."""
        self._register()
        planner = self._planner_of_whole_plan(retry_failed)
        study = write_study(self.ledger, self.plan)
        done = self._done()
        reused = list(done)
        mirror = BackgroundMirror(Mirror(self.ledger, study, tracking_uri, log_models))
        for trial_id in mirror.mirror.behind():
            mirror.add(trial_id)
        trained: list[str] = []
        begun = time.time()
        missing = {trial.id: trial for trial in self.plan.trials if trial.id not in done}
        view = ProgressView(missing, self.console)
        try:
            with self._signals(), view:
                while not self.stop.is_set() and (batch := planner.next(done)):
                    if isinstance(planner, TunePlanner) and planner.plan is not self.plan:
                        self._grow(planner.plan, mirror, view, done)
                    self._train(batch, view, mirror, trained)
                    done = self._done()
                if not self.stop.is_set():
                    self._end_orphans(done, mirror)
                    mirror.mirror.study_is(write_study(self.ledger, self.plan, planner.told))
        finally:
            trouble = mirror.close()
            self._log(begun, trained, reused)
        statuses = {trial.id: self.ledger.trial(trial.id).status() for trial in self.plan.trials}
        return Outcome(trained, reused, statuses, self.stop.is_set(), trouble, planner.told)

    def _grow(self, plan: Plan, mirror: BackgroundMirror, view: ProgressView, done: Mapping[str, str]) -> None:
        """Go on with a plan that has more trials, which follow from those that have ended."""
        self.plan = plan
        mirror.mirror.study_is(write_study(self.ledger, plan))
        view.add({trial.id: trial for trial in plan.trials if trial.id not in done})

    def _register(self) -> None:
        """Write down what is expected before anything runs; again only where it or the plan has changed."""
        if (block := self.plan.grid.hypothesis) is None:
            return
        file = self.ledger.study_folder(self.plan.grid.name) / "hypothesis.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        said = registration(block, study_tree(self.plan))
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        if not lines or json.loads(lines[-1])["sha256"] != said["sha256"]:
            append_json(file, {"time": time.time(), **said})

    def _planner_of_whole_plan(self, retry_failed: bool) -> Planner:
        """The planner, with `plan` as it has become by the records; those that are to be tried again are forgotten
        first."""
        again = {"failed"} if retry_failed else set()
        again |= set() if self.plan.grid.rungs else {"stopped"}  # by a study that has some
        begun = self.plan
        while True:
            folders = [self.ledger.trial(trial.id) for trial in self.plan.trials]
            forgotten = [folder for folder in folders if folder.status() in again]
            for folder in forgotten:
                folder.forget_record()
            planner = self._planner(begun)
            self.plan = planner.plan if isinstance(planner, TunePlanner) else begun
            if not forgotten and len(folders) == len(self.plan.trials):
                return planner

    def _planner(self, plan: Plan) -> Planner:
        grid = plan.grid
        if grid.tune is not None:
            return TunePlanner(plan, self.ledger)
        if grid.promote is not None:
            return PromotePlanner(plan, grid.promote, self.ledger)
        if grid.race is not None:
            return RacePlanner(plan, grid.race, self.ledger)
        if grid.predict is not None:
            return PredictPlanner(plan, grid.predict, self.ledger)
        return RungPlanner(plan, grid.rungs, self.ledger) if grid.rungs else GridPlanner(plan)

    def _done(self) -> dict[str, str]:
        found = {}
        for trial in self.plan.trials:
            if (record := self.ledger.trial(trial.id).record()) is not None:
                found[trial.id] = record["status"]
        return found

    def _end_orphans(self, done: dict[str, str], mirror: BackgroundMirror) -> None:
        """Record the trials that cannot begin, because what they begin from did not finish: they are not forgotten
        in any table."""
        for trial in self.plan.trials:  # parents come first
            parent = trial.spec.parent
            if parent is not None and trial.id not in done and (how := done.get(parent, "finished")) != "finished":
                plan_trial(self.ledger, trial.spec)
                status = "stopped" if how == "stopped" else "failed"
                give_up(self.ledger.trial(trial.id), f"trial {parent}, which it begins from, has {how}", status)
                done[trial.id] = status
                mirror.add(trial.id)

    def _train(self, batch: list[Ask], view: ProgressView, mirror: BackgroundMirror, trained: list[str]) -> None:
        work = [(self._job(ask), self._needs(ask.trial)) for ask in batch]
        for ask in batch:
            plan_trial(self.ledger, ask.trial.spec)

        def on_event(event: Event) -> None:
            view.event(event)
            if event.get("status", "paused") != "paused":
                trained.append(event["id"])
                mirror.add(event["id"])

        self.executor.run(work, on_event, self.stop)

    def _job(self, ask: Ask) -> Job:
        return Job(
            ask.trial.id,
            str(self.ledger.root.resolve()),
            checkpoint_every_s=self.checkpoint_every_s,
            plugins=registry.plugin_files(),
            until=ask.until,
            stop=ask.stop,
        )

    def _needs(self, trial: PlannedTrial) -> Resources:
        return replace(trial.spec.resources, gpus=default_gpus(trial.spec))

    def _log(self, begun: float, trained: list[str], reused: list[str]) -> None:
        append_json(
            self.ledger.study_folder(self.plan.grid.name) / "log.jsonl",
            {"time": begun, "ended": time.time(), "trained": trained, "reused": reused},
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM ask to stop; a second one insists."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: FrameType | None) -> None:
            if self.stop.is_set():
                raise KeyboardInterrupt
            self.stop.set()
            self.console.print("stopping: trials under way leave a checkpoint (again to stop at once)")

        old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
