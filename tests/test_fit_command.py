"""`ablate fit TABLE` and `python -m analysis TABLE`: the JSON contract, bad tables, and life without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from analysis.command import main
from analysis.fit import ScalingLaw

TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
KEYS = {
    "form", "objective_name", "n", "dropped", "params", "objective", "se", "ci95", "predictions", "holdout",
    "warnings", "converged", "seconds",
}  # fmt: skip


def chinchilla(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return TRUTH["E"] + TRUTH["A"] * n ** -TRUTH["alpha"] + TRUTH["B"] * d ** -TRUTH["beta"]


def made(noise: float = 0.002, rows: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n, d = (np.exp(rng.uniform(np.log(low), np.log(1e3 * low), rows)) for low in (1e7, 1e9))
    loss = chinchilla(n, d) * np.exp(noise * rng.standard_normal(rows))
    return pd.DataFrame({"params": n, "toks": d, "flop": 6 * n * d, "final": loss})


COLUMNS = ("--n", "params", "--d", "toks", "--loss", "final")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    made().to_csv(tmp_path / "runs.csv", index=False)
    return tmp_path / "runs.csv"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert main([str(each) for each in (*arguments, "--json")], "ablate fit") == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(each) for each in arguments], "ablate fit") == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("ablate: ") and said.err.count("\n") == 1
    return said.err


def test_the_contract(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(
        capsys, table, *COLUMNS, "--form", "chinchilla", "--objective", "huber", "--delta", "1e-3", "--bootstrap", 60,
        "--seed", 3, "--predict", "n=1e10,d=1e12", "--predict", "c=1e22", "--holdout-compute", 0.2,
    )  # fmt: skip
    assert set(found) >= KEYS and found["form"] == "chinchilla" and found["n"] == 60 and found["converged"] is True
    alone = ScalingLaw("chinchilla").fit(made().rename(columns={"params": "n", "toks": "d"}), made()["final"])
    assert found["params"] == pytest.approx(alone.params_, rel=1e-9)
    assert found["objective"] == pytest.approx(alone.objective_, rel=1e-9)
    for name, value in TRUTH.items():
        low, high = found["ci95"][name]
        assert low < value < high and found["se"][name] > 0
    at, best = found["predictions"]
    assert at["c"] == pytest.approx(6e22) and at["loss"] == pytest.approx(chinchilla(1e10, 1e12), rel=0.01)
    assert at["new_lo"] < at["loss_lo"] < at["loss"] < at["loss_hi"] < at["new_hi"]
    ratio = TRUTH["alpha"] * TRUTH["A"] * best["n"] ** -TRUTH["alpha"]
    assert ratio == pytest.approx(TRUTH["beta"] * TRUTH["B"] * best["d"] ** -TRUTH["beta"], rel=0.2)
    assert 6 * best["n"] * best["d"] == pytest.approx(1e22)
    assert found["holdout"]["held_out"] == 12 and found["holdout"]["mean_abs_error_percent"] < 1


def test_any_two_of_n_d_and_c_give_the_third(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = run(capsys, table, *COLUMNS)
    by_c = run(capsys, table, "--n", "params", "--c", "flop", "--loss", "final")
    by_d = run(capsys, table, "--d", "toks", "--c", "flop", "--loss", "final")
    assert by_c["params"] == pytest.approx(whole["params"])
    assert by_d["params"] == pytest.approx(whole["params"])


@pytest.mark.parametrize("form", ["power", "power_offset", "bnsl", "shifted", "kaplan_nd", "chinchilla_tied"])
@pytest.mark.parametrize("objective", ["huber", "lad", "l2_log", "l2", "asymmetric"])
def test_forms_and_objectives(table: Path, capsys: pytest.CaptureFixture[str], form: str, objective: str) -> None:
    found = run(capsys, table, *COLUMNS, "--form", form, "--objective", objective)
    assert (found["form"], found["objective_name"]) == (form, objective) and found["objective"] > 0
    assert all(np.isfinite(value) for value in found["params"].values())


def test_isoflop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for c in np.geomspace(1e18, 1e21, 5):
        best = 0.1 * c**0.5
        rows += [
            {"n": best * r, "d": c / 6 / best / r, "c": c, "loss": 2 + 0.05 * np.log(r) ** 2}
            for r in (0.25, 0.5, 1, 2, 4)
        ]
    pd.DataFrame(rows).to_csv(tmp_path / "iso.csv", index=False)
    found = run(capsys, tmp_path / "iso.csv", "--form", "isoflop", "--bootstrap", 20, "--predict", "c=1e22")
    params = found["params"]
    assert (params["n_exponent"], params["d_exponent"]) == pytest.approx((0.5, 0.5))
    assert params["n_coef"] == pytest.approx(0.1) and len(params["vertices"]) == 5
    assert found["predictions"][0]["n"] == pytest.approx(1e10)


def test_rows_are_chosen_grouped_averaged_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = made(noise=0), made(noise=0)
    two["final"] += 0.5
    seeds = pd.concat(
        [
            one.assign(seed=0, kind="a"),
            one.assign(seed=1, kind="a", final=one["final"] * 1.02),
            two.assign(seed=0, kind="b"),
        ]
    )
    seeds.to_parquet(tmp_path / "runs.parquet")
    file = tmp_path / "runs.parquet"
    groups = run(capsys, file, *COLUMNS, "--where", "seed == 0", "--group", "kind")["groups"]
    assert [each["group"] for each in groups] == ["a", "b"]
    assert [each["params"]["E"] for each in groups] == pytest.approx([1.8, 2.3], rel=1e-4)
    mean = run(capsys, file, *COLUMNS, "--where", "kind == 'a'", "--average", "seed", "--keep", "off_target")
    assert mean["n"] == 60 and mean["params"]["E"] == pytest.approx(1.8 * 1.01, rel=1e-4)
    dropped = run(capsys, file, *COLUMNS, "--where", "kind == 'b'", "--drop-highest", 3)
    highest = two["final"].nlargest(3)
    assert dropped["n"] == 57 and {each["row"] for each in dropped["dropped"]} == {121 + row for row in highest.index}


def test_a_pinned_offset_and_a_form_of_ones_own(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(capsys, table, *COLUMNS, "--pin", "E=1.8")
    assert found["params"]["E"] == 1.8 and found["params"]["alpha"] == pytest.approx(0.35, rel=0.02)
    without = run(capsys, table, *COLUMNS, "--pin", "E=0")
    assert without["params"]["E"] == 0 and without["params"]["alpha"] < found["params"]["alpha"]
    assert without["objective"] > 2 * found["objective"]
    (tmp_path / "mine.py").write_text(
        "def mine(n, d, *, E=1.0, A=100.0, B=1000.0, alpha=0.3, beta=0.3):\n"
        "    'L = E + A n^-alpha + B d^-beta'\n"
        "    return E + A * n**-alpha + B * d**-beta\n"
    )
    mine = run(capsys, table, *COLUMNS, "--form", f"{tmp_path / 'mine.py'}:mine")
    known = run(capsys, table, *COLUMNS)
    assert mine["objective"] == pytest.approx(known["objective"], rel=1e-6)
    assert mine["params"] == pytest.approx(known["params"], rel=1e-3)


BAD = {
    "no such file": (None, (), "runs.csv: there is no such file"),
    "not a table": (("runs.txt", "a"), (), "runs.txt: not a table; known: .csv"),
    "empty": (("runs.csv", "n,d,loss\n"), (), "runs.csv: has no rows"),
    "a missing column": (("runs.csv", "n,d\n1,2\n"), (), "no column for loss: name it with --loss COL; columns: n"),
    "a column that is not there": (("runs.csv", "n,d,loss\n1,2,3\n"), ("--n", "size"), "--n 'size': no such column"),
    "a string": (("runs.csv", "n,d,loss\n1,2,3\n4,x,3\n"), (), "column 'd', row 2: 'x' is not a number"),
    "missing": (("runs.csv", "n,d,loss\n1,2,3\n4,,3\n"), (), "column 'd', row 2: nan is missing"),
    "a negative loss": (("runs.csv", "n,d,loss\n1,2,3\n4,5,-3\n"), (), "column 'loss', row 2: -3 must be above 0"),
    "one point": (("runs.csv", "n,d,loss\n1,2,3\n"), (), "1 distinct x, chinchilla needs at least 6"),
    "all the same n": (
        ("runs.csv", "n,d,loss\n" + "\n".join(f"5,{k},{3 + 1 / k}" for k in range(1, 9))),
        ("--keep", "off_target"),
        "all points have n = 5: chinchilla needs several",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    file, arguments, words = BAD[case]
    if file is not None:
        (tmp_path / file[0]).write_text(file[1])
    assert words in refused(capsys, tmp_path / (file[0] if file else "runs.csv"), *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--form", "cubic"), "unknown form 'cubic'; known: "),
        (("--form", "mine.py:f"), "no file mine.py"),
        (("--objective", "median"), "--objective 'median': unknown; known: huber, lad"),
        (("--objective", "mean_huber"), "a fit minimises a sum over points, never a mean"),
        (("--where", "sise > 3"), "--where 'sise > 3': "),
        (("--where", "params < 0"), "keeps no row of 60"),
        (("--group", "kind"), "--group 'kind': no such column"),
        (("--average", "seed"), "--average 'seed': no such column"),
        (("--drop-highest", "60"), "--drop-highest 60: there are 60 points"),
        (("--bootstrap", "1"), "--bootstrap 1: at least 2 resamples"),
        (("--predict", "n=1e9"), "chinchilla reads n, d; d is missing"),
        (("--predict", "n=1e9,d=lots"), "'d=lots' is not NAME=NUMBER"),
        (("--predict", "n=-1,d=1"), "must be above 0"),
        (("--pin", "alpha=0.3"), "has no offset E that could be pinned"),
        (("--keep", "everything"), "keep 'everything': neither a trial nor a gate"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_bad_options(table: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str) -> None:
    assert words in refused(capsys, table, *COLUMNS, *arguments)


PROGRAM = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "ray", "mlflow", "ablate"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
sys.argv = ["analysis", *sys.argv[1:]]
import runpy
runpy.run_module("analysis", run_name="__main__", alter_sys=False)
"""


def test_it_needs_neither_torch_nor_ray_nor_mlflow(table: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(table), *COLUMNS, "--bootstrap", "20", "--json"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["params"]["E"] == pytest.approx(1.8, rel=0.05)


def test_the_command_line_is_the_same(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ablate.cli import main as ablate

    assert ablate(["fit", str(table), *COLUMNS]) == 0
    assert "L = E + A n^-alpha + B d^-beta  (huber, 60 points" in capsys.readouterr().out
    assert ablate(["fit", str(table), "--n", "size"]) == 2
