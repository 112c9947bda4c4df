"""Trials that are trained together: each comes to what it comes to alone, whoever is beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import curves, events, job, new_results, own_registry, run_here, spec, train, with_database

from ablate import registry
from ablate.run.cohorts import Cohorts
from ablate.run.executor import Deaths
from ablate.run.ledger import Ledger
from ablate.spec import Resources, TrialSpec
from ablate.subject import MODELS, Subject, subjects
from ablate.train import clock
from ablate.train.cohort import check, trials, worth
from ablate.train.cohort.along import Apart
from ablate.train.cohort.check import why_apart
from ablate.train.cohort.members import cohort_of
from ablate.train.cohort.together import Together
from ablate.train.cohort.trials import run_cohort
from ablate.train.job import Job
from ablate.train.run import TrainingRun

Write = Callable[..., Path]
CPU = torch.device("cpu")

GRID = """\
study: together
base:
  arch: {d_model: 16, n_heads: 2, depth: 1, position: learned}
  data: {corpus: kjv, tokenizer: bytes, seq_len: 16}
  train: {tokens: 5120, batch_tokens: 128, lr: 3e-3, dropout: 0.1, eval_points: 5, eval_tokens: 256}
variants:
  plain: {}
  slow: {train.lr: 1e-3, train.weight_decay: 0.0, train.optimizer: {name: adamw, beta2: 0.99}}
  sgd: {train.optimizer: sgd, train.schedule: constant}
  rope: rope
seeds: 3
"""

APART = '''\
"""Components that no two models can share a program with."""

import torch

from ablate import Norm, register


class Plain(Norm):
    def forward(self, x):
        return x


@register("norm", "draws", paper="made up")
class Draws(Plain):
    """Draws from the process' own generator, which K models would draw from together."""

    def forward(self, x):
        return x * (1 + 0.1 * torch.rand(x.shape[-1])) if self.training else x


@register("norm", "looks", paper="made up")
class Looks(Plain):
    """Does one thing or another by what it sees."""

    def forward(self, x):
        return x if x.sum() > 0 else 2 * x


@register("norm", "counts", paper="made up")
class Counts(Plain):
    """Keeps a state of its own that is in no buffer."""

    calls = 0

    def forward(self, x):
        type(self).calls += 1
        return x * (1 + 0.1 * (type(self).calls % 7))


@register("norm", "spares", paper="made up")
class Spares(Plain):
    """Has a matrix that has no part in the loss: alone it does not decay."""

    def __init__(self, d):
        super().__init__(d)
        self.spare = torch.nn.Parameter(torch.ones(d, d))

    def forward(self, x):
        return x


@register("norm", "mixes", paper="made up")
class Mixes(Plain):
    """Sees the rows of all models, by looking behind what vmap shows."""

    def forward(self, x):
        if not torch._C._functorch.is_batchedtensor(x):
            return x
        whole = torch._C._functorch.get_unwrapped(x)
        return x + whole.mean().detach() + 0.1
'''


def runs(cache: Path, asked: Sequence[TrialSpec]) -> list[TrainingRun]:
    return [TrainingRun(each, CPU, cache) for each in asked]


def different(overrides: dict[str, Any] | None = None, n: int = 3) -> list[TrialSpec]:
    """Trials that differ in all that members of a cohort may differ in."""
    ours = {"train.tokens": 1280, "train.dropout": 0.2, "train.eval_tokens": 128, **(overrides or {})}
    each = [
        {},
        {"train.lr": 1e-2, "train.schedule": {"name": "wsd", "warmup": 2}},
        {"train.weight_decay": 0.0, "train.clip": None, "train.optimizer": {"name": "adamw", "beta1": 0.8}},
    ]
    return [spec(ours | each[seed % 3], seed=seed) for seed in range(n)]


def go(together: Together, steps: int) -> None:
    for _ in range(steps):
        together.train_step()
        for run, loss in together.losses_by_run():
            run.count_step(loss)


def same(one: TrainingRun, other: TrainingRun) -> bool:
    """Bit for bit, in all that a checkpoint has."""
    return _equal(one.state(), other.state())


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return bool(one == other)


# ---- the program


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"train.ema": 0.9},
        {"train.accumulate": 2},
        {"train.batch_ramp": 0.5, "train.ramp_parts": 4},
    ],
)
def test_members_come_to_what_they_come_to_alone(token_cache: Path, overrides: dict[str, Any]) -> None:
    """With other seeds, rates, schedules, decays, limits and betas; and so do their evaluations."""
    asked = different(overrides)
    alone, joined = runs(token_cache, asked), runs(token_cache, asked)
    for run in alone:
        for _ in range(20):
            run.train_step()
    go(Together(joined), 20)
    for one, other in zip(alone, joined, strict=True):
        assert one.first_loss == pytest.approx(other.first_loss, rel=1e-6)
        assert one.take_means() == pytest.approx(other.take_means(), rel=1e-4)
        assert one.evaluate("valid", False) == pytest.approx(other.evaluate("valid", False), rel=1e-4)


@pytest.mark.parametrize("optimizer", [entry.name for entry in registry.catalogue("optimizer")])
def test_who_is_beside_a_member_changes_nothing(token_cache: Path, optimizer: str) -> None:
    """Bit for bit: alone in the program, with one other, with two, and after one of these has left."""
    asked = [
        replace(each, train=replace(each.train, optimizer=spec({"train.optimizer": optimizer}).train.optimizer))
        for each in different()
    ]
    three, two, ones = runs(token_cache, asked), runs(token_cache, asked[:2]), runs(token_cache, asked)
    together, pair = Together(three), Together(two)
    go(together, 12)
    go(pair, 12)
    for run in ones:
        go(Together([run]), 12)
    assert three[2].evaluate("valid", False) == ones[2].evaluate("valid", False)
    together.leave(three[1])
    assert three[2].evaluate("valid", False) == ones[2].evaluate("valid", False)
    assert all(same(one, other) for one, other in zip(three, ones, strict=True))
    go(together, 5)
    go(pair, 5)
    for run in ones:
        assert run.beside is not None
        go(run.beside, 5)
    assert same(three[0], ones[0]) and same(three[2], ones[2]) and same(two[0], ones[0]) and same(two[1], ones[1])
    assert not same(three[0], three[2])
    kept = [run.state() for run in three]
    other = runs(token_cache, asked)
    for run, state in zip(other, kept, strict=True):
        run.restore(json_free(state))
    assert same(other[0], three[0])


def json_free(state: dict[str, Any]) -> dict[str, Any]:
    """As through a file: nothing is shared."""
    return torch.load(_saved(state), weights_only=True)  # type: ignore[no-any-return]


def _saved(state: dict[str, Any]) -> Any:
    import io

    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return stream


def test_a_member_that_goes_wrong_leaves_the_others_alone(token_cache: Path) -> None:
    asked = different()
    three, ones = runs(token_cache, asked), runs(token_cache, asked)
    together = Together(three)
    with torch.no_grad():
        next(three[1].model.parameters()).fill_(float("nan"))
    for step in range(9):  # the tenth would say that it has diverged
        together.train_step()
        for run, loss in together.losses_by_run():
            run.count_step(loss)
            assert run is three[1] or torch.isfinite(loss), step
    for run in (ones[0], ones[2]):
        go(Together([run]), 9)
    assert same(three[0], ones[0]) and same(three[2], ones[2])


def test_what_cannot_be_joined(token_cache: Path) -> None:
    frozen = runs(token_cache, different())
    next(frozen[0].model.parameters()).requires_grad_(False)
    with pytest.raises(Apart, match="frozen"):
        Together(frozen)
    other = runs(token_cache, [spec(), spec({"arch.d_model": 32}, seed=1)])
    with pytest.raises((Apart, RuntimeError)):
        Together(other)
    longer = runs(token_cache, [spec(), spec({"data.seq_len": 8}, seed=1)])
    with pytest.raises((Apart, RuntimeError)):
        go(Together(longer), 1)


# ---- what can be trained together is found by computing it

REFUSED = {
    *("mixer elman", "mixer gru", "mixer lstm", "channel mixture_of_experts", "channel switch"),
    *("norm batchnorm_running", "head adaptive_softmax", "model ngram"),
}
OWN_LOOP = {"mixer elman(nonlinearity=sigmoid)", "mixer gru(reset=before)"}  # torch has no kernel for these
ONE_TOWER = [each for each in subjects() if each.entry.slot in MODELS and each.form == "tokens"]


@pytest.mark.parametrize("subject", ONE_TOWER, ids=lambda subject: subject.name)
def test_every_component_is_together_or_named(subject: Subject, token_cache: Path) -> None:
    """A component either trains beside another of its kind as it does alone, or it is found that it does not."""
    if not subject.entry.causal:
        pytest.skip("sees ahead")
    why = check.difference(replace(spec({"train.dropout": 0.1}), arch=subject.arch), token_cache)
    refused = f"{subject.entry.slot} {subject.entry.name}" in REFUSED and subject.name not in OWN_LOOP
    assert (why is not None) == refused, why


@pytest.mark.parametrize("name", ["draws", "looks", "counts", "spares", "mixes"])
def test_components_that_cannot_share_a_program(name: str, ledger: Ledger, write: Write) -> None:
    with own_registry():
        registry.add_plugin(write(APART, "apart.py"))
        assert why_apart(spec({"arch.norm": name}), ledger.cache) is not None
    assert why_apart(spec(), ledger.cache) is None


def test_it_is_found_out_once(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_apart(spec({"arch.sublayers": {"s": "gru"}}), ledger.cache) is not None
    monkeypatch.setattr(check, "difference", lambda *_: pytest.fail("looked again"))
    again = spec({"arch.sublayers": {"s": "gru"}, "train.lr": 0.5}, seed=3)
    assert "gru" in str(why_apart(again, ledger.cache))


# ---- the trials


def cohort(ledger: Ledger, asked: Sequence[TrialSpec], **settings: Any) -> Job:
    first, *others = (job(ledger, each, **settings) for each in asked)
    return replace(first, beside=tuple(replace(each, beside=()) for each in others))


def test_a_study_in_cohorts(ledger: Ledger, other_ledger: Ledger, write: Write) -> None:
    """Curves, weights and results are the same, byte for byte, in cohorts of 4, and of 2 in other processes; and
    up to rounding those of trials that are trained alone."""
    grid = write(GRID)
    code, said = run_here("run", grid, "--results", with_database(ledger).root, "--workers", 0, "--cohorts", 4)
    assert code == 0 and "12 finished" in said, said
    other = new_results(ledger.root.parent / "cohorts2", ledger.cache.resolve())
    code, said = run_here("run", grid, "--results", with_database(other).root, "--workers", 2, "--cohorts", 2)
    assert code == 0 and "12 finished" in said, said
    assert curves(other) == curves(ledger)
    for trial_id in ledger.trial_ids():
        ours, theirs = ledger.trial(trial_id), other.trial(trial_id)
        assert ours.weights.read_bytes() == theirs.weights.read_bytes()
        mine, yours = ours.record(), theirs.record()
        assert mine is not None and yours is not None
        assert mine["metrics"] == yours["metrics"] and mine["layers"] == yours["layers"]
        assert yours["cohort"]["size"] <= 2 and trial_id in yours["cohort"]["of"]
    sizes = [(ledger.trial(each).record() or {})["cohort"]["size"] for each in ledger.trial_ids()]
    assert sorted(sizes) == [2, 2, *[3] * 6, *[4] * 4]  # 6 of adamw in one tower, 3 of sgd, 3 of rope
    code, said = run_here("run", grid, "--results", with_database(other_ledger).root, "--workers", 0)
    assert code == 0
    for trial_id in ledger.trial_ids():
        record, alone = ledger.trial(trial_id).record(), other_ledger.trial(trial_id).record()
        assert record is not None and alone is not None and alone["cohort"] is None
        assert record["metrics"]["loss"] == pytest.approx(alone["metrics"]["loss"], rel=2e-4)
        assert "rounding" in record["cohort"]["note"]
        assert record["environment"].keys() == alone["environment"].keys()
    told = (ledger.study_folder("together") / "report" / "report.md").read_text()
    assert "12 of 12 trials were trained in cohorts, of up to 4 that one program trains" in told
    assert "Cohorts" not in (other_ledger.study_folder("together") / "report" / "report.md").read_text()


def test_a_cohort_that_is_stopped_goes_on(ledger: Ledger, other_ledger: Ledger) -> None:
    """Together or alone: its members leave checkpoints that are those of any trial."""
    asked = different({"train.tokens": 12_800, "train.eval_points": 6})
    for _ in run_cohort(cohort(other_ledger, asked)):
        pass
    told = cohort(ledger, asked, progress_every_s=0.0)
    steps: dict[str, int] = {}
    going = run_cohort(told)
    for event in going:
        steps[event["id"]] = event["step"]
        if len(steps) == 3 and min(steps.values()) >= 50:
            break
    going.close()
    folders = [ledger.trial(each.trial_id) for each in asked]
    assert all(folder.record() is None and events(folder) == ["start", "cohort", "stop"] for folder in folders)
    paused = new_results(ledger.root.parent / "paused", ledger.cache.resolve())
    lone = train(paused, asked[0], until=50).checkpoint.stat().st_size
    assert all(folder.checkpoint.stat().st_size < 1.1 * lone for folder in folders)
    alone = train(ledger, asked[2])
    for _ in run_cohort(told):
        pass
    expected = curves(other_ledger)
    for each in asked[:2]:
        folder = ledger.trial(each.trial_id)
        assert folder.metrics.read_bytes() == expected[each.trial_id]
        assert events(folder) == ["start", "cohort", "stop", "resume", "cohort", "end"]
    record, theirs = alone.record(), other_ledger.trial(asked[2].trial_id).record()
    assert record is not None and theirs is not None and record["cohort"]["size"] == 3
    assert record["metrics"]["loss"] == pytest.approx(theirs["metrics"]["loss"], rel=1e-3)


def test_members_at_different_steps(ledger: Ledger, other_ledger: Ledger) -> None:
    """As a killed driver may leave them: those at one step go on together."""
    asked = different({"train.tokens": 2560})
    for _ in run_cohort(cohort(other_ledger, asked)):
        pass
    (first, *_), half = asked, 20
    going = run_cohort(replace(job(ledger, first, until=half), beside=()))
    assert [event["status"] for event in going if "status" in event] == ["paused"]
    told = list(run_cohort(cohort(ledger, asked)))
    assert sorted(event["id"] for event in told if "status" in event) == sorted(each.trial_id for each in asked)
    assert curves(ledger) == curves(other_ledger)
    sizes = [(ledger.trial(each.trial_id).record() or {})["cohort"]["size"] for each in asked]
    assert sizes == [1, 2, 2]


def test_one_diverges(ledger: Ledger, other_ledger: Ledger) -> None:
    fine = different({"train.clip": 1.0})
    hot = replace(fine[1], train=replace(fine[1].train, lr=1e6, clip=None))
    shared: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials.Clock, "share", lambda _, sharers: shared.append(sharers))
        for _ in run_cohort(cohort(ledger, [fine[0], hot, fine[2]])):
            pass
    assert shared == [2]
    for _ in run_cohort(cohort(other_ledger, [fine[0], fine[2]])):
        pass
    record = ledger.trial(hot.trial_id).record()
    assert record is not None and record["status"] == "diverged" and record["steps"] < fine[0].train.steps
    for each in (fine[0], fine[2]):
        ours, theirs = ledger.trial(each.trial_id), other_ledger.trial(each.trial_id)
        assert ours.status() == "finished" and ours.metrics.read_bytes() == theirs.metrics.read_bytes()
        assert ours.weights.read_bytes() == theirs.weights.read_bytes()


def test_memory_is_refused(ledger: Ledger, other_ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cohorts of half the size, down to what there is room for; numbers as ever."""
    asked = different(n=5)
    for _ in run_cohort(cohort(other_ledger, asked)):
        pass
    step = Together.train_step

    def full(self: Together) -> None:
        if len(self.runs) > 2 and self.step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(self)

    monkeypatch.setattr(Together, "train_step", full)
    told = list(run_cohort(cohort(ledger, asked)))
    assert [event["status"] for event in told if "status" in event] == ["finished"] * 5
    assert curves(ledger) == curves(other_ledger)
    sizes = [(ledger.trial(each.trial_id).record() or {})["cohort"]["size"] for each in asked]
    assert sizes == [2, 2, 1, 2, 2]


def test_whoever_is_at_fault_fails_by_itself(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = different()
    ours = TrainingRun.after_update

    def breaks(self: TrainingRun, *of: Any) -> None:
        if self.spec.seed == 1 and self.step == 7:
            raise RuntimeError("broken")
        ours(self, *of)

    monkeypatch.setattr(TrainingRun, "after_update", breaks)
    told = {event["id"]: event["status"] for event in run_cohort(cohort(ledger, asked)) if "status" in event}
    assert [told[each.trial_id] for each in asked] == ["finished", "failed", "finished"]
    record = ledger.trial(asked[1].trial_id).record()
    assert record is not None and record["error"] == "RuntimeError: broken" and "breaks" in record["traceback"]
    assert "apart" in events(ledger.trial(asked[0].trial_id))


def test_members_that_have_ended_or_are_elsewhere(ledger: Ledger) -> None:
    asked = different(n=4)
    train(ledger, asked[0])
    with ledger.trial(asked[1].trial_id).locked():
        told = list(run_cohort(cohort(ledger, asked)))
    ends = {event["id"]: event for event in told if event.keys() & {"status", "busy"}}
    assert ends[asked[0].trial_id]["reused"] and "busy" in ends[asked[1].trial_id]
    assert [ends[each.trial_id]["status"] for each in asked[2:]] == ["finished"] * 2
    assert (ledger.trial(asked[2].trial_id).record() or {})["cohort"]["of"] == [each.trial_id for each in asked[2:]]


def test_what_is_refused_or_slower_is_trained_alone(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [spec({"arch.sublayers": {"s": "gru"}}, seed=seed) for seed in range(2)]
    assert len([event for event in run_cohort(cohort(ledger, asked)) if "status" in event]) == 2
    assert all((ledger.trial(each.trial_id).record() or {})["cohort"] is None for each in asked)
    monkeypatch.setattr(worth, "gain", lambda *_: 1.05)
    slower = different()
    for _ in run_cohort(cohort(ledger, slower, if_faster=32)):
        pass
    assert all((ledger.trial(each.trial_id).record() or {})["cohort"] is None for each in slower)
    monkeypatch.setattr(worth, "gain", lambda *_: pytest.fail("measured again"))
    faster = [replace(each, seed=each.seed + 10) for each in slower]
    for _ in run_cohort(cohort(ledger, faster, if_faster=32)):
        pass
    assert all((ledger.trial(each.trial_id).record() or {})["cohort"] is None for each in faster)


def test_the_gain_is_measured(token_cache: Path) -> None:
    assert 0.05 < worth.gain(spec(), 2, CPU, token_cache) < 20
    assert worth.faster_alone(spec({"train.tokens": 64 * 7}), 2, CPU, token_cache)  # too short to be measured


# ---- who is put together


def formed(ledger: Ledger, asked: Sequence[TrialSpec], cohorts: Cohorts, **settings: Any) -> list[list[int]]:
    """The seeds of the trials in each job."""
    seeds = {each.trial_id: each.seed for each in asked}
    need = Resources(cpus=1, gpus=settings.pop("gpus", 0))
    work = cohorts.formed([(job(ledger, each, **settings), need, each) for each in asked])
    return [[seeds[each.trial_id] for each in told.each()] for told, _ in work]


def test_cohorts_are_of_trials_alike(ledger: Ledger) -> None:
    asked = [*different(), spec({"arch.d_model": 32}, seed=3), *(spec({"train.tokens": 1280}, seed=4) for _ in "a")]
    assert formed(ledger, asked, Cohorts(8)) == [[0, 1, 2], [3], [4]]  # without dropout the last is another program
    assert formed(ledger, different(n=5), Cohorts(2)) == [[0, 1], [2, 3], [4]]
    assert formed(ledger, different(n=5), Cohorts(0)) == [[each] for each in range(5)]
    assert formed(ledger, different(n=6), Cohorts(8, cpus=2)) == [[0, 1, 2], [3, 4, 5]]  # no core is left idle
    assert formed(ledger, different(n=6), Cohorts(8, cpus=2), stop=True) == [[each] for each in range(6)]
    for alone in ({"hours": 1.0}, {"profile": True}):
        assert formed(ledger, different(n=3), Cohorts(8), **alone) == [[0], [1], [2]]
    assert formed(ledger, different(n=4), Cohorts(None, 2, 0)) == [[each] for each in range(4)]
    assert formed(ledger, different(n=4), Cohorts(None, 2, 2), gpus=1) == [[0, 1], [2, 3]]
    assert formed(ledger, different(n=4), Cohorts(None, 2, 2), gpus=0.5) == [[each] for each in range(4)]
    assert formed(ledger, different(n=4), Cohorts(None), gpus=1) == [[each] for each in range(4)]


def test_a_cohort_s_needs_and_its_measure(ledger: Ledger) -> None:
    work = [(job(ledger, each, memory_bytes=10.0), Resources(gpus=1), each) for each in different()]
    ((told, need),) = Cohorts(None, 1, 1).formed(work)
    assert told.memory_bytes == 30.0 and need == Resources(gpus=1) and told.if_faster == 32
    assert all(each.if_faster == 32 for each in told.each())
    ((forced, _),) = Cohorts(4, 1, 1).formed(work)
    assert forced.if_faster == 0


def test_seconds_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    one = clock.Clock(4)

    def after(seconds: float) -> None:
        now[0] += seconds

    after(8)
    assert one.wall_s() == 2 and one.train_s == 0
    one.train()
    after(4)
    one.rest()
    after(4)
    assert (one.wall_s(), one.train_s) == (4, 1)
    one.train()
    after(4)
    one.share(2)  # two have ended
    after(4)
    one.rest()
    assert (one.wall_s(), one.train_s) == (7, 4)


def test_what_the_attempts_say_of_cohorts() -> None:
    joined = [{"event": "cohort", "of": list("abc")}, {"event": "stop"}, {"event": "resume"}]
    last = {"event": "cohort", "of": ["a"], "device": "cuda"}
    assert cohort_of([]) is None and cohort_of([{"event": "start"}]) is None
    found = cohort_of([{"event": "start"}, *joined, last])
    assert found is not None and found["size"] == 3 and found["of"] == list("abc") and "dropout" not in found["note"]
    begun_anew = cohort_of([*joined, {"event": "start"}, last])
    assert begun_anew is not None and begun_anew["size"] == 1 and "dropout" in begun_anew["note"]


def test_a_job_goes_through_json(ledger: Ledger) -> None:
    told = replace(cohort(ledger, different()), device="cuda:1", threads=3)
    assert Job.of_json(json.loads(json.dumps(asdict(told)))) == told
    assert [(each.device, each.threads, each.beside) for each in told.each()] == [("cuda:1", 3, ())] * 3


def test_a_cohort_that_takes_its_worker_with_it(ledger: Ledger) -> None:
    """Each is tried by itself, and only then does it count who does so again."""
    told, deaths = cohort(ledger, different()), Deaths()
    again, event = deaths.after(told, "SIGKILL")
    assert event is None and [each.trial_id for each in again] == [each.trial_id for each in told.each()]
    assert all(each.beside == () for each in again) and events(ledger.trial(again[1].trial_id)) == ["lost"]
    for _ in range(2):
        assert deaths.after(again[0], "SIGKILL") == ([replace(again[0], beside=None)], None)
    left, event = deaths.after(again[0], "SIGKILL")
    assert left == [] and event is not None and event["status"] == "failed"


DIES = '''\
import os
from pathlib import Path

import torch

from ablate import Norm, register

MARK = Path(__file__).with_name("died")


@register("norm", "dies_once", paper="made up")
class DiesOnce(Norm):
    """Takes its process with it, the first time that it is trained beside others in float32."""

    def forward(self, x):
        if torch._C._functorch.is_batchedtensor(x) and x.dtype == torch.float32:
            try:
                MARK.touch(exist_ok=False)  # at once: another worker may be here too
            except FileExistsError:
                return x
            os._exit(9)
        return x
'''


@pytest.fixture
def dying(write: Write) -> Iterator[Path]:
    file = write(DIES, "dying.py")
    with own_registry():
        yield file


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_a_worker_dies_with_a_cohort(executor: str, ledger: Ledger, dying: Path, write: Write) -> None:
    grid = write("plugins: [dying.py]\n" + GRID.replace("{d_model: 16,", "{norm: dies_once, d_model: 16,"))
    code, said = run_here(
        *("run", grid, "--results", with_database(ledger).root, "--executor", executor, "--workers", 2),
        *("--cohorts", 3),
    )
    assert code == 0 and "12 finished" in said, said
    ids = ledger.trial_ids()
    ends = {each: [event["by"] for event in ledger.trial(each).history() if event["event"] == "lost"] for each in ids}
    lost = [each for each in ids if "exit code 9" in ends[each]]
    assert len(lost) == 3, ends
    assert all((ledger.trial(each).record() or {})["cohort"]["size"] == 1 for each in lost)
    assert trials.EVENT in events(ledger.trial(lost[0]))
