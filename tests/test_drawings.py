"""A study's drawings: kept beside it, in its report, and in MLflow."""

from __future__ import annotations

import base64
import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from conftest import TINY
from mirrored import runs_at
from runs import new_results, run_here

from ablate.run import drawings as drawings_kept
from ablate.run.ledger import Ledger
from ablate.run.mlflow_store import default_uri, open_client
from analysis.report import write_report
from analysis.report.drawings import INSIDE, drawings
from analysis.report.verify import verify

GRID = TINY.replace("  rope: rope\n", "  rope: rope\n  hot: {train.lr: 2e-3}\n").replace("seeds: 2", "seeds: 1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, token_cache: Path) -> Ledger:
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "grid.yaml").write_text(GRID)
    ledger = new_results(folder / "results", token_cache)
    code, said = run_here("run", folder / "grid.yaml", "--results", ledger.root, "--workers", 0)
    assert code == 0, said
    return ledger


def index(ledger: Ledger) -> list[dict[str, object]]:
    tree = json.loads((ledger.study_folder("tiny") / "drawings" / "index.json").read_text())
    assert tree["baseline"] == "plain"
    return list(tree["drawn"])


def test_every_variant_is_drawn_and_says_what_differs(run: Ledger) -> None:
    entries = {each["variant"]: each for each in index(run)}
    assert list(entries) == ["plain", "rope", "hot"] and not any("trouble" in each for each in entries.values())
    assert entries["rope"]["changes"] == [["d_ff", "64", "72"], ["position", "learned", "rope"]]  # matched
    assert entries["plain"]["changes"] == entries["hot"]["changes"] == []
    for name in entries:
        document = (run.study_folder("tiny") / "drawings" / f"{name}.svg").read_text()
        ET.fromstring(document)
        assert ('class="frame changed"' in document) == (name == "rope")


def test_the_report_has_them_and_is_verified(run: Ledger) -> None:
    report = run.study_folder("tiny") / "report"
    page = (report / "report.html").read_text()
    section = page.split('<h2 id="architectures">')[1].split("</section>")[0]
    assert "<code>position</code> learned → rope" in section and "has the baseline's architecture" in section
    inside = [base64.b64decode(each) for each in re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', section)]
    assert inside == [(report / f"architecture_{name}.svg").read_bytes() for name in ("plain", "rope", "hot")]
    assert section.count("<details") == section.count(" open>") == 3  # few are seen at once
    assert "(architecture_rope.svg)" in (report / "report.md").read_text()
    assert verify(report) == []


def test_mlflow_has_the_figures_and_the_drawings(run: Ledger) -> None:
    uri = default_uri(run.root)
    study = runs_at(uri)["study"]
    files = {Path(each.path).name for each in open_client(uri).list_artifacts(study.info.run_id, "report")}
    report = run.study_folder("tiny") / "report"
    pictures = {file.name for file in report.glob("*.svg")}
    assert {"differences.svg", "learning_curves.svg", "architecture_plain.svg", "architecture_rope.svg"} <= pictures
    assert pictures <= files


def test_a_second_run_draws_nothing_again(run: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawings_kept, "draw", lambda *_: pytest.fail("drawn again"))
    code, said = run_here("run", run.root.parent / "grid.yaml", "--results", run.root, "--workers", 0)
    assert code == 0 and "trained 0, reused 3" in said
    assert not any("trouble" in each for each in index(run))


def test_what_cannot_be_drawn_costs_a_study_nothing(
    run: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run.root, tmp_path / "results", symlinks=True)
    shutil.rmtree(tmp_path / "results/studies/tiny/drawings")

    def broken(*_: object) -> str:
        raise RuntimeError("no ink")

    monkeypatch.setattr(drawings_kept, "draw", broken)
    code, _ = run_here("run", run.root.parent / "grid.yaml", "--results", tmp_path / "results", "--workers", 0)
    page = (tmp_path / "results/studies/tiny/report/report.html").read_text()
    assert code == 0 and "not drawn: RuntimeError: no ink" in page


def test_a_study_without_drawings_has_a_report(run: Ledger, tmp_path: Path) -> None:
    shutil.copytree(run.root, tmp_path / "results", symlinks=True)
    shutil.rmtree(tmp_path / "results/studies/tiny/drawings")
    page = write_report(tmp_path / "results", "tiny").html
    assert "architectures" not in page.read_text() and not list(page.parent.glob("architecture_*"))


def test_many_drawings_are_folded_and_some_stay_beside_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "drawings"
    folder.mkdir()
    names = [f"v{number}" for number in range(INSIDE + 3)]
    drawn = [{"variant": name, "file": f"{name}.svg", "changes": []} for name in names]
    (folder / "index.json").write_text(json.dumps({"baseline": "v0", "drawn": drawn}))
    for name in names:
        (folder / f"{name}.svg").write_text("<svg/>")
    found = drawings(tmp_path, names[:-1])
    assert [each.variant for each in found] == names[:-1]
    assert [each.open for each in found] == [True] + [False] * (INSIDE + 1)
    assert [bool(each.uri) for each in found] == [True] * INSIDE + [False] * 2 and all(each.svg for each in found)
