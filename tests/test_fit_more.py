"""What `ablate fit` says besides a fit: tournaments, groups compared, what to run next, figures, gates."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_fit_command import COLUMNS, made, refused, run, table

__all__ = ["table"]  # a fixture


def test_a_tournament_ranks_forms_and_speaks_where_they_agree(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(capsys, table, *COLUMNS, "--tournament", "--predict", "n=2e10,d=2e12")["tournament"]
    ranking, (near,) = found["ranking"], found["predictions"]
    errors = [row["mean"] for row in ranking if not row["failed"]]
    assert errors == sorted(errors) and ranking[0]["form"] == "chinchilla"
    assert {row["objective"] for row in ranking} == {"huber", "lad", "l2_log"}
    assert near["refused"] == "" and near["lowest"] <= near["loss"] <= near["highest"]


def test_contestants_that_disagree_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Few noisy points, asked for 10^8 times beyond them."""
    made(noise=0.05, rows=16).to_csv(tmp_path / "few.csv", index=False)
    (far,) = run(capsys, tmp_path / "few.csv", *COLUMNS, "--tournament", "--predict", "c=1e32")["tournament"][
        "predictions"
    ]
    assert far["loss"] is None and "contestants disagree by" in far["refused"]


def crossing() -> pd.DataFrame:
    """Two groups of ten sizes and three seeds whose laws are equal at c = 1e18."""
    rng, rows = np.random.default_rng(0), []
    for c in np.geomspace(1e15, 1e20, 10):
        for name, alpha in (("old", 0.10), ("new", 0.16)):
            for seed in range(3):
                loss = (1.7 + 1.3 * (c / 1e18) ** -alpha) * np.exp(0.003 * rng.standard_normal())
                rows.append({"kind": name, "seed": seed, "flop": c, "final": loss})
    return pd.DataFrame(rows)


def test_groups_are_compared_by_their_laws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crossing().to_csv(tmp_path / "runs.csv", index=False)
    found = run(
        capsys, tmp_path / "runs.csv", "--c", "flop", "--loss", "final", "--form", "power_offset",
        "--group", "kind", "--baseline", "old", "--bootstrap", 100, "--figures", tmp_path / "drawn",
    )  # fmt: skip
    assert [each["group"] for each in found["groups"]] == ["old", "new"]
    met = [row for row in found["comparisons"] if row["quantity"] == "crossover"]
    assert {row["fit"] for row in met} == {"shared", "separate"} and sum(row["preferred"] for row in met) == 1
    for row in met:
        assert row["value"] == pytest.approx(1e18, rel=0.5) and row["lo"] < row["value"] < row["hi"]
    (words,) = found["crossovers"]
    assert words.startswith("new overtakes old at ")
    (slope,) = [row for row in found["comparisons"] if row["quantity"] == "alpha" and row["fit"] == "shared"]
    assert slope["value"] == pytest.approx(0.06, abs=0.02)
    drawn = {Path(file).name for file in found["figures"]}
    assert drawn == {"gains.svg", "crossover_new.svg"}
    assert {path.name for path in (tmp_path / "drawn").iterdir()} >= drawn | {"old_residuals.svg", "new_profile.svg"}


def test_figures_are_pictures(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = run(capsys, table, *COLUMNS, "--figures", tmp_path / "drawn", "--tournament")["figures"]
    assert [Path(file).stem for file in files] == ["frontier", "residuals", "profile", "tournament"]
    for file in files:
        assert ET.fromstring(Path(file).read_bytes()).tag.endswith("svg")


def test_what_to_run_next(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where all cost the same, the run at the target itself; where cost is FLOPs, a cheaper one."""
    n = np.geomspace(1e8, 1e11, 4)
    candidates = pd.DataFrame({"params": n, "toks": 20 * n})
    candidates.to_csv(tmp_path / "flops.csv", index=False)
    candidates.assign(cost=1.0).to_csv(tmp_path / "free.csv", index=False)
    target = ("--predict", "n=1e11,d=2e12")
    free = run(capsys, table, *COLUMNS, *target, "--next", tmp_path / "free.csv")["next"]
    paid = run(capsys, table, *COLUMNS, *target, "--next", tmp_path / "flops.csv")["next"]
    assert free[0]["n"] == pytest.approx(1e11) and paid[0]["n"] < 1e11
    for rows in (free, paid):
        assert [row["run"] for row in rows] == list(range(1, 5))
        assert all(row["width"] < row["width_before"] for row in rows)


def test_whole_groups_are_resampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every point five times over: resampled one by one they seem to be many, in groups they are as few as before."""
    once = made().assign(trial=range(60))
    once.to_csv(tmp_path / "once.csv", index=False)
    pd.concat([once] * 5).to_csv(tmp_path / "often.csv", index=False)
    keep = ("--keep", "duplicate", "--objective", "l2_log", "--bootstrap", 300)
    single = run(capsys, tmp_path / "once.csv", *COLUMNS, *keep)["se"]["alpha"]
    apart = run(capsys, tmp_path / "often.csv", *COLUMNS, *keep)["se"]["alpha"]
    together = run(capsys, tmp_path / "often.csv", *COLUMNS, *keep, "--resample", "trial")["se"]["alpha"]
    assert together == pytest.approx(single, rel=0.25) and apart < 0.6 * together


def test_gates_say_what_they_could_not_check(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gates = {row["gate"]: row for row in run(capsys, table, *COLUMNS)["gates"]}
    assert gates["unfinished"]["applied"] and gates["under_cooled"]["skipped"] == "no column cooled or steps_done"


def test_curves_are_not_gated_as_repeated_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every size is trained to six lengths; each trial's curve has points before its end, which do not count."""
    rows = []
    for n in np.geomspace(1e7, 1e9, 8):
        for d in np.geomspace(1e9, 1e11, 6):
            for part in (0.5, 1.0):
                c = 6 * n * d * part
                loss = 1.8 + 480 * n**-0.35 + 2100 * (d * part) ** -0.37 + (0.2 if part < 1 else 0)
                rows.append({"trial_id": f"{n:.3g}-{d:.3g}", "n": n, "d": d * part, "c": c, "loss": loss,
                             "schedule": "cosine"})  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "curves.csv", index=False)
    found = run(capsys, tmp_path / "curves.csv", "--form", "envelope", "--figures", tmp_path / "drawn")
    assert found["params"]["n_exponent"] == pytest.approx(0.37 / 0.72, abs=0.05)
    assert len(found["dropped"]) == 48 and all(
        "before the end of a decaying" in row["reason"] for row in found["dropped"]
    )
    assert [Path(file).stem for file in found["figures"]] == ["envelope", "race"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--baseline", "old"), "name their column with --group"),
        (("--resample", "trial", "--bootstrap", "10"), "--resample 'trial': no such column"),
        (("--next", "nowhere.csv", "--predict", "c=1e20"), "nowhere.csv: there is no such file"),
        (("--next", "nowhere.csv"), "say what the runs are for with --predict"),
        (("--tournament", "--predict", "s=7"), "chinchilla reads n, d; n is missing"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_bad_options(table: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str) -> None:
    assert words in refused(capsys, table, *COLUMNS, *arguments)


def test_a_baseline_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crossing().to_csv(tmp_path / "runs.csv", index=False)
    arguments = ("--c", "flop", "--loss", "final", "--form", "power", "--group", "kind", "--baseline", "older")
    assert "--baseline 'older': no such kind; known: old, new" in refused(capsys, tmp_path / "runs.csv", *arguments)


def test_a_folder_that_cannot_be_written(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert "--figures" in refused(capsys, table, *COLUMNS, "--figures", tmp_path / "file" / "drawn")
