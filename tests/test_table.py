"""The table of trials: from a results folder with everything in it that a crash leaves, and from anybody's file."""

from __future__ import annotations

import json
from pathlib import Path

import fabricate
import numpy as np
import pandas as pd
import pytest
from conftest import TINY

from ablate.grid import load_grid
from ablate.plan import make_plan
from ablate.run.ledger import ENDED, Ledger
from ablate.run.outcome import early_loss
from ablate.run.study import write_study
from ablate.train.job import Job
from ablate.train.trial import plan_trial, run_trial
from analysis.columns import BY_NAME, COLUMNS, LABELS
from analysis.table import TableError, finished, read_study, read_table, study_curves, study_table
from analysis.tables import comparison_table, overall_table

FILES = (".csv", ".csv.gz", ".parquet", ".jsonl")


def outcome(label: dict) -> float | str | None:
    """base: all finished; rope: one finished, one diverged, one failed; swiglu: pending, running, finished."""
    others = {"rope": (2.25, "diverged", "failed"), "swiglu": (None, "running", 2.5)}
    return {"base": (2.5, 2.6, 2.75), **others}[label["variant"]][label["seed"]]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    fabricate.study(tmp_path, outcome, variants=("base", "rope", "swiglu"))
    return tmp_path


def folder_of(results: Path, variant: str, seed: int, study: str = "made") -> Path:
    (label,) = [t for t in read_study(results, study)["trials"] if (t["variant"], t["seed"]) == (variant, seed)]
    return results / "trials" / label["id"]


def row(table: pd.DataFrame, variant: str, seed: int) -> pd.Series:
    return table[(table["variant"] == variant) & (table["seed"] == seed)].iloc[0]


def save(table: pd.DataFrame, file: Path) -> Path:
    if ".parquet" in file.suffixes:
        table.to_parquet(file)
    elif ".jsonl" in file.suffixes:
        table.to_json(file, orient="records", lines=True, double_precision=15)
    else:
        table.to_csv(file, index=False)
    return file


def typed(table: pd.DataFrame) -> None:
    for column in COLUMNS:
        assert str(table[column.name].dtype) == column.dtype, column.name


def test_one_row_a_trial_in_the_order_of_the_study(results: Path) -> None:
    table = study_table(results, "made")
    typed(table)
    assert table["trial_id"].tolist() == [trial["id"] for trial in read_study(results, "made")["trials"]]
    assert list(table["status"]) == [
        *("finished", "finished", "finished"),
        *("finished", "diverged", "failed"),
        *("pending", "pending", "finished"),
    ]


def test_the_values_are_those_of_the_record(results: Path) -> None:
    one = row(study_table(results, "made"), "base", 1)
    assert one["loss"] == 2.6 and one["early_loss"] == pytest.approx(fabricate.early(2.6))
    assert (one["train_loss"], one["test_loss"]) == pytest.approx((2.5, 2.62))
    assert (one["params_total"], one["params_non_embedding"], one["flops_per_token"]) == (1000, 500, 2000)
    assert (one["train_flops"], one["train_flops_6nd"], one["tokens"]) == (6e8, 3e8, 1e5)
    assert (one["tokens_per_s"], one["wall_s"], one["peak_memory_bytes"]) == (5001, 12.5, 1 << 20)
    assert (one["hardware"], one["device"], one["torch"]) == ("a processor", "cpu", "2.8")
    assert (one["precision"], one["git_commit"], one["size"], one["axes"]) == ("fp32", "c0ffee", "s", "")
    assert pd.isna(one["error"])


def test_the_hardware_is_the_gpu_where_there_is_one(results: Path) -> None:
    file = folder_of(results, "base", 1) / "record.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"environment": record["environment"] | {"gpu": "a card"}}))
    assert row(study_table(results, "made"), "base", 1)["hardware"] == "a card"


def test_what_did_not_finish_has_no_loss(results: Path) -> None:
    table = study_table(results, "made")
    rest = table[table["status"] != "finished"]
    assert len(rest) == 4 and rest[["loss", "early_loss"]].isna().all(axis=None)
    assert row(table, "rope", 1)["error"] == "the loss is nan at step 90"
    assert row(table, "rope", 2)["error"].startswith("ValueError")
    assert row(table, "rope", 1)["params_total"] == 1000  # diverged, and counted all the same


def test_finished_are_those_with_a_final_loss(results: Path) -> None:
    table = study_table(results, "made")
    assert list(finished(table)["loss"]) == [2.5, 2.6, 2.75, 2.25, 2.5]
    table.loc[0, "loss"] = np.inf
    table.loc[1, "loss"] = np.nan
    assert list(finished(table)["loss"]) == [2.75, 2.25, 2.5]


def test_a_study_of_which_nothing_has_run(tmp_path: Path) -> None:
    fabricate.study(tmp_path, lambda label: None)
    table = study_table(tmp_path, "made")
    typed(table)
    assert set(table["status"]) == {"pending"} and len(finished(table)) == 0
    assert len(study_curves(tmp_path, "made")) == 0


@pytest.mark.parametrize("torn", ['{"status": "finis', "", "null", "[1]", '{"steps": 3}'], ids=repr)
def test_a_record_that_is_not_whole_is_pending_and_named(results: Path, torn: str) -> None:
    folder = folder_of(results, "base", 1)
    before = study_table(results, "made")
    (folder / "record.json").write_text(torn)
    table = study_table(results, "made")
    one = row(table, "base", 1)
    assert one["status"] == "pending" and one["error"].startswith(f"trials/{folder.name}/record.json is not whole")
    assert np.isnan(one["loss"]) and one["variant"] == "base"
    others = table["trial_id"] != folder.name
    pd.testing.assert_frame_equal(table[others], before[others])


def test_lines_of_a_curve_that_are_not_whole_are_left_out(results: Path) -> None:
    """Torn by a crash, and gone on with on the same line or the next."""
    file = folder_of(results, "base", 1) / "metrics.jsonl"
    before, lines = study_curves(results, "made"), file.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4][:20] + b"\n"
    file.write_bytes(b"".join(lines) + b'{"step": 9\xff')
    after = study_curves(results, "made")
    assert len(after) == len(before) - 1


@pytest.mark.parametrize(
    ("evaluated", "nearest"),
    [((0, 50, 100, 200), 100), ((0, 60, 150, 800), 150), ((0, 1, 800), 800), ((0, 70, 143), 70), ((0, 70, 142), 142)],
    ids=str,
)
def test_the_early_loss_is_at_the_evaluation_nearest_in_ratio_to_an_eighth(
    evaluated: tuple[int, ...], nearest: int
) -> None:
    """Of 800 steps; 100 is 1.43 times 70, and 1.42 times less than 142. Step 0 is not an evaluation of training."""
    rows = [
        {"step": step, "tokens": step, "split": split, "loss": step + (split == "train") / 2}
        for step in evaluated
        for split in ("batch", "valid", "train")
    ]
    assert early_loss(rows, 800) == {"early_loss": nearest}


def test_without_an_evaluation_there_is_no_early_loss() -> None:
    assert early_loss([], 800) == early_loss([{"step": 0, "split": "valid", "loss": 2.5}], 800) == {}


def test_curves_have_a_row_for_every_evaluation(results: Path) -> None:
    curves = study_curves(results, "made")
    mine = curves[(curves["variant"] == "base") & (curves["seed"] == 1) & (curves["split"] == "valid")]
    assert list(mine["step"]) == list(fabricate.EVALUATED)
    assert mine["loss"].iloc[-1] == pytest.approx(2.6)
    running = curves[(curves["variant"] == "swiglu") & (curves["seed"] == 1)]
    assert len(running) == 10 and running["loss"].isna().sum() == 1


def test_studies_share_trials(results: Path) -> None:
    """A second study with the same baseline has its trials, and its own labels."""
    fabricate.study(results, outcome, variants=("base", "swiglu"), seeds=(0, 1), name="second")
    first, second = study_table(results, "made"), study_table(results, "second")
    shared = set(first["trial_id"]) & set(second["trial_id"])
    assert len(second) == 4 and len(shared) == 4
    assert len(list((results / "trials").iterdir())) == 9
    assert row(second, "base", 0)["loss"] == row(first, "base", 0)["loss"]


def test_axes_have_columns_of_their_own(tmp_path: Path) -> None:
    fabricate.study(tmp_path, lambda label: 2.0, axes=("dropout=0.1",))
    table = study_table(tmp_path, "made")
    assert set(table["train.dropout"]) == {0.1} and set(table["axes"]) == {"dropout=0.1"}


def test_no_such_study(results: Path) -> None:
    with pytest.raises(TableError, match="no study 'other'"):
        study_table(results, "other")


def test_a_study_that_is_not_whole(results: Path) -> None:
    (results / "studies" / "made" / "study.json").write_text('{"study": ')
    with pytest.raises(TableError, match=r"study\.json: not whole"):
        read_study(results, "made")


@pytest.mark.parametrize("kind", FILES)
def test_a_saved_table_is_read_back(results: Path, tmp_path: Path, kind: str) -> None:
    """With the same numbers, the same text, and the same results of the analysis."""
    table = study_table(results, "made")
    table["loss"] += 1 / 3
    back = read_table(save(table, tmp_path / f"trials{kind}"))
    typed(back)
    # pandas reads the last digits of CSV exactly, those of JSON not
    pd.testing.assert_frame_equal(back, table, rtol=1e-11 if kind == ".jsonl" else 1e-15, atol=0)
    for analyse in (comparison_table, overall_table):
        pd.testing.assert_frame_equal(analyse(back, "base"), analyse(table, "base"), rtol=1e-9)


@pytest.mark.parametrize("kind", FILES)
def test_ids_and_names_that_look_like_numbers_stay_text(tmp_path: Path, kind: str) -> None:
    """About one id in 300 has digits alone, or is a number as 12e45 is."""
    table = pd.DataFrame(
        {
            "trial_id": ["012345678901", "0000123e4567"],
            "variant": ["1", "2.50"],
            "size": ["064", "1e3"],
            "loss": [2, 3],
        }
    )
    back = read_table(save(table, tmp_path / f"t{kind}"))
    assert back[["trial_id", "variant", "size"]].to_numpy().tolist() == table.iloc[:, :3].to_numpy().tolist()


def test_a_dataframe_is_typed_and_left_alone() -> None:
    mine = pd.DataFrame({"variant": ["a"], "seed": [1.0], "loss": ["2.5"], "budget": [None], "mine": [(1, 2)]})
    back = read_table(mine)
    assert (back["loss"][0], back["seed"][0], back["budget"][0], back["mine"][0]) == (2.5, 1, "", (1, 2))
    assert mine["loss"][0] == "2.5"


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(
    ("column", "value", "dtype"), [("loss", "low", "float64"), ("seed", 1.5, "Int64"), ("tokens", "1k", "float64")]
)
def test_a_wrong_type_names_file_and_column(
    tmp_path: Path, kind: str, column: str, value: object, dtype: str
) -> None:
    file = save(pd.DataFrame({"variant": ["a"], column: [value]}), tmp_path / f"t{kind}")
    with pytest.raises(TableError) as error:
        read_table(file)
    assert str(error.value).startswith(f"{file}: column {column} must be {dtype}: ")


@pytest.mark.parametrize("kind", FILES)
def test_another_table_names_file_and_column(tmp_path: Path, kind: str) -> None:
    file = save(pd.DataFrame({"model": ["a"], "ppl": [3]}), tmp_path / f"t{kind}")
    with pytest.raises(TableError) as error:
        read_table(file)
    assert str(error.value) == f"{file}: no column variant; its columns: model, ppl"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.csv", b""),
        ("ragged.csv", b"variant,loss\na,1\nb,2,3,4\n"),
        ("binary.csv", b"\xff\xfe\x00\x01"),
        ("no.parquet", b"hello"),
        ("torn.jsonl", b'{"variant": "a"}\n{"vari'),
        ("absent.csv", None),
        ("table.xlsx", b""),
    ],
)
def test_what_cannot_be_read_names_the_file(tmp_path: Path, name: str, content: bytes | None) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(TableError) as error:
        read_table(file)
    assert str(error.value).startswith(f"{file}: ")
    if name.endswith("xlsx"):
        assert "known: .csv, .parquet, .jsonl" in str(error.value)


def test_columns_are_defined_once_and_told() -> None:
    assert len(BY_NAME) == len(COLUMNS) and set(LABELS) <= set(BY_NAME)
    assert all(column.meaning and column.dtype in ("string", "Int64", "float64", "boolean") for column in COLUMNS)
    assert set(ENDED) <= set(BY_NAME["status"].meaning.replace(";", " ").split())


def test_a_trained_study_fills_every_column(tmp_path: Path, write, token_cache: Path) -> None:
    """What the harness writes is what is read here: paths into the record cannot drift apart."""
    sets = ["train.tokens=512", "seeds=1", "axes.train.dropout=[0.1]", "train.diagnostics=[train_curve]"]
    grid = load_grid(write(TINY), sets)
    ledger = Ledger(tmp_path / "results")
    ledger.root.mkdir()
    ledger.cache.symlink_to(token_cache)
    plan = make_plan(grid, ledger.cache)
    write_study(ledger, plan)
    for trial in plan.trials:
        plan_trial(ledger, trial.spec)
        *_, last = run_trial(Job(trial.id, str(ledger.root), profile=True))
        assert last["status"] == "finished", ledger.trial(trial.id).record()
    table = study_table(ledger.root, grid.name)
    typed(table)
    afresh = [
        "error",
        "parent",
        "parent_seed",
        "forked_from",
        "forked_step",
        "forked_s",
        "cohort",
    ]  # nothing went wrong
    rest = table.drop(columns=afresh)
    assert rest.columns[rest.isna().any()].empty
    assert set(table["train.dropout"]) == {0.1} and set(table["variant"]) == {"plain", "rope"}
    assert (table["generalisation_gap"] == table["loss"] - table["train_loss"]).all()
    assert set(study_curves(ledger.root, grid.name)["split"]) == {"batch", "valid", "train", "test"}
