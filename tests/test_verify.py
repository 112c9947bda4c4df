"""`ablate verify`: a number, a page, a figure or a record that was changed is named."""

from __future__ import annotations

import json
from pathlib import Path

import fabricate
import pytest
from runs import run_here

from analysis.errors import AnalysisError
from analysis.report import write_report
from analysis.report.verify import BEHIND, verify


@pytest.fixture
def report(tmp_path: Path) -> Path:
    def loss(label: dict) -> float:
        return 2.0 + label["seed"] / 100 - (0.1 if label["variant"] == "rope" else 0)

    fabricate.study(tmp_path, loss, sizes=("s", "m"))
    return write_report(tmp_path, "made").html.parent


def first_trial(report: Path) -> Path:
    return report.parents[2] / "trials" / json.loads((report / BEHIND).read_text())["trials"].popitem()[0]


def test_a_report_as_it_was_written_is_right(report: Path) -> None:
    assert verify(report) == verify(report / "report.html") == []


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_a_number_in_a_table_is_named_with_its_row_and_column(report: Path) -> None:
    change(report / "overall.csv", "rope,3,-0.1", "rope,3,-0.3")
    (found,) = verify(report)
    assert found.startswith("overall.csv, rope, loss, diff: -0.3") and ", recomputed -0.1" in found


def test_a_number_on_a_page_is_named_with_its_line(report: Path) -> None:
    change(report / "report.md", "-0.1000", "-0.1500")
    (found,) = verify(report)
    assert found.startswith("report.md, line ") and "-0.1500" in found and "-0.1000" in found


def test_a_figure_and_a_file_too_many(report: Path) -> None:
    change(report / "differences.svg", "<path", "<path ")
    (report / "more.csv").write_text("a\n1\n")
    (report / "fits.csv").unlink()
    assert sorted(verify(report)) == [
        "differences.svg: the figure is not what the ledger draws",
        "fits.csv: missing from the report",
        "more.csv: not what the ledger makes",
    ]


def test_a_record_that_was_changed_is_named_and_so_are_its_numbers(report: Path) -> None:
    folder = first_trial(report)
    record = json.loads((folder / "record.json").read_text())
    record["metrics"]["loss"] -= 0.5
    (folder / "record.json").write_text(json.dumps(record))
    found = verify(report)
    assert f"trials/{folder.name}/record.json has changed since the report was written" in found
    assert any(each.startswith(f"trials/{folder.name}/record.json: loss ") for each in found)
    assert any(each.startswith(f"trials.csv, {folder.name}, ") and ", loss: " in each for each in found)


def test_a_record_changed_before_the_report_does_not_agree_with_its_curve(report: Path) -> None:
    folder = first_trial(report)
    record = json.loads((folder / "record.json").read_text())
    record["metrics"]["loss"] = 0.123
    (folder / "record.json").write_text(json.dumps(record))
    write_report(report.parents[2], "made")
    (found,) = verify(report)
    assert found.startswith(f"trials/{folder.name}/record.json: loss 0.123, its curve ends with ")


def test_trials_that_came_and_went(report: Path) -> None:
    folder = first_trial(report)
    (folder / "record.json").unlink()
    assert f"trials/{folder.name}/record.json is gone since the report was written" in verify(report)


def test_what_is_no_report(tmp_path: Path, report: Path) -> None:
    with pytest.raises(AnalysisError, match=r"no report of `ablate run`"):
        verify(tmp_path)
    (report / BEHIND).write_text("{")
    with pytest.raises(AnalysisError, match=r"behind\.json: not whole"):
        verify(report)


def test_the_command(report: Path) -> None:
    results = report.parents[2]
    code, said = run_here("verify", "made", "--results", results)
    assert code == 0 and "every number is what the ledger says" in said
    change(report / "overall.csv", "rope,3,-0.1", "rope,3,-0.3")
    code, said = run_here("verify", report / "report.html", "--json")
    assert code == 1 and len(json.loads(said)["differences"]) == 1
    code, said = run_here("verify", "nothing", "--results", results)
    assert code == 2 and "unknown report or study 'nothing'; known: made" in said
