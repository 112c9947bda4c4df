"""Sections of a report beside its tables: what they leave out, and what they say instead."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fabricate
import numpy as np
import pytest

from analysis.curves import compute_curves
from analysis.promotion import Gates
from analysis.report import write_report
from analysis.report.build import MOST_DRAWN, _drawn
from analysis.report.findings import findings
from analysis.table import read_study, study_table
from analysis.tables import comparison_table

NAMES = ("vanilla", "gelu", "swish", "glu", "sigmoid")


def loss(label: dict[str, Any]) -> float:
    rng = np.random.default_rng([ord(each) for each in f"{label['variant']} {label['size']} {label['seed']}"])
    return 2.0 + 0.05 * NAMES.index(label["variant"]) + 0.01 * float(rng.standard_normal())


def told(root: Path, **more: Any) -> dict[str, Any]:
    file = root / "studies" / "made" / "study.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    return read_study(root, "made")


def section(root: Path, name: str) -> Any:
    table = study_table(root, "made")
    found = findings(root, read_study(root, "made"), table, compute_curves(root, table))
    return {each.name: each for each in found}.get(name)


def test_a_cell_that_cannot_be_compared_does_not_hide_the_others(tmp_path: Path) -> None:
    """At size m the baseline alone has finished."""
    fabricate.study(
        tmp_path, lambda t: None if t["size"] == "m" and t["variant"] != "vanilla" else loss(t), NAMES, ("s", "m")
    )
    told(tmp_path, published="narang_table1")
    found = section(tmp_path, "published")
    assert {row[0] for row in found.rows} == {"s, tokens=100000"} and len(found.rows) == len(NAMES)
    assert any(line.startswith("m, tokens=100000: not compared: narang_table1 has fewer") for line in found.lines)


def test_rows_inside_the_noise_are_grey_in_sections_too(tmp_path: Path) -> None:
    fabricate.study(tmp_path, lambda t: 2.0 + 0.1 * (t["seed"] % 3), NAMES)
    told(tmp_path, published="narang_table1")
    page = write_report(tmp_path, "made").html.read_text()
    part = page.split('id="published"')[1].split("</section>")[0]
    assert part.count('<tr class="indistinguishable">') == part.count("inside our noise") == len(NAMES) - 1


def test_a_study_of_several_rates_says_how_much_they_matter(tmp_path: Path) -> None:
    """Losses of 0.2 and 0.4 above the best rate's: 0.2 on average, for every seed."""
    away = {"lr=0.001": 0.2, "lr=0.002": 0.0, "lr=0.004": 0.4}
    labels = fabricate.study(
        tmp_path, lambda t: 2.0 + away[t["axes"]] + 0.01 * t["seed"], ("vanilla", "gelu"), axes=list(away)
    )
    for label in labels:
        file = tmp_path / "trials" / label["id"] / "record.json"
        record = json.loads(file.read_text())
        record["spec"]["train"]["lr"] = float(label["axes"].removeprefix("lr="))
        file.write_text(json.dumps(record))
    found = section(tmp_path, "sensitivity")
    assert found.rows[1] == [
        "s, tokens=100000",
        "gelu",
        "3 from 0.001 to 0.004",
        "0.002",
        "3",
        "+0.2000 [+0.2000, +0.2000]",
    ]
    told(tmp_path, tune=["train.lr"])  # a sweep's is in the certificate
    assert section(tmp_path, "sensitivity") is None


@pytest.mark.parametrize("more", [0, 1])
def test_a_figure_of_too_many_differences_is_of_the_largest_cell(tmp_path: Path, more: int) -> None:
    count = MOST_DRAWN // 3 + 1 + more
    names = [f"v{k}" for k in range(count)]
    fabricate.study(tmp_path, lambda t: 2.0, names, ("s", "m", "l"), seeds=(0, 1))
    cells = comparison_table(study_table(tmp_path, "made"), "v0")
    part, where = _drawn(cells[cells["variant"] != "v0"])
    if not more:
        assert len(part) == MOST_DRAWN and where == ""
    else:
        assert set(part["size"]) == {"l"} and len(part) == count - 1 and where == " at l, tokens=100000"


def test_a_ladder_that_says_nothing_does_not_hide_the_others(tmp_path: Path) -> None:
    """With dropout the baseline has finished nowhere below the largest scale."""
    lost = lambda t: "diverged" if t["axes"] and t["variant"] == "vanilla" and t["size"] != "xl" else loss(t)  # noqa: E731
    labels = fabricate.study(tmp_path, lost, NAMES, ("s", "m", "l", "xl"), axes=("", "dropout=0.1"))
    trials = [{**label, "train_flops": 6.0 * fabricate.PARAMS[label["size"]] * 100_000} for label in labels]
    told(tmp_path, promote=asdict(Gates()), trials=trials)
    found = section(tmp_path, "promotion")
    assert {row[0] for row in found.rows} == {""} and len(found.rows) == len(NAMES) - 1
    (line,) = found.lines
    assert line.startswith("dropout=0.1: nothing was promoted: no finished trial of the baseline")
