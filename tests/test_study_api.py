"""Studies from Python: what is read is what the command writes; scripts and notebooks run as the command does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fabricate
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, TINY
from hypothesis import given
from hypothesis import strategies as st
from runs import LONG, curves, events, new_results, run_here, under_way, with_database
from test_docs import blocks

import ablate
from ablate.cli import parser
from ablate.run.ledger import Ledger
from ablate.run.options import OPTIONS, RunOptions
from ablate.study import Study
from ablate.yamlfile import document_of, parse_yaml
from analysis import layouts

PAGE = ROOT / "docs" / "python.md"
NOTEBOOK = ROOT / "docs" / "examples" / "custom_figure.ipynb"
TREE: dict[str, Any] = parse_yaml(TINY, Path("grid")).value
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, token_cache: Path) -> Study:
    """TINY, run from a mapping. Only read."""
    ledger = with_database(new_results(tmp_path_factory.mktemp("ran") / "results", token_cache))
    study = ablate.load(TREE, ledger.root)
    assert study.run(workers=0).exit_code == 0
    return study


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Three sizes and two budgets whose losses follow a law of n and d, up to a little noise of seeds."""
    root = tmp_path_factory.mktemp("made")
    budgets = (100_000, 200_000, 400_000)
    params = fabricate.PARAMS

    def loss(label: dict[str, Any]) -> float:
        d = float(label["budget"].removeprefix("tokens="))
        help_ = 0.1 if label["variant"] == "rope" else 0.0
        return 1.5 - help_ + 20 / params[label["size"]] ** 0.4 + 30 / d**0.3 + label["seed"] / 1000

    fabricate.study(root, loss, sizes=("s", "m", "l"), budgets=budgets)
    return ablate.open_study("made", root)


def ids(study: Study) -> list[str]:
    return [trial.id for trial in study.plan().source.trials]


# The grid


def test_a_path_a_text_and_a_mapping_are_one_grid(write: Write, ledger: Ledger) -> None:
    file = write(TINY)
    studies = [ablate.load(each, ledger.root) for each in (file, str(file), TINY, TREE)]
    assert len({tuple(ids(each)) for each in studies}) == 1 and len(ids(studies[0])) == 4
    assert {each.name for each in studies} == {"tiny"}


def test_overrides_are_those_of_the_command(ledger: Ledger, write: Write) -> None:
    given_ = ablate.load(TREE, ledger.root, {"seeds": [5], "train.lr": 1e-4, "train.schedule": {"name": "constant"}})
    command = ["--set", "seeds=[5]", "--set", "train.lr=1e-4", "--set", "train.schedule={name: constant}"]
    code, said = run_here("plan", write(TINY), "--results", ledger.root, *command)
    assert code == 0 and repr(given_.plan()) == "\n".join(line.rstrip() for line in said.splitlines())
    assert [trial.spec.seed for trial in given_.plan().source.trials] == [5, 5]
    assert given_.plan().source.rows[0].spec.train.lr == 1e-4


def test_arrays_and_paths_may_stand_in_a_mapping(ledger: Ledger) -> None:
    tree = TREE | {"axes": {"train.lr": np.geomspace(1e-3, 1e-2, 3)}, "seeds": np.int64(1)}
    rates = [row.spec.train.lr for row in ablate.load(tree, ledger.root).plan().source.rows[::2]]
    assert rates == pytest.approx(np.geomspace(1e-3, 1e-2, 3))
    assert document_of({"plugins": [Path("a") / "b.py"]}, Path("grid")).value == {"plugins": ["a/b.py"]}


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"))
)
LIKE_OTHERS = st.sampled_from(
    ["1e-3", "1_000", "0x1F", "on", "null", "~", ".inf", "- a", "a: b", "# no", "", "<<", "="]
)
KEYS_ = st.text("abc.-_#: 1", min_size=1)
TREES = st.recursive(
    SCALARS | LIKE_OTHERS, lambda inner: st.lists(inner) | st.dictionaries(KEYS_, inner), max_leaves=9
)


@given(TREES)
def test_a_tree_reads_as_it_is(tree: Any) -> None:
    """Whatever text looks like; what YAML cannot hold is refused."""
    try:
        read = document_of({"key": tree}, Path("grid")).value
    except ablate.UserError as error:
        assert "not YAML: holds the character" in str(error)
        return
    assert repr(read) == repr({"key": tree})


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "mapping": (
        TREE | {"variants": {"plain": {}, "r": {"arch.position": "ropee"}}},
        {},
        r"^grid: variants\.r\.arch\.position: unknown position 'ropee'; did you mean 'rope'\? known: ",
    ),
    "text": (TINY.replace("seeds: 2", "sedes: 2"), {}, r"^grid:9: sedes: unknown key 'sedes'; did you mean 'seeds'"),
    "file": ("absent.yaml", {}, r"^absent\.yaml does not exist$"),
    "number": (3, {}, r"^3 is no grid: give the path of a grid\.yaml, its text, or a mapping$"),
    "value": (
        TREE | {"seeds": {1, 2}},
        {},
        r"^grid: seeds: \{1, 2\} is a set: only text, numbers, lists and mappings$",
    ),
    "key": (TREE | {None: 1}, {}, r"^grid: a key must be text, and None is not$"),
    "override": (TREE, {"train.rl": 1}, r"train\.rl: .*unknown"),
    "override's value": (TREE, {"seeds": object}, r"^overrides: seeds: <class 'object'> is a type"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_grids_are_answered_with_the_place(ledger: Ledger, name: str) -> None:
    grid, overrides, message = WRONG[name]
    with pytest.raises(ablate.UserError, match=message):
        ablate.load(grid, ledger.root, overrides).plan()


def test_a_mapping_that_contains_itself_is_refused(ledger: Ledger) -> None:
    tree: dict[str, Any] = {}
    tree["base"] = tree
    with pytest.raises(ablate.UserError, match="contains itself"):
        ablate.load(tree, ledger.root)


# The options of a run


def test_options_are_those_of_the_command() -> None:
    command = vars(parser().parse_args(["run", "grid.yaml"]))
    others = {"grid", "overrides", "as_profile", "results", "action", "command"}
    assert asdict(RunOptions()) == {key: value for key, value in command.items() if key not in others}
    said = (Study.run.__doc__ or "", PAGE.read_text())
    assert all(name in text for text in said for name in OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"worker": 2}, "unknown option of a run 'worker'; did you mean 'workers'"),
        ({"workers": -1}, "workers -1 must be a whole number from 0"),
        ({"workers": "2"}, "workers '2' must be"),
        ({"executor": "slurm"}, "unknown executor 'slurm'; known: local, ray"),
        ({"max_hours": 0}, "max_hours 0 must be a number of hours above 0"),
        ({"budget": "much"}, "much"),
        ({"budget": 8}, "budget 8 must be text"),
        ({"address": "auto"}, "--address names a Ray cluster"),
    ],
)
def test_wrong_options_run_nothing(ledger: Ledger, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ablate.UserError, match=message):
        ablate.load(TREE, ledger.root).run(**options)
    assert ledger.study_names() == []


# What was run


def test_before_a_run_there_is_nothing_to_read(ledger: Ledger) -> None:
    study = ablate.load(TREE, ledger.root)
    for method in (study.trials, study.curves, study.table, study.compare, study.fit, study.status, study.report):
        with pytest.raises(ablate.UserError, match=r"study 'tiny' has no results in .* yet: run\(\) it first"):
            method()


def test_an_unknown_study_is_answered_with_the_known(ran: Study) -> None:
    with pytest.raises(ablate.UserError, match="unknown study 'tniy'; did you mean 'tiny'"):
        ablate.open_study("tniy", ran.results)


def test_plan_shows_and_gives_numbers(ran: Study) -> None:
    plan = ran.plan()
    assert "4 trials over seeds [0, 1], 4 already done" in repr(plan)
    assert "<td" in plan._repr_html_() and "match: params within 1.0%" in plan._repr_html_()
    frame = plan.to_frame()
    assert list(frame["name"]) == ["plain", "rope"] and list(frame["trials"]) == [2, 2]
    assert frame["residual_params"].abs().max() <= 0.01 and (frame["params_total"] > 0).all()


def test_tables_are_those_of_the_report(ran: Study) -> None:
    folder = ran.ledger.study_folder("tiny") / "report"
    for view, name in ((ran.table(), "comparison"), (ran.compare(), "overall")):
        wanted = pd.read_csv(folder / f"{name}.csv")
        frame = view.to_frame()
        assert list(frame) == list(wanted) and len(frame) == len(wanted)
        assert frame["diff"].to_numpy() == pytest.approx(wanted["diff"].to_numpy(), nan_ok=True)
        assert "rope" in repr(view) and "rope" in view._repr_html_()
    assert layouts.html(ran.table("narang").source) == (folder / "tables" / "narang.html").read_text()
    with pytest.raises(ablate.UserError, match="unknown layout 'naranga'; did you mean 'narang'"):
        ran.table("naranga")


def test_a_view_cannot_be_changed_by_its_frame(ran: Study) -> None:
    view = ran.table()
    frame = view.to_frame()
    frame["loss"] = 0.0
    assert (view.to_frame()["loss"] > 1).all()


def test_trials_and_curves_are_tidy(ran: Study) -> None:
    trials, rows = ran.trials(), ran.curves()
    assert list(trials["trial_id"]) == ids(ran) and trials["loss"].notna().all()
    last = rows[rows["split"] == "valid"].groupby("trial_id")["tokens"].max()
    assert (last == 6400).all() and set(last.index) == set(ids(ran))


def test_another_baseline_turns_the_difference(made: Study) -> None:
    assert "difference from rope" in repr(made.compare("rope"))
    ours, theirs = made.compare().to_frame(), made.compare("rope").to_frame()
    assert list(theirs["variant"]) == ["base"] and theirs["diff"][0] == pytest.approx(-ours["diff"][0])
    with pytest.raises(ablate.UserError, match="unknown variant 'alibi'; known: base, rope"):
        made.compare("alibi")


@pytest.mark.parametrize("form", ["power_offset", "chinchilla"])
def test_laws_are_fitted_to_each_variant(made: Study, form: str) -> None:
    fits = made.fit(form)
    frame = fits.to_frame().set_index("variant")
    assert list(frame.index) == ["base", "rope"] and (frame["alpha_lo"] <= frame["alpha_hi"]).all()
    if form == "chinchilla":
        assert frame.loc["base", ["E", "alpha", "beta"]].to_list() == pytest.approx([1.5, 0.4, 0.3], rel=0.05)
        point = {"n": [4_000], "d": [200_000]}
        gain = fits.source["base"].predict(point) - fits.source["rope"].predict(point)
        assert gain[0] == pytest.approx(0.1, rel=0.05)
    assert "L = E + A" in repr(fits) and "L = E + A" in fits._repr_html_()


def test_wrong_fits_are_refused(made: Study) -> None:
    for options, message in (
        ({"form": "chincilla"}, "unknown form 'chincilla'"),
        ({"x": "flops"}, "unknown column 'flops'"),
        ({"form": "error_sigmoid"}, "reads l, which a study's trials do not have"),
    ):
        with pytest.raises(ablate.UserError, match=message):
            made.fit(**options)


def test_the_report_shows_itself(ran: Study, tmp_path: Path) -> None:
    page = ran.report()
    assert page.path.is_file() and page.markdown.is_file() and str(page.path) in repr(page)
    assert "srcdoc=" in page._repr_html_() and "difference from plain" in page.summary
    figure = ran.figures()["differences"]
    figure.save(tmp_path / "mine.svg")
    assert (tmp_path / "mine.svg").read_bytes() == (page.path.parent / "differences.svg").read_bytes()
    assert "data:image/svg+xml" in figure._repr_html_()
    assert page.figures._repr_html_().count("<figcaption>Paired difference") == 1


def test_status_is_that_of_the_command(ran: Study) -> None:
    said = run_here("status", "tiny", "--results", ran.results)[1]
    assert repr(ran.status()) == said.rstrip("\n") and ran.status().source["finished"] == 4
    assert list(ran.status().to_frame()["id"]) == ids(ran)


# Running


def test_nothing_is_trained_twice_also_by_its_name(ran: Study, capsys: pytest.CaptureFixture[str]) -> None:
    again = ablate.open_study("tiny", ran.results)
    outcome = again.run(workers=0)
    assert not outcome.trained and sorted(outcome.reused) == sorted(ids(again))
    assert repr(outcome) == "<trained 0, reused 4: 4 finished>"
    assert "tiny: 4 trials, 4 already done" in capsys.readouterr().out


@pytest.mark.slow
def test_an_interrupt_leaves_checkpoints_and_a_second_run_goes_on(
    ledger: Ledger, undisturbed_long: Ledger, write: Write
) -> None:
    study = ablate.load(LONG, with_database(ledger).root)
    before, over = signal.getsignal(signal.SIGINT), threading.Event()

    def interrupt() -> None:
        while not over.wait(0.01):
            if any(len(ledger.trial(each).rows()) > 5 for each in ledger.trial_ids()):
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt, match=r"run\(\) again goes on"):
            study.run(workers=0)
    finally:
        over.set()
        thread.join()
    assert signal.getsignal(signal.SIGINT) is before
    (folder,) = under_way(ledger)
    assert events(folder) == ["start", "stop"]
    assert study.run(workers=0).exit_code == 0
    assert "resume" in events(folder) and curves(ledger) == curves(undisturbed_long)


def test_a_thread_of_its_own_may_run_a_study(ledger: Ledger) -> None:
    study = ablate.load(TREE, with_database(ledger).root, {"seeds": 1})
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(study.run(workers=0)))
    thread.start()
    thread.join()
    assert found[0].exit_code == 0 and len(found[0].trained) == 2


def test_a_script_needs_no_guard_around_its_top_level(ledger: Ledger, write: Write) -> None:
    """Workers are processes, and would begin the script again if they imported it."""
    grid, root = write(TINY), with_database(ledger).root
    script = write(
        f"import ablate\nablate.load({str(grid)!r}, {str(root)!r}, {{'seeds': 1}}).run(workers=1)\n", "a.py"
    )
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tiny: 2 trials") == 1 and "trained 2, reused 0: 2 finished" in done.stdout


def test_a_notebook_completes_the_names_and_shows_messages_alone() -> None:
    assert {"load", "open_study", "register", "UserError"} <= set(dir(ablate))
    assert ablate.UserError("seeds: 0 is too few")._render_traceback_() == ["ablate: seeds: 0 is too few"]


# The page and the notebook


@pytest.mark.slow
def test_the_examples_of_the_page_run(write: Write, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, in the folder of the page's grid."""
    (grid,) = blocks(PAGE, "yaml")
    monkeypatch.chdir(write(grid).parent)
    monkeypatch.setenv("MPLBACKEND", "agg")
    with_database(ledger)
    names: dict[str, Any] = {}
    for code in blocks(PAGE, "python"):
        exec(compile(code, PAGE.name, "exec"), names)
    assert "\\begin{table}" in names["tex"] and names["best"] in ("plain", "rope")
    assert Path("differences.svg").is_file() and Path("difference.svg").is_file()


def test_the_page_names_every_method() -> None:
    methods = [name for name in vars(Study) if not name.startswith("_") and callable(getattr(Study, name))]
    assert len(methods) == 10
    assert all(f"| `{name}(" in PAGE.read_text() or f", `{name}(" in PAGE.read_text() for name in methods)
    assert all(getattr(Study, name).__doc__ for name in methods)


@pytest.mark.slow
def test_the_notebook_runs_from_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code), "the notebook is kept without outputs"
    (folder := tmp_path / "empty").mkdir()
    client.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    kinds = [{kind for out in cell.outputs for kind in out.get("data", {})} for cell in code]
    assert all("text/html" in found for found in (kinds[0], *kinds[2:5])) and "image/png" in kinds[-1]
    said = "".join(out["text"] for out in code[1].outputs if out.output_type == "stream")
    assert "12 trials, 0 already done" in said and "trained 12, reused 0: 12 finished" in said
    assert said.count("finished gpt") == 6 and "\x1b" not in said  # plain lines, and no cursor is moved
    assert (folder / "difference.svg").is_file()
