"""`--budget` and `priority`: what of a plan is run, in which order, and what is left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from runs import new_results, plan_of, run_here, with_database

from ablate.errors import UserError
from ablate.rows import Plan, PlannedTrial
from ablate.run import budget as budgets
from ablate.run.budget import Budget, Budgeted, by_priority, parse_budget
from ablate.run.environment import cpu_model
from ablate.run.files import write_json
from ablate.run.ledger import Ledger
from ablate.run.planner import Ask, GridPlanner
from ablate.spec import to_tree

Write = Callable[..., Path]
THREE = TINY.replace("  rope: rope\n", "  rope: rope\n  alibi: {use: alibi, priority: 2}\n") + (
    "match: none\nsizes: {a: {arch.depth: 1}, b: {arch.depth: 2}}\n"
)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, token_cache: Path) -> Plan:
    return plan_of(THREE, tmp_path_factory.mktemp("three"), token_cache)


def asked(
    plan: Plan, budget: str, ledger: Ledger, done: dict[str, str] | None = None
) -> tuple[list[PlannedTrial], str]:
    """What is run within a budget, and what is said of the rest."""
    planner = Budgeted(GridPlanner(plan), parse_budget(budget), ledger, lambda _: None)
    return [ask.trial for ask in planner.next(done or {})], planner.told


def measured(ledger: Ledger, trial: PlannedTrial, rate: float, device: str = "cpu", **others: Any) -> None:
    """A finished record that reached so many FLOPs a second."""
    name = {"gpu": "H"} if device == "cuda" else {"cpu": cpu_model()}
    folder = ledger.trial(trial.id)
    write_json(
        folder.folder / "record.json",
        {
            "id": trial.id,
            "status": "finished",
            "metrics": {"loss": 1.0},
            "spec": to_tree(trial.spec),
            "train_flops": rate * 10,
            "wall_s": 10.0,
            "environment": {"device": device, **name},
            **others,
        },
    )


def key(trial: PlannedTrial) -> tuple[str, str, int]:
    return trial.row.variant, trial.row.size, trial.spec.seed


def test_the_plan_is_trimmed_by_priority_and_never_a_pair_is_split(plan: Plan, ledger: Ledger) -> None:
    """At any budget: it is kept, each variant has its baseline, no variant runs while one of a higher priority that
    would have fitted does not, and cells are completed one after the other."""
    total = plan.total_flops
    for share in (0.05, 0.12, 0.2, 0.34, 0.5, 0.67, 0.8, 0.99, 1.0):
        kept, told = asked(plan, f"{share * total:.17g} flops", ledger)
        names = {key(trial) for trial in kept}
        assert sum(trial.row.flops for trial in kept) <= share * total * (1 + 1e-12)
        assert all(("plain", size, seed) in names for _, size, seed in names)
        if any(name == "rope" for name, *_ in names):
            assert {("alibi", "a", 0), ("alibi", "a", 1)} <= names
        left = [trial for trial in plan.trials if key(trial) not in names]
        assert bool(told) == bool(left)
        if left:
            assert f"left out (budget {share * total:g} flops, of which 0 are spent): {len(left)} trial" in told
    first, _ = asked(plan, f"{0.2 * total} flops", ledger)
    assert {key(trial) for trial in first} >= {("plain", "a", 0), ("alibi", "a", 0)}
    assert not any(name == "rope" for name, *_ in map(key, first))


def test_a_cheap_variant_is_not_run_without_its_baseline(tmp_path: Path, token_cache: Path, ledger: Ledger) -> None:
    """What would pay for it alone, and not for both, pays for nothing; its baseline's record pays its part."""
    text = TINY.replace("rope: rope", "rope: {arch.d_ff: 8, priority: 5}").replace("seeds: 2", "seeds: 1")
    plain, cheap = (plan := plan_of(text + "match: none\n", tmp_path, token_cache)).trials
    assert cheap.row.flops * 1.01 < plain.row.flops
    amount = f"{cheap.row.flops * 1.01} flops"
    assert asked(plan, amount, ledger)[0] == []
    assert asked(plan, amount, ledger, {plain.id: "finished"})[0] == [cheap]
    assert asked(plan, f"{(plain.row.flops + cheap.row.flops) * 1.01} flops", ledger)[0] == [plain, cheap]


def test_priorities_order_what_is_run(plan: Plan) -> None:
    """The baseline goes with the first, as all are compared with it; among equals the planner's order stands."""
    order = [ask.trial for ask in by_priority(plan, GridPlanner(plan).next({}))]
    assert [trial.row.variant for trial in order[8:]] == ["rope"] * 4
    assert [trial.row.flops for trial in order[8:]] == sorted((t.row.flops for t in order[8:]), reverse=True)


def test_hours_are_flops_over_the_rate_of_trials_alike(plan: Plan, ledger: Ledger) -> None:
    """Those of the same variant and size first, then any, and on the same kind of device."""
    rope = next(trial for trial in plan.trials if key(trial) == ("rope", "a", 0))
    plain = next(trial for trial in plan.trials if key(trial) == ("plain", "b", 0))
    planner = Budgeted(GridPlanner(plan), Budget(1.0, "cpu-h"), ledger, lambda _: None)
    assert planner.cost(rope) is None
    measured(ledger, plain, rate=1e6)
    planner.speeds.refresh()
    assert planner.cost(rope) == pytest.approx(rope.row.flops / 1e6 / 3600)
    other = next(trial for trial in plan.trials if key(trial) == ("rope", "a", 1))
    measured(ledger, other, rate=5e6)
    planner.speeds.refresh()
    assert planner.cost(rope) == pytest.approx(rope.row.flops / 5e6 / 3600)
    assert planner.cost(plain) == pytest.approx(plain.row.flops / 1e6 / 3600)
    gpu = next(trial for trial in plan.trials if key(trial) == ("alibi", "b", 1))
    measured(ledger, gpu, rate=9e9, device="cuda")
    planner.speeds.refresh()
    assert planner.cost(gpu) == pytest.approx(gpu.row.flops / 3e6 / 3600)


def test_what_this_study_has_spent_counts(plan: Plan, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its attempts, those that came to nothing among them; not what another study took."""
    first, second, *_ = plan.trials
    for trial, study in ((first, "tiny"), (second, "another")):
        folder = ledger.trial(trial.id)
        folder.folder.mkdir(parents=True)
        for now, event in ((0.0, "start"), (1800.0, "lost"), (2000.0, "start"), (3800.0, "end")):
            monkeypatch.setattr("ablate.run.ledger.time.time", lambda now=now: now)
            folder.note(event, study=study)
    planner = Budgeted(GridPlanner(plan), Budget(2.0, "cpu-h"), ledger, lambda _: None)
    assert planner.spent() == pytest.approx(1.0)
    for trial in plan.trials:
        measured(ledger, trial, rate=trial.row.flops / 3600)
    kept, told = asked(plan, "2 cpu-h", ledger, {first.id: "finished"})
    assert len(kept) == 1 and "of which 1 are spent" in told
    assert asked(plan, "1 cpu-h", ledger, {first.id: "finished"})[0] == []


def test_where_nothing_was_measured_a_few_are_trained_first(plan: Plan, ledger: Ledger) -> None:
    said: list[str] = []
    planner = Budgeted(GridPlanner(plan), Budget(3.0, "cpu-h"), ledger, said.append)
    few = [ask.trial for ask in planner.next({})]
    assert {key(trial) for trial in few} == {("plain", "a", 0), ("plain", "a", 1), ("alibi", "a", 0)}
    words = f"no such trial has been measured: {budgets.FIRST} trials first, then the rest is trimmed"
    assert said == [f"budget 3 cpu-h: {words}"]
    for trial in few:
        measured(ledger, trial, rate=max(each.row.flops for each in plan.trials) / 3600)
    rest = planner.next({trial.id: "finished" for trial in few})
    assert rest and not {trial.id for trial in few} & {ask.trial.id for ask in rest}
    assert sum(planner.cost(ask.trial) or 9e9 for ask in rest) <= 3.0
    assert len(planner.left_out) == len(plan.trials) - len(few) - len(rest)


def test_a_stage_waits_for_what_it_begins_from(tmp_path: Path, token_cache: Path, ledger: Ledger) -> None:
    """What of the second stage does not fit is left out, and said, before the first one begins; it stays out."""
    text = TINY.replace("seeds: 2\n", "seeds: 1\n") + (
        "match: none\nstages: {first: {}, second: {from: first, train.tokens: 12800, seeds: 2}}\n"
    )
    plan = plan_of(text, tmp_path, token_cache)
    parents = [trial for trial in plan.trials if trial.spec.parent is None]
    children = [trial for trial in plan.trials if trial.spec.parent is not None]
    amount = sum(trial.row.flops for trial in (*parents, *children[:2])) * 1.0001
    planner = Budgeted(GridPlanner(plan), Budget(amount, "flops"), ledger, lambda _: None)
    begun = [ask.trial for ask in planner.next({})]
    assert {trial.id for trial in begun} == {trial.id for trial in parents}
    out = set(planner.left_out)
    assert out and out < {trial.id for trial in children}
    following = planner.next({trial.id: "finished" for trial in parents})
    chosen = {ask.trial.id for ask in following}
    assert chosen == {trial.id for trial in children} - out and set(planner.left_out) == out


@pytest.mark.slow
def test_a_command_with_a_budget(tmp_path: Path, token_cache: Path, write: Write, plan: Plan) -> None:
    """Exit code 3, what was left out is not needed, and the same command has nothing more to do; without the budget
    it goes on."""
    ledger = with_database(new_results(tmp_path / "results", token_cache))
    command = ("run", write(THREE), "--results", ledger.root, "--workers", 0)
    within = (*command, "--budget", f"{plan.total_flops * 0.3:g} flops")
    code, said = run_here(*within)
    done = [each for each in ledger.trial_ids() if ledger.trial(each).record()]
    assert code == 3 and 0 < len(done) < len(plan.trials) and f"trained {len(done)}, reused 0" in said
    assert said.count("left out (budget") == 2  # beforehand and at the end
    study = json.loads((ledger.study_folder("tiny") / "study.json").read_text())
    assert study["enough"].startswith("left out (budget")
    _, status = run_here("status", "tiny", "--results", ledger.root)
    assert f"{len(plan.trials) - len(done)} not needed" in status
    code, said = run_here(*within)
    assert code == 3 and f"trained 0, reused {len(done)}" in said
    code, said = run_here(*command)
    assert code == 0 and f"trained {len(plan.trials) - len(done)}, reused {len(done)}" in said


def test_what_is_no_budget_and_no_priority(plan: Plan, ledger: Ledger, write: Write) -> None:
    for text in ("40", "gpu-h", "40 hours", "-1 gpu-h", "0 flops", "1e999 flops", "1.2.3 cpu-h"):
        with pytest.raises(UserError, match="write an amount above 0 of gpu-h, cpu-h, flops"):
            parse_budget(text)
    assert parse_budget("1e18 flops") == Budget(1e18, "flops") and parse_budget("40gpu-h") == Budget(40, "gpu-h")
    with pytest.raises(UserError, match="no trial of this study uses a GPU"):
        Budgeted(GridPlanner(plan), Budget(1.0, "gpu-h"), ledger, lambda _: None)
    for value in ("high", "true", ".nan", "[1]"):
        grid = write(TINY.replace("  rope: rope\n", f"  rope:\n    use: rope\n    priority: {value}\n"))
        code, said = run_here("plan", grid)
        assert code == 2 and f"{grid}:10: variants.rope.priority: " in said and "must be a number" in said


def test_a_priority_is_no_part_of_the_identity(plan: Plan, tmp_path: Path, token_cache: Path) -> None:
    plainly = plan_of(THREE.replace(", priority: 2", ""), tmp_path, token_cache)
    assert {trial.id for trial in plainly.trials} == {trial.id for trial in plan.trials}
    assert [ask.trial.id for ask in by_priority(plainly, [Ask(each) for each in plainly.trials])] == [
        each.id for each in plainly.trials
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        "seeds: 1\ntune: {train.lr: {low: 1e-3, high: 1e-2, points: 3}, seeds: 1}\n",
        "seeds: 4\nrace: {first: 2, most: 4}\n",
        "seeds: 2\nrungs: {keep: 0.5, at: [0.25]}\n",
        "seeds: 2\nsizes: {arch.d_model: [4, 8, 16, 24]}\nmatch: none\npromote: {sure: 0}\n",
        "seeds: 1\nsizes: {arch.d_model: [8, 16, 32]}\nbudgets: {tokens: [1_600, 3_200, 6_400]}\nmatch: none\n"
        "predict: {flops: 1e11}\n",
    ],
)
def test_every_planner_stays_within_a_budget(more: str, ledger: Ledger, write: Write) -> None:
    """And without one the same study comes to its end, with what was trained before."""
    text = TINY.replace("seeds: 2\n", more).replace("eval_points: 3", "eval_points: 6")
    half = plan_of(text, ledger.root / "plan", ledger.cache).total_flops / 2
    command = ("run", write(text), "--results", with_database(ledger).root, "--workers", 0)
    code, said = run_here(*command, "--budget", f"{half:.9g} flops")
    assert code == 3 and "left out (budget" in said, said
    records = [record for each in ledger.trial_ids() if (record := ledger.trial(each).record()) is not None]
    assert records and sum(each["train_flops"] for each in records) <= half
    code, said = run_here(*command)
    assert code == 0 and f"reused {len(records)}" in said, said
