"""`ablate run` and the commands that read its results, from end to end."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY
from runs import (
    FAULTS,
    LONG,
    Command,
    curves,
    events,
    faulty,
    new_results,
    own_registry,
    plan_of,
    run_here,
    under_way,
    undisturbed,
    with_database,
)

from ablate.run.ledger import Ledger
from ablate.spec import to_tree

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, token_cache: Path) -> tuple[Path, Ledger, str]:
    """The small grid run once with two workers and a database of its own: grid, results, what was printed."""
    folder = tmp_path_factory.mktemp("tiny")
    grid = folder / "grid.yaml"
    grid.write_text(TINY)
    ledger = new_results(folder / "results", token_cache)
    code, said = run_here("run", grid, "--results", ledger.root, "--workers", 2)
    assert code == 0, said
    return grid, ledger, said


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, token_cache: Path) -> dict[str, bytes]:
    return curves(undisturbed(TINY, tmp_path_factory.mktemp("reference"), token_cache))


@pytest.fixture
def ledger(tmp_path: Path, token_cache: Path) -> Ledger:
    return with_database(new_results(tmp_path / "results", token_cache))


def records(ledger: Ledger) -> dict[str, tuple[int, bytes]]:
    """When each record was written, and what it says."""
    files = {each: ledger.trial(each).folder / "record.json" for each in ledger.trial_ids()}
    return {each: (file.stat().st_mtime_ns, file.read_bytes()) for each, file in files.items()}


def log_of(ledger: Ledger, study: str) -> list[dict[str, Any]]:
    lines = (ledger.study_folder(study) / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def status_of(ledger: Ledger, study: str) -> dict[str, Any]:
    code, said = run_here("status", study, "--results", ledger.root, "--json")
    assert code == 0
    return dict(json.loads(said))


# ---- a run


def test_a_run_trains_everything_and_reports(tiny: tuple[Path, Ledger, str], reference: dict[str, bytes]) -> None:
    _, ledger, said = tiny
    assert "tiny: 4 trials, 0 already done, 4 to train" in said
    assert "trained 4, reused 0: 4 finished" in said
    for trial_id in reference:
        assert f"finished {'rope' if 'rope' in str(to_spec(ledger, trial_id)) else 'plain'} (base)" in said
        loss = ledger.trial(trial_id).record()["metrics"]["loss"]  # type: ignore[index]
        assert f"loss {loss:.4f}  {trial_id}" in said
    assert "difference from plain" in said and "rope" in said.split("difference from plain")[1]
    assert curves(ledger) == reference
    report = ledger.study_folder("tiny") / "report"
    assert f"report: {report / 'report.html'}" in said
    assert "<html" in (report / "report.html").read_text() and "rope" in (report / "report.md").read_text()
    with open(report / "trials.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["trial_id"] for row in rows} == reference.keys()
    assert {row["status"] for row in rows} == {"finished"}


def to_spec(ledger: Ledger, trial_id: str) -> dict[str, Any]:
    return dict(json.loads(ledger.trial(trial_id).spec.read_text()))


def test_a_record_holds_what_is_needed_to_compare_trials(tiny: tuple[Path, Ledger, str]) -> None:
    _, ledger, _ = tiny
    for trial_id in ledger.trial_ids():
        folder = ledger.trial(trial_id)
        record = folder.record()
        assert record is not None
        assert record["id"] == trial_id and record["status"] == "finished" and record["error"] is None
        assert record["spec"] == to_spec(ledger, trial_id)
        for key in ("params_total", "flops_per_token", "train_flops", "tokens_per_s", "wall_s", "peak_memory_bytes"):
            assert record[key] > 0
        assert record["tokens"] == 6400 and record["steps"] == 25
        assert {"loss", "train_loss", "test_loss", "bits_per_byte", "perplexity"} <= record["metrics"].keys()
        assert {"torch", "python", "device", "cpu", "git_commit", "host", "threads"} <= record["environment"].keys()
        rows = folder.rows()
        assert all({"step", "tokens", "split", "loss"} <= row.keys() for row in rows)
        assert {row["split"] for row in rows} == {"batch", "train", "valid", "test"}
        assert len({(row["step"], row["split"]) for row in rows}) == len(rows)
        assert not folder.checkpoint.exists() and folder.weights.exists()


def test_the_same_command_again_trains_nothing(tiny: tuple[Path, Ledger, str]) -> None:
    grid, ledger, _ = tiny
    before, notes = records(ledger), {each: events(ledger.trial(each)) for each in ledger.trial_ids()}
    code, said = run_here("run", grid, "--results", ledger.root, "--workers", 2)
    assert code == 0 and "4 already done, 0 to train" in said and "trained 0, reused 4" in said
    assert records(ledger) == before
    assert {each: events(ledger.trial(each)) for each in ledger.trial_ids()} == notes
    assert log_of(ledger, "tiny")[-1]["trained"] == []
    assert sorted(log_of(ledger, "tiny")[-1]["reused"]) == sorted(before)


def test_status_says_where_a_study_stands(tiny: tuple[Path, Ledger, str]) -> None:
    _, ledger, _ = tiny
    tree = status_of(ledger, "tiny")
    trials, hours = tree.pop("trials"), tree.pop("hours")
    assert hours["taken"] > 0 and hours["to_go"] == 0 and hours["unknown"] == 0
    assert tree == {
        "study": "tiny",
        "total": 4,
        "finished": 4,
        "diverged": 0,
        "failed": 0,
        "stopped": 0,
        "running": 0,
        "unreadable": 0,
        "pending": 0,
        "not needed": 0,
        "enough": "",
        "paused": False,
        "environments": [],
    }
    for trial in trials:
        assert {"id", "variant", "size", "seed", "status", "loss"} <= trial.keys()
        assert trial["loss"] == ledger.trial(trial["id"]).record()["metrics"]["loss"]  # type: ignore[index]
    assert sorted((each["variant"], each["seed"]) for each in trials) == [
        ("plain", 0),
        ("plain", 1),
        ("rope", 0),
        ("rope", 1),
    ]
    code, said = run_here("status", "tiny", "--results", ledger.root)
    assert code == 0 and "tiny: 4 trials: 4 finished" in said and all(each["id"] in said for each in trials)
    code, said = run_here("status", "tinyy", "--results", ledger.root)
    assert code == 2 and "did you mean 'tiny'" in said


def test_why_tells_the_story_of_a_trial(tiny: tuple[Path, Ledger, str]) -> None:
    grid, ledger, _ = tiny
    run_here("run", grid, "--results", ledger.root)
    trial_id = ledger.trial_ids()[0]
    code, said = run_here("why", trial_id[:7], "--results", ledger.root, "--json")
    tree = json.loads(said)
    assert code == 0 and tree["id"] == trial_id and tree["status"] == "finished"
    verdicts = [(use["study"], use["verdict"]) for use in tree["uses"]]
    assert verdicts[:2] == [("tiny", "trained"), ("tiny", "reused")]
    assert [each["event"] for each in tree["attempts"]] == ["start", "end"]
    neighbour = to_spec(ledger, tree["nearest"])
    mine = to_spec(ledger, trial_id)
    assert tree["nearest_differs_in"] == {"seed": [neighbour["seed"], mine["seed"]]}
    code, said = run_here("why", trial_id, "--results", ledger.root)
    assert code == 0 and f"trial {trial_id}: finished" in said and "it was trained once" in said
    assert "trained by study tiny" in said and "reused by study tiny" in said
    code, said = run_here("why", "zzz", "--results", ledger.root)
    assert code == 2 and "no trial 'zzz'" in said and "Traceback" not in said


def test_a_grid_that_grew_trains_only_what_is_new(
    tiny: tuple[Path, Ledger, str], write: Write, ledger: Ledger, reference: dict[str, bytes]
) -> None:
    """New variants, new seeds, the order of variants and another study's name: what has a record is kept."""
    grid = write(TINY)
    assert run_here("run", grid, "--results", ledger.root, "--workers", 0)[0] == 0
    first = records(ledger)
    grown = write(
        TINY.replace("study: tiny", "study: grown").replace("  rope: rope\n", "  rope: rope\n  gated: swiglu\n")
    )
    code, said = run_here("run", grown, "--results", ledger.root, "--workers", 0)
    assert code == 0 and "grown: 6 trials, 4 already done, 2 to train" in said
    assert "trained 2, reused 4: 6 finished" in said
    second = records(ledger)
    new = second.keys() - first.keys()
    assert {each: second[each] for each in first} == first
    assert sorted(log_of(ledger, "grown")[0]["trained"]) == sorted(new) and len(new) == 2
    assert {to_spec(ledger, each)["arch"]["sublayers"]["f"]["name"] for each in new} != {"ffn"}
    assert {each["variant"] for each in status_of(ledger, "grown")["trials"]} == {"plain", "rope", "gated"}
    tree = json.loads(run_here("why", next(iter(first)), "--results", ledger.root, "--json")[1])
    assert [(use["study"], use["verdict"]) for use in tree["uses"]] == [("tiny", "trained"), ("grown", "reused")]
    code, said = run_here("run", grown, "--results", ledger.root, "--set", "seeds=3", "--workers", 0)
    assert "9 trials, 6 already done, 3 to train" in said
    assert {each: content for each, content in curves(ledger).items() if each in reference} == reference


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_numbers_do_not_depend_on_the_workers(
    workers: int, ledger: Ledger, write: Write, reference: dict[str, bytes]
) -> None:
    code, said = run_here("run", write(TINY), "--results", ledger.root, "--workers", workers)
    assert code == 0, said
    assert curves(ledger) == reference
    pids = {ledger.trial(each).history()[0]["pid"] for each in reference}
    assert len(pids) <= max(1, workers) and (pids == {os.getpid()}) == (workers == 0)


def test_settings_from_the_command_line(ledger: Ledger, write: Write, reference: dict[str, bytes]) -> None:
    grid = write(TINY)
    change = ("--set", "train.lr=1e-3", "--set", "seeds=[7]", "--set", "variants={plain: {}}")
    code, said = run_here("run", grid, "--results", ledger.root, "--workers", 0, *change)
    assert code == 0, said
    (trial_id,) = ledger.trial_ids()
    asked = to_spec(ledger, trial_id)
    assert trial_id not in reference and asked["train"]["lr"] == 1e-3 and asked["seed"] == 7
    for bad, word in (
        ("train.lrr=1", "lrr"),
        ("train.lr=fast", "lr"),
        ("nonsense", "path=value"),
        ("train.lr=-1", "lr"),
    ):
        code, said = run_here("run", grid, "--results", ledger.root, "--set", bad)
        assert code == 2 and word in said and "Traceback" not in said, (bad, said)
    assert ledger.trial_ids() == [trial_id]


def test_a_trial_is_what_the_plan_says(tiny: tuple[Path, Ledger, str], tmp_path: Path, token_cache: Path) -> None:
    """The ids and the specifications on disk are those of the grid, read anew."""
    _, ledger, _ = tiny
    planned = {each.id: to_tree(each.spec) for each in plan_of(TINY, tmp_path, token_cache).trials}
    assert {each: to_spec(ledger, each) for each in ledger.trial_ids()} == json.loads(json.dumps(planned))


# ---- trials that go wrong


def test_a_diverged_trial_is_a_result(ledger: Ledger, write: Write) -> None:
    """Counted, kept, reported on, and no error."""
    grid = write(TINY.replace("  rope: rope\n", "  hot: {train.lr: 1e6}\n"))
    code, said = run_here("run", grid, "--results", ledger.root, "--workers", 0)
    assert code == 0 and "trained 4, reused 0: 2 finished, 2 diverged" in said
    tree = status_of(ledger, "tiny")
    assert (tree["finished"], tree["diverged"], tree["failed"]) == (2, 2, 0)
    assert {each["loss"] is None for each in tree["trials"] if each["variant"] == "hot"} == {True}
    code, said = run_here("run", grid, "--results", ledger.root, "--workers", 0)
    assert code == 0 and "trained 0, reused 4" in said
    assert "diverged" in (ledger.study_folder("tiny") / "report" / "report.md").read_text()


@pytest.fixture
def clean_registry() -> Iterator[None]:
    with own_registry():
        yield


@pytest.mark.usefixtures("clean_registry")
def test_trials_that_raise_or_kill_their_worker_do_not_stop_the_others(
    ledger: Ledger, write: Write, reference: dict[str, bytes]
) -> None:
    write(FAULTS, "faults.py")
    grid = write(faulty(TINY, "raises", "reads", "exits", "dies"))
    command = ("run", grid, "--results", ledger.root, "--workers", 2, "--set", "seeds=[1]")
    code, said = run_here(*command)
    assert code == 1, said
    assert "trained 5, reused 0: 1 finished, 4 failed" in said and "--retry-failed" in said
    trials = {each["variant"]: each for each in status_of(ledger, "tiny")["trials"]}
    assert {name: each["status"] for name, each in trials.items()} == {
        "plain": "finished",
        "raises": "failed",
        "reads": "failed",
        "exits": "failed",
        "dies": "failed",
    }
    plain = trials["plain"]["id"]
    assert ledger.trial(plain).metrics.read_bytes() == reference[plain]
    assert trials["raises"]["error"] == "RuntimeError: the norm [/is upset]"
    assert events(ledger.trial(trials["raises"]["id"])) == ["start", "end"]  # tried once: it would raise again
    assert "No such file or directory: 'no such table'" in trials["reads"]["error"]
    for name, how in (("exits", "exit code 7"), ("dies", "SIGKILL")):
        assert trials[name]["error"] == f"lost: its worker died 3 times, last by {how}"
        assert events(ledger.trial(trials[name]["id"])).count("start") == 3
    why = run_here("why", trials["raises"]["id"], "--results", ledger.root)[1]
    assert "error: RuntimeError: the norm [/is upset]" in why and 'raise RuntimeError("the norm [/is upset]")' in why
    assert "Traceback" in why and "--retry-failed" in why
    assert "its worker died 3 times" in run_here("why", trials["dies"]["id"], "--results", ledger.root)[1]

    before = records(ledger)
    code, said = run_here(*command)
    assert code == 1 and "trained 0, reused 5" in said
    assert records(ledger) == before
    code, said = run_here(*command, "--retry-failed")
    assert code == 1 and "trained 4, reused 1: 1 finished, 4 failed" in said
    assert events(ledger.trial(trials["raises"]["id"])) == ["start", "end"] * 2
    assert records(ledger)[plain] == before[plain]


@pytest.mark.usefixtures("clean_registry")
def test_a_mended_plugin_is_another_trial(ledger: Ledger, write: Write) -> None:
    """The code of a plugin is part of what was asked; the failure with the old code stays on record."""
    write(FAULTS, "faults.py")
    grid = write(faulty(TINY, "raises"))
    command = ("run", grid, "--results", ledger.root, "--workers", 1, "--set", "seeds=[1]")
    assert run_here(*command)[0] == 1
    (failed,) = [each for each in ledger.trial_ids() if ledger.trial(each).status() == "failed"]
    write(FAULTS.replace('raise RuntimeError("the norm [/is upset]")', "pass"), "faults.py")
    code, said = run_here(*command)
    assert code == 0 and "trained 1, reused 1: 2 finished" in said
    assert len(ledger.trial_ids()) == 3 and ledger.trial(failed).status() == "failed"


# ---- stopping


@pytest.mark.slow
def test_an_interrupted_study_goes_on_where_it_stopped(
    ledger: Ledger, write: Write, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, token_cache: Path
) -> None:
    """Interrupted twice: by SIGTERM in its own process, by Ctrl-C (to the whole process group) with workers."""
    expected = curves(undisturbed(LONG, tmp_path_factory.mktemp("long"), token_cache))
    grid = write(LONG)

    def interrupt(number: int, workers: int) -> str:
        steps = {each.id: saved_at(each.history()) for each in under_way(ledger)}
        with Command(tmp_path, "run", grid, "--results", ledger.root, "--workers", workers) as command:
            command.wait_for(lambda: begun_since(ledger, command), "a trial that has begun")
            command.wait_for(lambda: status_of(ledger, "long")["running"], "a status that says so")
            os.killpg(command.process.pid, number)
            assert command.wait() == 130, command.output()
            command.wait_until_alone()
            said = command.output()
        assert "the same command goes on from here" in said and "Traceback" not in said
        stopped = under_way(ledger)
        assert stopped  # nothing of what was done is lost: without the stop there would be no checkpoint yet
        for folder in stopped:
            assert folder.status() == "pending" and saved_at(folder.history()) >= steps.get(folder.id, 0)
        return said

    first = interrupt(signal.SIGTERM, 0)
    assert "interrupted with 4 trials to go" in first
    assert status_of(ledger, "long")["pending"] == 4
    interrupt(signal.SIGINT, 2)
    code, said = run_here("run", grid, "--results", ledger.root, "--workers", 2)
    assert code == 0 and "4 finished" in said
    assert curves(ledger) == expected
    assert any("resume" in events(ledger.trial(each)) for each in expected)


@pytest.mark.slow
def test_an_interrupt_while_the_workers_start(ledger: Ledger, write: Write, tmp_path: Path) -> None:
    """They import for a second or more; Ctrl-C reaches them too."""
    with Command(tmp_path, "run", write(TINY), "--results", ledger.root, "--workers", 2) as command:
        command.wait_for(
            lambda: [name for name in command.alive().values() if "forkserver" in name], "a server of workers"
        )
        command.wait_for((ledger.study_folder("tiny") / "study.json").exists, "a plan")
        os.killpg(command.process.pid, signal.SIGINT)
        assert command.wait() == 130, command.output()
        command.wait_until_alone()
        assert "the same command goes on" in command.output() and "Traceback" not in command.output()
    assert status_of(ledger, "tiny")["pending"] == 4


def test_a_long_path_of_temporary_files(
    ledger: Ledger, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As jobs of a cluster have: longer than what the path of a socket may be."""
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    with Command(tmp_path, "run", write(TINY), "--results", ledger.root, "--workers", 2) as command:
        assert command.wait() == 0, command.output()
    assert "trained 4, reused 0: 4 finished" in command.output()


def saved_at(history: list[dict[str, Any]]) -> int:
    return max((each["step"] for each in history if each["event"] == "stop"), default=0)


def begun_since(ledger: Ledger, command: Command) -> list[str]:
    """Trials that one of this command's processes has begun or resumed, and has trained for some steps."""
    ours = command.alive()
    return [
        each
        for each in ledger.trial_ids()
        for note in ledger.trial(each).history()[-1:]
        if note["pid"] in ours and len(ledger.trial(each).rows()) > 5
    ]


# ---- places that cannot be used


def test_results_that_cannot_be_written_are_refused(write: Write, tmp_path: Path) -> None:
    grid = write(TINY)
    file = write("", "results")
    places = [file, file / "below"]
    if Path("/proc").is_dir():
        places += [Path("/proc"), Path("/proc/below")]  # nobody may make a folder there, not even root
    for place in places:
        code, said = run_here("run", grid, "--results", place, "--workers", 0)
        assert code == 2 and str(place) in said and "Traceback" not in said, said
    assert file.read_text() == ""


def test_the_dashboard_needs_a_database(tmp_path: Path) -> None:
    code, said = run_here("ui", "--results", tmp_path)
    assert code == 2 and "mlflow.db does not exist" in said and "run a study first" in said


def test_a_trial_that_asks_for_more_than_there_is_is_refused(ledger: Ledger, write: Write) -> None:
    for ask, words in (
        ("resources.cpus=64", "a trial asks for 64 CPUs"),
        ("resources.gpus=9", "a trial asks for 9 GPUs"),
        (
            "resources.custom.tpu=1",
            "resources.custom (tpu) are of a Ray cluster's nodes: use --executor ray --address",
        ),
    ):
        code, said = run_here("run", write(TINY), "--results", ledger.root, "--workers", 2, "--set", ask)
        assert code == 2 and words in said
    code, said = run_here("run", write(TINY), "--results", ledger.root, "--address", "auto")
    assert code == 2 and "--executor ray" in said
    assert all(ledger.trial(each).record() is None for each in ledger.trial_ids())


@pytest.mark.slow
def test_the_quickstart(tmp_path: Path, token_cache: Path) -> None:
    """The grid that the README begins with, with short budgets: every part of it, and its report."""
    ledger = with_database(new_results(tmp_path / "results", token_cache))
    grid = ROOT / "experiments" / "quickstart.yaml"
    short = ("--set", "budgets.tokens=[4096, 8192]", "--set", "train.final_eval_tokens=1024")
    short += ("--set", "train.eval_tokens=1024", "--set", "train.eval_points=2")
    code, said = run_here("run", grid, "--results", ledger.root, "--workers", 2, *short)
    assert code == 0, said
    assert "quickstart: 72 trials" in said and "trained 72, reused 0: 72 finished" in said
    for variant in ("rope", "swiglu", "llama_style"):
        assert variant in said.split("difference from gpt")[1]
    tree = json.loads((ledger.study_folder("quickstart") / "study.json").read_text())
    assert len(tree["rows"]) == 24 and max(abs(row["residuals"]["params"]) for row in tree["rows"]) <= 0.01
    sizes = {each["size"] for each in tree["trials"]}
    assert sizes == {"d32", "d48", "d64"}
