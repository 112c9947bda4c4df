"""What commands print on terminals of any width, on dumb ones and into files."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import TINY
from rich.console import Console
from runs import plan_of

from ablate import terminal
from ablate.catalogue import catalogue_json, print_catalogue
from ablate.commands_keeping import _garbage_lines
from ablate.planview import print_plan
from ablate.run import status
from ablate.run.ledger import Ledger
from ablate.run.probeview import print_probe
from ablate.run.progress import ProgressView
from ablate.run.status import print_status
from ablate.run.why import print_explanation, print_study

LONG = "a_variant_with_a_really_long_name_for_narrow_terminals"
GRID = TINY.replace("  rope: rope\n", f"  {LONG}: rope\n")
WIDTHS = (45, 80, 200)
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, token_cache: Path) -> Any:
    return plan_of(GRID, tmp_path_factory.mktemp("plan"), token_cache)


def on_a_terminal(width: int, kind: str = "xterm") -> Console:
    return Console(
        file=io.StringIO(), width=width, height=40, force_terminal=True, highlight=False, _environ={"TERM": kind}
    )


def text_of(console: Console) -> str:
    stream: Any = console.file
    return stream.getvalue()


@pytest.mark.parametrize("width", WIDTHS)
def test_running_trials_and_their_bar_fit(width: int, plan: Any) -> None:
    trials = {trial.id: trial for trial in plan.trials}
    console = on_a_terminal(width)
    view = ProgressView(trials, console)
    for trial in trials.values():
        view.event({"id": trial.id, "step": 5, "steps": 25, "tokens": 1280, "loss": 4.5678})
    console.print(view._render())
    lines = CODES.sub("", text_of(console)).splitlines()
    assert max(map(len, lines)) <= width
    running = [line for line in lines if "seed" in line]
    assert len(running) == 4 and all("loss 4.568" in line and "20%" in line for line in running)
    assert all("plain" in line or LONG[:4] in line for line in running)
    words = " ".join(" ".join(lines[4:]).split())
    assert "0 done, 4 running, 0 failed, 0 to go" in words and "tokens/s" in words and "20%" in words


@pytest.mark.parametrize("width", WIDTHS)
def test_what_ended_is_said_whole(width: int, plan: Any) -> None:
    trial = plan.trials[-1]
    console = on_a_terminal(width)
    view = ProgressView({trial.id: trial}, console)
    view.event({"id": trial.id, "status": "finished", "loss": 2.5})
    said = CODES.sub("", text_of(console))
    assert " ".join(said.split()) == f"[1/1] finished {LONG} (base) seed 1 loss 2.5000 {trial.id}"
    assert all(len(line) <= max(width, len(LONG) + 4) for line in said.splitlines())


def test_a_dumb_terminal_and_a_file_get_lines_alone(plan: Any) -> None:
    trial = plan.trials[0]
    for console in (on_a_terminal(80, "dumb"), Console(file=io.StringIO())):
        with ProgressView({trial.id: trial}, console) as view:
            view.event({"id": trial.id, "step": 1, "steps": 25, "tokens": 256, "loss": 5.0})
            view.event({"id": trial.id, "status": "finished", "loss": 2.5})
        (line,) = CODES.sub("", text_of(console)).splitlines()
        assert line.startswith("[1/1] finished") and "[?25" not in text_of(console)


@pytest.mark.parametrize("width", [*WIDTHS, None])
def test_a_plan_has_all_its_numbers(
    width: int | None, plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(file=io.StringIO()) if width is None else on_a_terminal(width)
    monkeypatch.setattr("ablate.planview.Console", lambda **_: console)
    print_plan(plan, Ledger(tmp_path))
    said = CODES.sub("", text_of(console))
    assert "…" not in said
    for row in plan.rows:
        for number in (row.cost.params_total, row.tokens, round(row.cost.flops_forward)):
            assert f"{number:,}" in said
        assert row.variant in said
    if width is not None:
        assert all(len(line.rstrip()) <= max(width, len(LONG) + 6) for line in said.splitlines())


PROBED = {
    "variant": LONG, "cell": "d16", "step_s": 0.0123, "step_quartiles_s": [0.0121, 0.0129], "evaluation_s": 0.0045,
    "setup_s": 0.25, "memory_bytes": 1.234e9, "rows_at_once": 8, "largest_rows": 64, "trial_s": 61.0, "to_go": 3,
    "micro_batches": 4,
}  # fmt: skip
PROBE = {
    "rows": [PROBED, {"variant": "rope", "cell": "", "failed": "no room"}],
    "trials": 4, "unknown": 1, "bound": "at least", "device_hours": 0.05, "hours": 0.025, "slots": 2,
}  # fmt: skip


@pytest.mark.parametrize("width", [*WIDTHS, None])
def test_a_probe_has_all_its_numbers(width: int | None) -> None:
    console = Console(file=io.StringIO()) if width is None else on_a_terminal(width)
    print_probe(PROBE, console)
    said = CODES.sub("", text_of(console))
    words = " ".join(said.split())
    for each in ("12.3 ms", "12.1 to 12.9 ms", "4.5 ms", "0.25 s", "1,234 MB", "8 of 64", LONG, "rope: no room"):
        assert each in words
    assert "pieces, for memory" in words and "1 trial of rows that failed" in words and "…" not in said
    if width is not None:
        assert all(len(line.rstrip()) <= max(width, len(LONG) + 6) for line in said.splitlines())


@pytest.mark.parametrize("width", [40, 100])
def test_why_and_gc_fit_a_terminal(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "columns", lambda: width)
    trial = {"id": "c5fde4216b85", "verdict": "miss", "variant": "rope", "seed": 0, "nearest": "60df52ca77f7"}
    trial |= {"size": "d16", "axes": "", "budget": "", "stage": "", "nearest_in_words": ["train.lr is 0.1, not 0.2"]}
    print_study({"study": "tiny", "counts": {"hit": 0, "miss": 1}, "trials": [trial]})
    tree = {"id": "c5fde4216b85", "status": "finished", "reason": "it was trained because " + "word " * 20}
    print_explanation(tree | {"error": None, "traceback": None, "attempts": [], "uses": [], "nearest": None})
    item = SimpleNamespace(kind="cache", path="tokens/0123456789", bytes=2e6, why="no record needs " + "it " * 20)
    stays = [{"path": "trials/x", "why": "it is being trained " + "now " * 10}]
    found = SimpleNamespace(items=[item], stays=stays, by_kind=lambda: {"cache": {"count": 1, "bytes": 2e6}})
    terminal.show(_garbage_lines(found, False))  # type: ignore[arg-type]
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    words = " ".join(" ".join(lines).split())
    assert "nearest 60df52ca77f7: train.lr is 0.1, not 0.2" in words and "word " * 19 in words
    assert "tokens/0123456789" in words and "it is being trained now" in words


TABLE = [
    "difference from plain, paired by seed, the mean over 2 cells, with 95 % interval:",
    f"  rope{' ' * (len(LONG) - 4)}  -0.0154 [-0.1809, +0.1502]       n=2   ≈ baseline",
    f"  {LONG}  +0.0092 [-0.1138, +0.1322]       n=2   ≈ baseline",
    "report: results/studies/quickstart/report/report.html",
]


def test_verdicts_stay_below_each_other() -> None:
    assert list(terminal.fitted(TABLE, None)) == TABLE == list(terminal.fitted(TABLE, 120))
    narrow = list(terminal.fitted(TABLE, 80))
    assert narrow[2:6] == [
        "  rope",
        "    -0.0154 [-0.1809, +0.1502]  n=2  ≈ baseline",
        f"  {LONG}",
        "    +0.0092 [-0.1138, +0.1322]  n=2  ≈ baseline",
    ]
    assert max(map(len, narrow)) <= 80
    narrower = list(terminal.fitted(TABLE, 45))
    assert [line.strip() for line in narrower if len(line) > 45] == [
        LONG,
        TABLE[-1].split()[1],
    ]  # whole, to be copied


def test_a_status_line_goes_on_below_itself(capsys: pytest.CaptureFixture[str]) -> None:
    trial = {"id": "c5fde4216b85", "status": "finished", "variant": "gpt", "seed": 0, "loss": 3.3038, "error": None}
    trial |= {"size": "d16", "axes": "", "budget": "", "stage": "", "tuned": {}}
    hours = {
        "taken": 0.0,
        "compared": {"trials": 0},
        "to_go": 0.0,
        "unknown": 0,
        "rates_taken": {},
        "rates_to_go": {},
    }
    tree = {"study": "tiny", "total": 1, "enough": "", "paused": False, "environments": [], "hours": hours}
    tree |= {**dict.fromkeys(status.STATES, 0), "finished": 1, "trials": [trial]}
    print_status(tree, 45)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 45 and lines[-1].strip() == "loss 3.3038"
    print_status(tree)
    assert len(capsys.readouterr().out.splitlines()) == len(lines) - 1


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_catalogue_fits(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    print_catalogue(catalogue_json("mixer"), width)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= min(width, 100)


def test_an_encoding_without_boxes_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", SimpleNamespace(encoding="ascii"))
    assert not terminal.draws_boxes()
    monkeypatch.setattr("sys.stdout", SimpleNamespace(encoding="utf-8"))
    assert terminal.draws_boxes()
