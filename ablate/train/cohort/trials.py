"""The trials of a cohort from their specifications to their records."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ablate.run.lease import Busy
from ablate.run.ledger import Ledger
from ablate.train.clock import Clock
from ablate.train.cohort.check import why_apart
from ablate.train.cohort.members import EVENT
from ablate.train.cohort.together import Together
from ablate.train.cohort.worth import faster_alone
from ablate.train.job import Job
from ablate.train.memory import Pieces, free, out_of_memory
from ablate.train.remembered import common
from ablate.train.run import Diverged, TrainingRun
from ablate.train.training import Progress, Trial
from ablate.train.trial import ended_before, prepare_process, run_trial

Left = list[list[Job]]  # what is still to be trained, by who can be trained together


def run_job(job: Job) -> Generator[Progress, None, None]:
    """Train a job's trial, with those beside it if there are any."""
    return run_trial(job) if job.beside is None else run_cohort(job)


def run_cohort(job: Job) -> Generator[Progress, None, None]:
    """Train a job's trial with those beside it, as `run_trial` would each of them, yielding the events of all.

    Those that cannot be trained together, or are faster alone, are trained one after the other; so is whoever is left
    when something goes wrong with the whole, from its last checkpoint, so that it shows whose fault it is. Where
    memory is refused there are two cohorts of half the size.
    """
    left: Left = [job.each()]
    while left:
        jobs = left.pop(0)
        left[:0] = yield from _train_group(jobs)


def _train_group(jobs: list[Job]) -> Generator[Progress, None, Left]:
    """Train these together; returns what is left to do."""
    if jobs[0].beside is None:
        yield from run_trial(jobs[0])
        return []
    with ExitStack() as locks:
        mine: list[Job] = []
        for each in jobs:
            folder = Ledger(Path(each.results)).trial(each.trial_id)
            try:
                locks.enter_context(folder.locked())
            except Busy as busy:
                yield {"id": each.trial_id, "busy": str(busy.who or "another process")}
                continue
            if (event := ended_before(folder)) is not None:
                yield event
            else:
                mine.append(each)
        return (yield from _attempt(mine)) if mine else []


def _attempt(jobs: list[Job]) -> Generator[Progress, None, Left]:
    """Train trials that are locked."""
    alone = [[replace(each, beside=None)] for each in jobs]
    ledger = Ledger(Path(jobs[0].results))
    trials: list[Trial] = []
    try:
        device = prepare_process(jobs[0])
        specs = [ledger.trial(each.trial_id).read_spec() for each in jobs]
        if any(why_apart(each, ledger.cache) is not None for each in {common(spec) for spec in specs}):
            return alone
        if (size := jobs[0].if_faster) and faster_alone(specs[0], size, device, ledger.cache):
            return alone
        clock = Clock(len(jobs))
        for job, spec in zip(jobs, specs, strict=True):
            pieces = Pieces(spec, device, ledger.cache)
            if pieces.count > 1:  # there is not memory enough for one
                return alone
            trials.append(Trial(job, spec, ledger.trial(job.trial_id), device, ledger, pieces, clock))
        if len(groups := _by_step(trials)) > 1:
            return groups
        yield from _to_end(trials, clock)
        return []
    except Busy:
        raise
    except Exception as error:
        left = [each for each in jobs if ledger.trial(each.trial_id).record() is None]
        for each in left:
            ledger.trial(each.trial_id).note("apart", error=f"{type(error).__name__}: {error}")
        if not out_of_memory(error) or len(left) < 2:
            return [[replace(each, beside=None)] for each in left]
        trials.clear()  # with all that they hold on the device
        half = len(left) // 2
    free(device)
    return [left[:half], left[half:]]


def _by_step(trials: Sequence[Trial]) -> Left:
    """Those that go on from one step can be trained together."""
    groups: dict[int, list[Job]] = {}
    for trial in trials:
        groups.setdefault(trial.run.step, []).append(trial.job)
    return [groups[step] for step in sorted(groups)]


def _to_end(trials: list[Trial], clock: Clock) -> Generator[Progress, None, None]:
    going = {id(trial.run): trial for trial in trials}
    end = trials[0].last_step()
    try:
        together = Together([_gradients(trial) for trial in trials])
        for trial in trials:
            trial.folder.note(EVENT, of=[each.spec.trial_id for each in trials], device=trial.device.type)
        clock.train()
        while going and together.step < end:
            together.train_step()
            diverged: list[tuple[TrainingRun, str]] = []
            for run, loss in together.losses_by_run():
                try:
                    run.count_step(loss)
                except Diverged as reason:
                    diverged.append((run, str(reason)))
            saving = any(trial.due() for trial in going.values())  # all at one step, to go on together
            for run in list(together.runs):
                if any(run is each for each, _ in diverged):
                    continue
                try:
                    yield from going[id(run)].after_step(saving)
                except Diverged as reason:  # by its evaluation
                    diverged.append((run, str(reason)))
            for run, why in diverged:
                together.leave(run)
                trial = going.pop(id(run))
                yield trial.end("diverged", why)
                clock.share(max(1, len(going)))
        for trial in list(going.values()):
            event = trial.reach()
            del going[id(trial.run)]
            yield event
    except GeneratorExit:  # asked to stop: nothing of what was done is lost
        for trial in going.values():
            trial.leave_off()
        raise


def _gradients(trial: Trial) -> TrainingRun:
    assert isinstance(trial.run, TrainingRun)
    return trial.run
