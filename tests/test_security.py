"""What comes from elsewhere is data: it neither runs nor leaves the results folder, and nothing private gets in."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

import fabricate
import pytest
from runs import SMALL, run_here, spec, train, with_database

from ablate import commands
from ablate.errors import UserError
from ablate.names import LONGEST, checked_name
from ablate.run.files import own_folder
from ablate.run.ledger import Ledger

OUTSIDE = ("..", "../x", "a/b", "/etc", "a\0b", ".hidden", "", "nul", "COM1.txt", "a\nb", "a b", "ends.", "x" * 101)


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_do_not_leave_the_results(name: str, tmp_path: Path, write: Callable[..., Path]) -> None:
    """A grid's with its file and line; those of the command line and of the ledger's own files too."""
    with pytest.raises(UserError, match=r"^study .* (must be|cannot be|has)"):
        checked_name("study", name)
    ledger = Ledger(tmp_path / "results")
    for look in (ledger.trial, ledger.study_folder, ledger.study):
        with pytest.raises(UserError):
            look(name)
    grid = write(f"# why\nstudy: {json.dumps(name)}\nvariants: {{a: {{}}, b: rope}}\n")
    code, said = run_here("run", grid, "--results", tmp_path / "results")
    assert code == 2 and "grid.yaml:2" in said and "Traceback" not in said
    if "\0" not in name:  # which no command line can hold
        for command in ("status", "report", "why"):
            code, said = run_here(command, name, "--results", tmp_path / "results")
            assert code == 2 and "Traceback" not in said
    assert {each.name for each in tmp_path.iterdir()} <= {"grid.yaml", "results"}


def test_names_that_are_fine() -> None:
    for name in ("a", "9", "narang2021.glu-x_y", "x" * LONGEST, "console", "com10"):
        assert checked_name("study", name) == name


def test_a_study_with_trials_outside_is_refused(tmp_path: Path) -> None:
    fabricate.study(tmp_path, lambda label: 2.0)
    file = tmp_path / "studies" / "made" / "study.json"
    text = file.read_text()
    first = json.loads(text)["trials"][0]["id"]
    for outside in ("../../secret", "..", "/etc", "a/b"):
        file.write_text(text.replace(first, outside))
        for command in ("status", "report"):
            code, said = run_here(command, "made", "--results", tmp_path)
            assert code == 2 and "no trial's id" in said and "Traceback" not in said


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system ['touch ran']", "!!python/name:os.system", "!!python/module:os"]
)
def test_a_grid_cannot_run_code(tag: str, tmp_path: Path, write: Callable[..., Path]) -> None:
    grid = write(f"study: x\nbase: {tag}\nvariants: {{a: {{}}}}\n")
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        code, said = run_here("plan", grid)
    finally:
        os.chdir(here)
    assert code == 2 and "grid.yaml:2" in said and "Traceback" not in said
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_no_value_of_the_environment_is_kept(
    ledger: Ledger, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of a run that is fine nor of one that fails with all its variables at hand."""
    from conftest import TINY
    from runs import FAULTS, faulty, own_registry

    secret = secrets.token_hex(16)
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "ABLATE_TEST_SECRET"):
        monkeypatch.setenv(name, secret)
    write(FAULTS, "faults.py")
    grid = write(faulty(TINY.replace("seeds: 2", "seeds: 1"), "raises"))
    with own_registry():
        code, said = run_here("run", grid, "--results", with_database(ledger).root, "--workers", 1)
    assert code == 1 and secret not in said
    files = [each for each in ledger.root.rglob("*") if each.is_file() and ledger.cache not in each.parents]
    assert any(each.name == "record.json" for each in files) and any(each.name == "mlflow.db" for each in files)
    assert [str(each) for each in files if secret.encode() in each.read_bytes()] == []


def test_a_report_escapes_what_it_is_given(tmp_path: Path) -> None:
    """Names, questions, errors, data: none of them is markup."""
    script = "<script>alert(1)</script>"
    labels = fabricate.study(
        tmp_path,
        lambda label: "failed" if label["seed"] == 2 and label["variant"] != "base" else 2.0 + 0.01 * label["seed"],
        variants=("base", script),
        axes=(script,),
        question=f"Question: {script}?",
        facts={"corpus": script, "tokenizer": script},
    )
    for label in labels:
        file = tmp_path / "trials" / label["id"] / "record.json"
        record = json.loads(file.read_text())
        record["error"] = script if record["status"] == "failed" else None
        record["environment"]["cpu"] = script
        record["spec"]["arch"] = {"norm": script}
        file.write_text(json.dumps(record))
    code, said = run_here("report", "made", "--results", tmp_path)
    assert code == 0, said
    pages = [*(tmp_path / "studies" / "made" / "report").rglob("*.html")]
    assert pages and all(script not in page.read_text() for page in pages)
    assert any("&lt;script&gt;alert(1)" in page.read_text() for page in pages)
    for drawing in (tmp_path / "studies" / "made" / "report").rglob("*.svg"):
        assert "<script" not in drawing.read_text()


def test_the_dashboard_is_for_this_machine_only(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    ran: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    assert run_here("ui", "--results", with_database(ledger).root)[0] == 0
    (command,) = ran
    assert command[command.index("--host") + 1] == "127.0.0.1" and commands.ui.__doc__


def test_plugins_run_only_when_they_are_named(ledger: Ledger, tmp_path: Path, write: Callable[..., Path]) -> None:
    """Not because they lie beside a grid, in the results, or where the command is given."""
    plugin = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    grid = write("study: x\nbase: {arch: {d_model: 16, n_heads: 2, depth: 1}}\nvariants: {a: {}, b: rope}\n")
    for place in (tmp_path, ledger.root, ledger.root / "studies" / "x"):
        place.mkdir(parents=True, exist_ok=True)
        for name in ("plugin.py", "conftest.py", "own.py"):
            (place / name).write_text(plugin)
    assert SMALL and train(ledger, spec()).status() == "finished"
    assert run_here("list")[0] == 0
    run_here("plan", grid, "--results", ledger.root)
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_somebody_else_has_made_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among the temporary files of a machine names can be guessed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = own_folder("ablate")
    assert mine.parent == tmp_path and mine.stat().st_mode & 0o077 == 0 and own_folder("ablate") == mine
    mine.rename(tmp_path / "elsewhere")
    mine.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="somebody else"):
        own_folder("ablate")
