"""A hypothesis is registered before the first trial; what deviates from it afterwards is listed."""

from __future__ import annotations

import json
from pathlib import Path

import fabricate
import numpy as np
import pandas as pd
import pytest
from conftest import TINY

from ablate.errors import UserError
from ablate.grid import load_grid
from ablate.hypothesis import registration
from analysis.report.hypothesis import expected_section

BLOCK = "hypothesis: {variant: rope, claim: it helps, smallest: 0.05, stopping: all seeds}\n"


def grid_of(tmp_path: Path, block: str):
    file = tmp_path / "grid.yaml"
    file.write_text(TINY + block)
    return load_grid(file)


def test_a_block_has_its_defaults(tmp_path: Path) -> None:
    block = grid_of(tmp_path, BLOCK).hypothesis
    assert block == {
        "claim": "it helps",
        "variant": "rope",
        "expect": "better",
        "metric": "loss",
        "smallest": 0.05,
        "stopping": "all seeds",
    }
    assert grid_of(tmp_path, "").hypothesis is None


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("hypothesis: it helps", "'it helps' must be a mapping with claim, variant"),
        ("hypothesis: {variant: alibi}", "'alibi' is none to compare; variants: rope"),
        ("hypothesis: {variant: plain}", "'plain' is none to compare"),
        ("hypothesis: {variant: rope, expect: best}", "unknown expectation 'best'"),
        ("hypothesis: {variant: rope, smallest: -1}", "-1 must be a number from 0"),
        ("hypothesis: {variant: rope, expect: equivalent}", "equivalent within what?"),
        ("hypothesis: {variant: rope, delta: 1}", "unknown key 'delta'"),
    ],
)
def test_mistakes(tmp_path: Path, block: str, said: str) -> None:
    with pytest.raises(UserError, match=r"grid.yaml:\d+: ") as caught:
        grid_of(tmp_path, block + "\n")
    assert said in str(caught.value)


def study(tmp_path: Path, shift: float, noise: float = 0.001) -> tuple[Path, pd.DataFrame, pd.DataFrame]:
    """A made-up study whose `rope` differs by `shift`, and what a report knows of it."""
    from analysis.table import study_table
    from analysis.tables import overall_table

    def loss(label: dict) -> float:
        return 2.0 + (shift + noise * (label["seed"] - 1) if label["variant"] == "rope" else 0)

    fabricate.study(tmp_path, loss)
    table = study_table(tmp_path, "made")
    return tmp_path / "studies" / "made", table, overall_table(table, "base")


def register(folder: Path, time: float = 0.0, **changes: object) -> None:
    tree = json.loads((folder / "study.json").read_text()) | {"tolerance": 0.01}
    block = {"claim": "", "variant": "rope", "expect": "better", "metric": "loss", "smallest": 0.05, "stopping": ""}
    for trial in tree["trials"]:
        trial.setdefault("stage", "")
    line = {"time": time, **registration({**block, **changes}, tree)}
    with open(folder / "hypothesis.jsonl", "a") as stream:
        stream.write(json.dumps(line) + "\n")


@pytest.mark.parametrize(
    ("expect", "shift", "outcome"),
    [
        ("better", -0.10, "as expected"),
        ("better", -0.02, "not as expected"),  # better, but by less than what is of interest
        ("better", 0.10, "not as expected"),
        ("worse", 0.10, "as expected"),
        ("worse", -0.10, "not as expected"),
        ("equivalent", 0.01, "as expected"),
        ("equivalent", 0.10, "not as expected"),
    ],
)
def test_the_outcome(tmp_path: Path, expect: str, shift: float, outcome: str) -> None:
    folder, table, overall = study(tmp_path, shift)
    register(folder, expect=expect)
    found = expected_section(folder, table, overall)
    assert found is not None and found.outcome.startswith(outcome + ": ") and found.deviations == []
    assert found.registered.startswith("1970-01-01 00:00 UTC, before the first trial, SHA-256 ")


def test_noise_that_hides_it(tmp_path: Path) -> None:
    folder, table, overall = study(tmp_path, -0.06, noise=0.05)
    register(folder)
    found = expected_section(folder, table, overall)
    assert found is not None and found.outcome.startswith("neither shown nor excluded: ")


@pytest.mark.parametrize(
    ("verdict", "said"), [("better", "as expected: better"), ("worse", "not as expected: worse")]
)
def test_the_outcome_of_a_race_in_several_cells(tmp_path: Path, verdict: str, said: str) -> None:
    """It has a verdict and no interval."""
    folder, table, overall = study(tmp_path, -0.10)
    register(folder)
    raced = overall.assign(lo=np.nan, hi=np.nan, verdict=verdict)
    found = expected_section(folder, table, raced)
    assert found is not None and found.outcome.startswith(said)
    found = expected_section(folder, table, raced.assign(verdict="unknown"))
    assert found is not None and found.outcome.startswith("not known")


def test_deviations_are_listed(tmp_path: Path) -> None:
    folder, table, overall = study(tmp_path, -0.10)
    register(folder)
    register(folder, time=60.0, smallest=0.01, claim="it helps a little")
    table.loc[0, "status"] = "diverged"
    found = expected_section(folder, table, overall)
    assert found is not None and found.deviations == [
        "1970-01-01 00:01: claim was , is it helps a little",
        "1970-01-01 00:01: smallest was 0.05, is 0.01",
        "1 planned trials are diverged",
    ]
    assert "by at least 0.05" in found.claim  # that of the first registration counts


def test_a_line_that_a_crash_tore(tmp_path: Path) -> None:
    folder, table, overall = study(tmp_path, -0.10)
    register(folder)
    with open(folder / "hypothesis.jsonl", "a") as stream:
        stream.write('{"time": 1e300, "hypothesis": {}, "planned": {}}\n{"time": 60.0}\n')
        stream.write('{"time": 60.0, "sha256": "0", "hypothesis": {"expect": "better"}, "planned": {}}\n{"ti')
    found = expected_section(folder, table, overall)
    assert found is not None and found.outcome.startswith("as expected") and found.deviations == []


def test_there_is_none(tmp_path: Path) -> None:
    assert expected_section(*study(tmp_path, 0.0)) is None
