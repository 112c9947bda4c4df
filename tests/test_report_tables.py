"""The report's tables to cite: which there are, what they say, where their numbers lead, and that old files go."""

from __future__ import annotations

import json
import math
import re
import shutil
import statistics
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fabricate
import pandas as pd
import pytest
from browser import CHROMIUM, Browser, Tab
from layouts_made import comparisons, points
from scipy import stats
from test_layouts_latex import ENGINE, compiled

from analysis.isoflop import isoflop
from analysis.report import write_report
from analysis.report.bundles import table_bundles
from analysis.report.files import BEHIND, close_report
from analysis.report.scaling import Scaling
from analysis.report.verify import verify
from analysis.scaling import Optimum
from analysis.table import read_study, study_table
from analysis.tables import comparison_table

pytestmark = pytest.mark.filterwarnings("error")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")

SHIFTS = {"base": 0.0, "rope": -0.1, "alibi": 0.1, "sandwich": 0.0, "deep": 0.02}
NOISE = {"base": (0.0, 0.0, 0.0), "sandwich": (0.01, -0.01, 0.0)}
DIFFERS = {"rope": ["position"], "alibi": ["position"], "sandwich": ["pattern"], "deep": ["pattern"]}
ORDERS = {"sandwich": ("sfsfff", 1), "deep": ("sf", 3)}
LENGTHS = {"seq_len=64": 64, "seq_len=256": 256}


def loss(label: dict[str, Any]) -> float:
    variant, seed = label["variant"], label["seed"]
    noise = NOISE.get(variant, (0.0, 0.001, 0.003))[seed]
    value = 2.0 + SHIFTS[variant] + noise + seed / 50 - (label["axes"] == "seq_len=256") / 4
    return round(1024 * value) / 1024  # whole in binary, so that a curve ends with it


def tree_of(label: dict[str, Any]) -> dict[str, Any]:
    """What a trial was set to."""
    order, depth = ORDERS.get(label["variant"], ("sf", 3))
    position = label["variant"] if label["variant"] in ("rope", "alibi") else "learned"
    arch = {"depth": depth, "order": order, "d_model": 16, "position": {"name": position}, "model": None}
    arch["d_ff"] = 72 if position != "learned" else 64
    data = {"seq_len": LENGTHS.get(label["axes"], 64)}
    train = {"dropout": 0.1, **{f"a_setting_of_training_{k}": label["variant"] == "deep" for k in range(6)}}
    return {"arch": arch, "data": data, "train": train, "seed": label["seed"]}


def set_up(root: Path, labels: list[dict], tree: Callable[[dict], dict] = tree_of) -> None:
    """Give every trial a specification, and FLOPs of 1,000 + 10 n a token at length n."""
    for label in labels:
        folder = root / "trials" / label["id"]
        (folder / "spec.json").write_text(json.dumps(tree(label)))
        if (file := folder / "record.json").exists():
            record = json.loads(file.read_text())
            record["flops_per_token"] = 1000.0 + 10.0 * tree(label)["data"]["seq_len"]
            record["environment"] |= {"python": f"3.1{label['seed'] % 2}", "platform": "Linux-6"}
            file.write_text(json.dumps(record))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five variants at two lengths."""
    made = tmp_path_factory.mktemp("made")
    set_up(made, fabricate.study(made, loss, tuple(SHIFTS), axes=tuple(LENGTHS), differs=DIFFERS))
    return made


@pytest.fixture(scope="module")
def report(root: Path) -> Path:
    return write_report(root, "made").html.parent


def read(report: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(report / "tables" / f"{name}.csv", keep_default_na=False, na_values={})


def losses(variant: str, axes: str) -> list[float]:
    return [loss({"variant": variant, "seed": seed, "axes": axes}) for seed in range(3)]


def made_of(root: Path, scaling: Scaling | None = None) -> dict[str, Any]:
    """The layouts of a study without stages, and what was refused."""
    facts, table = read_study(root, "made"), study_table(root, "made")
    cells = comparison_table(table, "base")
    found = table_bundles(root, facts, table, cells, (pd.DataFrame(), pd.DataFrame()), scaling or Scaling())
    return {each.name: each for each in found.layouts} | {"refused": found.refused}


def test_a_study_has_the_tables_that_it_calls_for(report: Path) -> None:
    names = ["narang", "ordering", "position", "vaswani3", "complexity"]
    files = {f"{name}.{ending}" for name in names for ending in ("html", "md", "tex", "csv")} | {"tables.tex"}
    assert {file.name for file in (report / "tables").iterdir()} == files
    page, text = (report / "report.html").read_text(), (report / "report.md").read_text()
    assert re.findall(r'data-layout="(\w+)"', page) == names and "Not made" not in page + text
    for link in {f"tables/{file}" for file in files}:
        assert f'href="{link}"' in page and f"]({link})" in text


def test_modifications_have_the_means_of_their_trials(report: Path) -> None:
    """In groups, where slots have several variants."""
    rows = read(report, "narang")
    assert rows["group"].tolist() == [
        f"{axes}{group}" for axes in LENGTHS for group in ("", *[", position"] * 2, *[", pattern"] * 2)
    ]
    for row, (axes, variant) in zip(
        rows.to_dict("records"), [(axes, name) for axes in LENGTHS for name in SHIFTS], strict=True
    ):
        values = losses(variant, axes)
        ends = stats.t.interval(0.95, 2, statistics.mean(values), statistics.stdev(values) / 3**0.5)
        assert row["variant"] == variant
        assert float(row["loss"]) == pytest.approx(statistics.mean(values))
        assert (float(row["loss_lo"]), float(row["loss_hi"])) == pytest.approx(ends)
        verdict = {"base": "baseline", "rope": "better", "alibi": "worse", "deep": "worse"}.get(variant)
        assert row["loss_verdict"] == (verdict or "indistinguishable")


def test_orders_stand_in_the_cell_of_most_compute(root: Path, report: Path) -> None:
    """Both lengths have cost the same: then it is the first."""
    rows = read(report, "ordering")
    orders = {"sandwich": "sfsfff", **dict.fromkeys(("base", "rope", "alibi", "deep"), "sfsfsf")}
    assert dict(zip(rows["variant"], rows["order"], strict=True)) == orders
    assert rows["variant"].tolist() == ["alibi", "deep", "base", "sandwich", "rope"]  # the worst first
    assert [float(each) for each in rows["n_f"]] == [3, 3, 3, 4, 3]
    assert made_of(root)["ordering"].title == "Orders of sublayers at s, seq_len=64, tokens=100000"


def test_orders_that_come_to_the_same_are_no_table(tmp_path: Path) -> None:
    def tree(label: dict) -> dict:
        order = ("sf", 2) if label["variant"] == "base" else ("sfsf", 1)
        return {"arch": dict(zip(("order", "depth"), order, strict=True)), "data": {"seq_len": 8}}

    set_up(tmp_path, fabricate.study(tmp_path, lambda t: 2.0 + t["seed"] / 9), tree)
    assert list(made_of(tmp_path)) == ["narang", "vaswani3", "refused"]  # whose depths differ


def test_a_whole_model_has_no_order(tmp_path: Path) -> None:
    def tree(label: dict) -> dict:
        order = {"base": "sf", "turned": "fs", "lstm": "f"}[label["variant"]]
        return {"arch": {"order": order, "depth": 2, "model": "lstm" if label["variant"] == "lstm" else None}}

    labels = fabricate.study(tmp_path, lambda t: 2.0 + t["seed"] / 9, ("base", "turned", "lstm"))
    for label in labels:
        (tmp_path / "trials" / label["id"] / "spec.json").write_text(json.dumps(tree(label)))
    assert sorted(made_of(tmp_path)["ordering"].data["order"]) == ["fsfs", "sfsf"]


def test_variants_stand_against_cells(report: Path) -> None:
    rows = read(report, "position").set_index("variant")
    for axes in LENGTHS:
        assert float(rows.loc["rope", f"s, {axes}, tokens=100000 loss"]) == pytest.approx(
            statistics.mean(losses("rope", axes))
        )
    assert rows["group"].tolist() == ["", *["position"] * 2, *["pattern"] * 2]


def test_more_cells_than_columns_is_said(tmp_path: Path) -> None:
    budgets = tuple(range(100_000, 1_200_000, 100_000))
    labels = fabricate.study(tmp_path, lambda t: 2.0 + t["seed"] / 100, budgets=budgets, seeds=(0, 1))
    set_up(tmp_path, labels)
    found = made_of(tmp_path)
    assert found["refused"] == ["position: 11 cells are more than the 10 columns that fit; vaswani3 has rows"]
    assert "position" not in found and len(found["vaswani3"].data) == 22


def test_settings_that_differ_from_the_base(report: Path) -> None:
    rows = read(report, "vaswani3")
    assert rows["variant"].tolist() == [*SHIFTS] * 2 and rows["arch.d_ff"].tolist() == ["64", "72", "72", "", ""] * 2
    assert rows["arch.position"].tolist()[:5] == ["learned", "rope", "alibi", "", ""]
    assert [float(each) for each in rows["perplexity"][:2]] == pytest.approx(
        [math.exp(statistics.mean(losses(name, "seq_len=64"))) for name in ("base", "rope")]
    )


def test_costs_grow_with_the_length(root: Path, report: Path) -> None:
    rows = read(report, "complexity").set_index("variant")
    flops = {n: n * (1000 + 10 * n) for n in (64, 256)}
    p = math.log(flops[256] / flops[64]) / math.log(4)
    speeds = [5000.0 + seed**3 for seed in range(3)]
    trials = study_table(root, "made")
    for variant in SHIFTS:
        for n in (64, 256):
            assert float(rows.loc[variant, f"flops_{n}"]) == flops[n]
            assert float(rows.loc[variant, f"seconds_{n}"]) == pytest.approx(statistics.mean(n / v for v in speeds))
            mine = trials[(trials["variant"] == variant) & (trials["axes"] == f"seq_len={n}")]["trial_id"]
            assert rows.loc[variant, f"flops_{n}_trial_ids"].split() == mine.tolist()
        assert float(rows.loc[variant, "growth"]) == pytest.approx(p)
    notes = made_of(root)["complexity"].notes
    assert "of the whole model on one sequence" in notes[0] and "one layer" not in " ".join(notes)
    assert len(notes) == 2


def test_lengths_of_sizes_are_compared_with_a_warning(tmp_path: Path) -> None:
    """Sizes that differ in length and width share a row; those of several lengths each have rows of their own."""

    def tree(label: dict) -> dict:
        n = {"s": 64, "m": 256}[label["size"]] if label["axes"] == "" else LENGTHS[label["axes"]]
        return {"arch": {"d_model": {"s": 16, "m": 32}[label["size"]]}, "data": {"seq_len": n}}

    for name, axes in (("one", ("",)), ("two", tuple(LENGTHS))):
        labels = fabricate.study(tmp_path / name, lambda t: 2.0 + t["seed"] / 9, sizes=("s", "m"), axes=axes)
        set_up(tmp_path / name, labels, tree)
    one, two = (made_of(tmp_path / name)["complexity"] for name in ("one", "two"))
    assert one.data["variant"].tolist() == ["base", "rope"]
    assert one.notes[2] == "Not the length alone changes along a row, and p is of all: arch.d_model."
    assert two.data["variant"].tolist() == ["base (s)", "rope (s)", "base (m)", "rope (m)"] and len(two.notes) == 2
    assert '<a href="#variant-1">base (s)</a>' in write_report(tmp_path / "two", "made").html.read_text()


def test_scale_has_its_tables(root: Path) -> None:
    vertices = isoflop(points(), draws=20)
    found = made_of(
        root, Scaling(comparisons=comparisons(), optima=[Optimum("2", vertices), Optimum("1", note="no")], top=6e20)
    )
    assert list(found)[-4:] == ["isoflop", "optima", "scaling", "refused"]
    assert found["isoflop"].data["n"].tolist() == vertices.vertices["n"].tolist()
    assert found["optima"].title == "Compute-optimal sizes at 6×10²⁰ FLOPs, of base"
    assert found["scaling"].data["gain_low"].tolist() == [0.5]
    none = made_of(root, Scaling(comparisons=comparisons()[1:], optima=[Optimum("1", note="no")], top=6e20))
    assert not {"isoflop", "optima", "scaling"} & set(none)


def scored(root: Path, value: Callable[[dict], float]) -> None:
    """A headline metric of which higher values are better."""
    for label in fabricate.study(root, loss, ("base", "rope")):
        file = root / "trials" / label["id"] / "record.json"
        record = json.loads(file.read_text())
        record["metric"] = {"name": "accuracy", "better": "higher"}
        record["metrics"]["accuracy"] = value(label)
        file.write_text(json.dumps(record))


def test_a_verdict_stands_at_the_metric_that_it_is_of(tmp_path: Path) -> None:
    """rope's losses are lower, its accuracy is as good as the baseline's."""
    values = {"base": (0.5, 0.6, 0.7), "rope": (0.52, 0.58, 0.7)}
    scored(tmp_path, lambda label: values[label["variant"]][label["seed"]])
    data = made_of(tmp_path)["narang"].data.set_index("variant")
    assert data["verdict"].tolist() == ["", ""]
    assert data["validation accuracy verdict"].tolist() == ["baseline", "indistinguishable"]
    ends = stats.t.interval(0.95, 2, 0.6, statistics.stdev(values["rope"]) / 3**0.5)
    assert tuple(data.loc["rope", ["validation accuracy lo", "validation accuracy hi"]]) == pytest.approx(ends)


def test_groups_are_those_of_the_published_table(tmp_path: Path) -> None:
    fabricate.study(tmp_path, lambda t: 2.0 + t["seed"] / 9, ("base", "gelu", "rmsnorm", "mine"), differs=DIFFERS)
    file = tmp_path / "studies" / "made" / "study.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"published": "narang_table1"}))
    groups = made_of(tmp_path)["narang"].data["in_group"].tolist()
    assert groups == ["", "activations", "normalisation", "others"]


def test_what_cannot_be_made_says_why_once(tmp_path: Path) -> None:
    labels = fabricate.study(tmp_path, loss, ("base", "rope"), axes=tuple(LENGTHS))
    report = write_report(tmp_path, "made").html
    missing = f"ordering, vaswani3, complexity: trials/{labels[0]['id']}/spec.json is missing"
    for file in (report, report.with_suffix(".md")):
        assert file.read_text().count("Not made: ") == 1 and f"Not made: {missing}." in file.read_text()
    assert [file.stem for file in sorted((report.parent / "tables").glob("*.csv"))] == ["narang", "position"]


@pytest.mark.skipif(ENGINE is None, reason="neither tectonic nor pdflatex is there")
def test_the_document_of_all_tables_compiles(report: Path, tmp_path: Path) -> None:
    log = compiled((report / "tables" / "tables.tex").read_text(), tmp_path)
    assert "Missing character" not in log and int(re.search(r"\((\d+) pages", log)[1]) >= 3


def test_numbers_lead_to_trials_and_variants_to_configurations(report: Path) -> None:
    page = (report / "report.html").read_text()
    ids = set(re.findall(r'id="([\w-]+)"', page))
    tables = [ET.fromstring(each) for each in re.findall(r'<table class="layout".*?</table>', page, re.DOTALL)]
    assert len(tables) == 5
    for table in tables:
        links = {link.get("href") for link in table.iter("a")}
        assert links and {each.removeprefix("#") for each in links} <= ids
        for row in table.iterfind("tbody/tr"):
            assert row.get("class") == "group" or row.find(".//a[@href]") is not None
        names = {link.text: link.get("href") for link in table.iter("a") if link.text in SHIFTS}
        assert names == {name: f"#variant-{k}" for k, name in enumerate(SHIFTS, 1)}
    assert "variant-" not in (report / "tables" / "narang.html").read_text()  # it has no page around it


def test_a_number_that_was_changed_in_a_table_is_named(root: Path, report: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "copy")
    folder = tmp_path / "copy" / report.relative_to(root)
    changes = {"complexity.csv": ("base,104960.0", "base,104961.0"), "vaswani3.tex": ("learned", "larned")}
    for name, (old, new) in changes.items():
        file = folder / "tables" / name
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new, 1))
    (folder / "tables" / "ordering.md").unlink()
    (folder / "tables" / "my.csv").write_text("a")
    said = verify(folder)
    assert "tables/complexity.csv, base, flops_64: 104961.0, recomputed 104960.0" in said
    assert "tables/ordering.md: missing from the report" in said
    assert "tables/my.csv: not what the ledger makes" in said
    assert any(each.startswith("tables/vaswani3.tex, line ") and "larned" in each for each in said) and len(said) == 4


def test_the_environment_has_python_and_the_platform(report: Path) -> None:
    page = (report / "report.html").read_text()
    for what, value, n in (("python", "3.10", 20), ("python", "3.11", 10), ("platform", "Linux-6", 30)):
        assert f'<th scope="row" class="l">{what}</th><td class="l">{value}</td><td>{n}</td>' in page


# ---- files of the report before


def test_a_table_that_is_not_there_any_more_goes(tmp_path: Path) -> None:
    labels = fabricate.study(tmp_path, loss, ("base", "sandwich"), seeds=(0, 1))
    set_up(tmp_path, labels)
    folder = write_report(tmp_path, "made").html.parent
    assert len(list((folder / "tables").glob("ordering.*"))) == 4
    for label in labels:
        file = tmp_path / "trials" / label["id"] / "spec.json"
        file.write_text(file.read_text().replace("sfsfff", "sfsfsf"))
    write_report(tmp_path, "made")
    listed = json.loads((folder / BEHIND).read_text())["files"]
    left = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert left == {*listed, BEHIND} and not [name for name in left if "ordering" in name]


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Path]:
    """Results and a report of two files, of a study of which nothing has run."""
    fabricate.study(tmp_path, lambda label: None)
    folder = tmp_path / "studies" / "made" / "report"
    for name in ("report.md", "tables/old.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    close_report(tmp_path, "made", folder, [folder / "report.md", folder / "tables" / "old.csv"])
    return tmp_path, folder


def test_files_of_the_report_before_go_and_the_folder_with_the_last(written: tuple[Path, Path]) -> None:
    results, folder = written
    close_report(results, "made", folder, [folder / "report.md"])
    assert sorted(file.name for file in folder.iterdir()) == [BEHIND, "report.md"]


def test_what_somebody_else_wrote_stays(written: tuple[Path, Path]) -> None:
    """Files of their own, and files of the report that they have changed."""
    results, folder = written
    own = [folder / "notes.md", folder / "tables" / "my.csv", folder / "tables" / "old.csv"]
    for file in own:
        file.write_text("mine")
    close_report(results, "made", folder, [folder / "report.md"])
    assert [file.read_text() for file in own] == ["mine"] * 3


def test_nothing_outside_of_the_report_is_removed(written: tuple[Path, Path]) -> None:
    results, folder = written
    outside = results / "outside.csv"
    outside.write_text("tables/old.csv")
    digest = json.loads((folder / BEHIND).read_text())["files"]["tables/old.csv"]
    behind = {"files": {"../../../outside.csv": digest, str(outside): digest, "tables": digest, "gone": digest}}
    for text in (json.dumps(behind), json.dumps({"files": ["tables/old.csv"]}), "[]", "{", ""):
        (folder / BEHIND).write_text(text)
        close_report(results, "made", folder, [folder / "report.md"])
        assert outside.exists() and (folder / "tables" / "old.csv").exists()


# ---- in a browser


@pytest.fixture(scope="module")
def tab(report: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with Browser(tmp_path_factory.mktemp("browser") / "profile") as browser:
        made = Tab(browser)
        made.media()
        made.open(report / "report.html")
        made.run("document.querySelectorAll('details.cited').forEach((e) => (e.open = true))")
        yield made
        assert (made.errors(), made.requests()) == ([], [(report / "report.html").as_uri()])


TABLE = "document.querySelector('[data-layout=narang]')"
SEEN = f"[...{TABLE}.querySelectorAll('tbody tr')].filter((e) => e.offsetHeight).map((e) => e.cells[0].textContent)"


@needs_chromium
def test_rows_are_sorted_and_filtered_within_their_groups(tab: Tab) -> None:
    before = tab.run(SEEN)
    assert before[:6] == ["seq_len=64", "base", "seq_len=64, position", "rope", "alibi", "seq_len=64, pattern"]
    button = (
        f"[...{TABLE}.tHead.rows[0].cells].find((e) => e.textContent.startsWith('Final')).querySelector('button')"
    )
    tab.click(button)
    tab.click(button)
    after = tab.run(SEEN)
    assert after[:8] == [*before[:3], "alibi", "rope", before[5], "deep", "sandwich"]
    tab.click(button)
    assert tab.run(SEEN) == before
    tab.click(f"{TABLE}.tHead.rows[0].cells[0].querySelector('button')")
    assert tab.run(SEEN)[2:5] == ["seq_len=64, position", "alibi", "rope"]
    tab.click(f"{TABLE}.tHead.rows[0].cells[0].querySelector('button')")
    tab.click(f"{TABLE}.tHead.rows[0].cells[0].querySelector('button')")
    box = f"{TABLE}.closest('details').querySelector('[type=search]')"
    tab.click(box)
    tab.type("sandw")
    assert tab.run(SEEN) == ["seq_len=64, pattern", "sandwich", "seq_len=256, pattern", "sandwich"]
    tab.run(f"{box}.value = ''; {box}.dispatchEvent(new Event('input'))")


@needs_chromium
def test_numbers_sort_by_their_values_whatever_the_sign_in_print(tab: Tab) -> None:
    table = TABLE.replace("narang", "vaswani3")
    heading = f"{table}.querySelector('th[data-key=diff]')"
    cells = f"[...{table}.tBodies[0].rows].slice(1).map((e) => e.cells[{heading}.cellIndex].textContent)"
    before = tab.run(cells)
    tab.click(f"{heading}.querySelector('button')")
    after = [float(each.split()[0].replace("−", "-")) for each in tab.run(cells) if each]
    assert after == sorted(after) and len(after) == 4 and after[0] < 0 and any("−" in each for each in before)
    tab.click(f"{heading}.querySelector('button')")
    tab.click(f"{heading}.querySelector('button')")
    assert tab.run(cells) == before


@needs_chromium
def test_a_number_opens_to_its_trials_and_leads_to_one(tab: Tab) -> None:
    cell = f"{TABLE}.querySelector('tbody td.better')"
    tab.click(f"{cell}.querySelector('summary')")
    tab.click(f"{cell}.querySelector('a')")
    target = tab.run("document.querySelector('tr:target').textContent")
    assert target.startswith(tab.run("location.hash.slice(1)")) and "rope" in target


@needs_chromium
def test_paper_has_the_tables_without_lists_of_trials(tab: Tab) -> None:
    tab.media("print")
    tab.run("document.querySelectorAll('details.cited').forEach((e) => (e.open = false))")
    opened = tab.run("document.querySelectorAll('.trials[open]').length")
    tab.run("window.dispatchEvent(new Event('beforeprint'))")
    assert tab.run("document.querySelectorAll('.trials[open]').length") == opened
    assert tab.run(f"{TABLE}.offsetHeight") > 100
    assert tab.run("[...document.querySelectorAll('.trials a')].every((e) => !e.offsetHeight)")
    tab.resize(1032, 700)  # what A4 across leaves between its margins
    assert tab.run(
        "[...document.querySelectorAll('.layout')].every((e) => e.getBoundingClientRect().right <= innerWidth)"
    )
    tab.media()
