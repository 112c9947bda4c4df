"""One `ablate run`: plan, train what is missing, mirror, and remember what was done."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rich.console import Console

from ablate import registry
from ablate.designs import Designed
from ablate.hypothesis import registration
from ablate.resolve import default_gpus
from ablate.rows import Plan, PlannedTrial
from ablate.run.background import BackgroundMirror
from ablate.run.budget import Budget, Budgeted, by_priority
from ablate.run.cohorts import Cohorts
from ablate.run.estimates import keep_estimates
from ablate.run.executor import Executor, give_up
from ablate.run.files import append_json, write_json, write_text
from ablate.run.ledger import Ledger
from ablate.run.memory import Needs
from ablate.run.planner import Ask, Planner, planner_of
from ablate.run.progress import ProgressView
from ablate.run.stopping import INTERRUPTED, Stop
from ablate.run.tracking import Mirror
from ablate.run.trunks import Wave, waves
from ablate.spec import Resources
from ablate.terminal import say
from ablate.train.job import Event, Fork, Job
from ablate.train.trial import plan_trial
from analysis.records import read_lines

ASK_AGAIN_S = 3.0  # how often a trial that another run holds is looked at
AS_ASKED = 3  # exit code: trials are left, as the command was asked; the same command goes on


@dataclass
class Outcome:
    """What a run came to. `stopped` says why it ended before its work was done, if so: see `ablate.run.stopping`."""

    trained: list[str]
    reused: list[str]
    statuses: dict[str, str]
    stopped: str
    tracking_trouble: str | None
    enough: str = ""  # why the planner asked for no more, where it leaves trials out
    trimmed: bool = False  # by a budget

    def __repr__(self) -> str:
        return f"<{self.words}>"

    @property
    def words(self) -> str:
        """`trained 4, reused 0: 4 finished`."""
        states = ("finished", "diverged", "failed", "stopped")
        counts = {state: sum(each == state for each in self.statuses.values()) for state in states}
        words = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        return f"trained {len(self.trained)}, reused {len(self.reused)}: {words or 'nothing finished'}"

    @property
    def exit_code(self) -> int:
        if self.stopped:
            return 130 if self.stopped == INTERRUPTED else AS_ASKED
        bad = ("failed",) if self.enough else ("failed", "pending", "unreadable")
        if any(status in bad for status in self.statuses.values()):
            return 1
        return AS_ASKED if self.trimmed else 0


@dataclass
class Tally:
    """Which trials this run has trained, and which it found or another run ended meanwhile."""

    trained: list[str]
    reused: list[str]
    begun: set[str] = field(default_factory=set)  # seen in training: a worker can die after the record

    def event(self, event: Event) -> None:
        """Count a trial's end."""
        if "step" in event:
            self.begun.add(event["id"])
        if event.get("status", "paused") == "paused":
            return
        if event.get("reused") and event["id"] not in self.begun:
            self.reuse(event["id"])
        else:
            self.trained.append(event["id"])

    def reuse(self, trial_id: str) -> None:
        """Count a trial that another run has ended."""
        self.reused.append(trial_id)


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

    def __init__(
        self,
        ledger: Ledger,
        plan: Plan,
        executor: Executor,
        console: Console,
        checkpoint_every_s: float,
        deadline: float | None = None,  # by `time.monotonic`: no trial begins after it
        budget: Budget | None = None,
        forks: bool = True,  # whether trials with common first steps train them once
        profile: bool = False,  # measure where trials' time goes
        compiles: bool = True,  # where that pays
        cohorts: Cohorts = Cohorts(0),  # which trials are trained together  # noqa: B008
    ):
        self.ledger = ledger
        self.plan = plan
        self.executor = executor
        self.console = console
        self.checkpoint_every_s = checkpoint_every_s
        self._waited_for: set[str] = set()
        self.budget = budget
        self.forks, self.profile, self.cohorts, self.compiles = forks, profile, cohorts, compiles
        self.needs = Needs(ledger)
        self.stop = Stop(console, ledger.pause_file(plan.grid.name), deadline)

    def run(self, tracking_uri: str, retry_failed: bool = False, log_models: bool = False) -> Outcome:
        """Run to the end, or until something asks to stop. Raises `Fatal` when the machine is at fault."""
        self._register()
        planner = self._planner_of_whole_plan(retry_failed)
        within = self._within_budget(planner)
        study = write_study(self.ledger, self.plan)
        done = self._done()
        tally = Tally([], list(done))
        keep_estimates(self.ledger, self.plan, study["trials"], done)
        mirror = BackgroundMirror(Mirror(self.ledger, study, tracking_uri, log_models))
        for trial_id in mirror.mirror.behind():
            mirror.add(trial_id)
        begun = time.time()
        missing = {trial.id: trial for trial in self.plan.trials if trial.id not in done}
        view = ProgressView(missing, self.console)
        try:
            with self.stop.watching(), view:
                while not self.stop.event.is_set() and (batch := within.next(done)):
                    if planner.plan is not self.plan:
                        self._grow(planner.plan, mirror, view, done)
                    self._train(by_priority(self.plan, batch), view, mirror, tally)
                    done = self._done()
                if not self.stop.event.is_set():
                    self._end_orphans(done, mirror)
                    mirror.mirror.study_is(write_study(self.ledger, self.plan, within.told))
        finally:
            trouble = mirror.close()
            self._log(begun, tally.trained, tally.reused)
        statuses = {trial.id: self.ledger.trial(trial.id).status() for trial in self.plan.trials}
        trimmed = isinstance(within, Budgeted) and bool(within.left_out)
        return Outcome(tally.trained, tally.reused, statuses, self.stop.reason, trouble, within.told, trimmed)

    def _within_budget(self, planner: Planner) -> Planner:
        if self.budget is None:
            return planner
        return Budgeted(planner, self.budget, self.ledger, self._say)

    def _say(self, words: str) -> None:
        say(self.console, words)

    def _grow(self, plan: Plan, mirror: BackgroundMirror, view: ProgressView, done: Mapping[str, str]) -> None:
        """Go on with a plan that has more trials, which follow from those that have ended."""
        self.plan = plan
        study = write_study(self.ledger, plan)
        mirror.mirror.study_is(study)
        keep_estimates(self.ledger, plan, study["trials"], done)
        view.add({trial.id: trial for trial in plan.trials if trial.id not in done})

    def _register(self) -> None:
        """Write down what is expected before anything runs; again only where it or the plan has changed."""
        if (block := self.plan.grid.hypothesis) is None:
            return
        file = self.ledger.study_folder(self.plan.grid.name) / "hypothesis.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        said = registration(block, study_tree(self.plan))
        lines = read_lines(file)
        if not lines or lines[-1].get("sha256") != said["sha256"]:
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
            planner = planner_of(begun, self.ledger)
            self.plan = planner.plan
            if not forgotten and len(folders) == len(self.plan.trials):
                return planner

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
                reason = f"trial {parent}, which it begins from, has {how}"
                event = give_up(self.ledger.trial(trial.id), reason, status)
                if "status" in event:  # else another run is at it
                    done[trial.id] = event["status"]
                    mirror.add(trial.id)

    def _train(self, batch: list[Ask], view: ProgressView, mirror: BackgroundMirror, tally: Tally) -> None:
        """Run what is asked for, trials that go on from others' first steps after these."""
        self.needs.refresh()
        for ask in batch:
            plan_trial(self.ledger, ask.trial.spec)
        for wave in waves(batch) if self.forks else [Wave(batch)]:
            self._train_wave(wave, view, mirror, tally)

    def _train_wave(self, wave: Wave, view: ProgressView, mirror: BackgroundMirror, tally: Tally) -> None:
        """What other runs hold is waited for, and run where they leave it without a record."""
        batch, held = wave.asks, dict[str, Ask]()
        while (batch or held) and not self.stop.event.is_set():
            work = self.cohorts.formed(
                [
                    (self._job(ask, wave.forks.get(ask.trial.id, ())), self._needs(ask.trial), ask.trial.spec)
                    for ask in batch
                ]
            )
            asks = {ask.trial.id: ask for ask in batch}
            told = set[str]()

            def on_event(event: Event, asks: Mapping[str, Ask] = asks, told: set[str] = told) -> None:
                if "status" in event and event["id"] in told:  # a member of a cohort whose worker died
                    return
                if "status" in event:
                    told.add(event["id"])
                if "busy" in event:
                    held[event["id"]] = asks[event["id"]]
                    self._say_held(event["id"], event["busy"])
                    return
                view.event(event)
                if event.get("status", "paused") != "paused":
                    mirror.add(event["id"])
                tally.event(event)

            if work:
                self.executor.run(work, on_event, self.stop.event)
            for trial_id in [each for each in held if self.ledger.trial(each).record() is not None]:
                tally.reuse(trial_id)
                mirror.add(trial_id)
                view.event(self._ended_elsewhere(trial_id))
                del held[trial_id]
            batch = [held.pop(each) for each in [*held] if not self.ledger.trial(each).running()]
            if held and not batch:
                self.stop.event.wait(ASK_AGAIN_S)

    def _say_held(self, trial_id: str, who: str) -> None:
        if trial_id not in self._waited_for:
            say(self.console, f"waiting for trial {trial_id}, which {who} trains")
            self._waited_for.add(trial_id)

    def _ended_elsewhere(self, trial_id: str) -> Event:
        record = self.ledger.trial(trial_id).record()
        assert record is not None
        loss, error = record["metrics"]["loss"], record.get("error") or ""
        return {"id": trial_id, "status": record["status"], "loss": loss, "error": error}

    def _job(self, ask: Ask, forks: tuple[Fork, ...]) -> Job:
        return Job(
            ask.trial.id,
            str(self.ledger.root.resolve()),
            checkpoint_every_s=self.checkpoint_every_s,
            plugins=registry.plugin_files(),
            until=ask.until,
            stop=ask.stop,
            forks=forks,
            profile=self.profile,
            compiles=self.compiles,
            study=self.plan.grid.name,
            memory_bytes=self.needs.of(ask.trial),
            hours=ask.trial.spec.resources.hours,
        )

    def _needs(self, trial: PlannedTrial) -> Resources:
        return replace(trial.spec.resources, gpus=default_gpus(trial.spec))

    def _log(self, begun: float, trained: list[str], reused: list[str]) -> None:
        append_json(
            self.ledger.study_folder(self.plan.grid.name) / "log.jsonl",
            {"time": begun, "ended": time.time(), "trained": trained, "reused": reused},
        )
