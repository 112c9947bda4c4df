"""The report of a made-up study: every number in it is worked out here a second time, by other means."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import statistics
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import fabricate
import numpy as np
import pandas as pd
import pytest
from fabricate import PARAMS, UNIGRAM
from scipy import stats

from analysis.report import Report, write_report
from analysis.table import finished, read_table, study_table
from analysis.tables import comparison_table, overall_table
from analysis.variants import fit_variants

pytestmark = pytest.mark.filterwarnings("error")  # of whichever library

SIZES = ("s", "m", "l", "xl")
VARIANTS = ("base", "rope", "swiglu+rmsnorm", "mystery")
DIFFERS = {"rope": ["position"], "swiglu+rmsnorm": ["channel"], "mystery": ["norm", "position"]}
SHIFTS = {  # by seed: of the baseline's loss, and of the others' from it
    "base": (-0.02, 0.0, 0.02),
    "rope": (-0.11, -0.10, -0.09),
    "swiglu+rmsnorm": (0.01, -0.02, 0.01),
    "mystery": (0.21, 0.20, 0.22),
}
MISSING = {("mystery", "s", 2): "failed", ("mystery", "m", 1): "diverged", ("mystery", "l", 0): None}
EQUAL = "≈ baseline"
VOID = {"meta", "img", "br", "hr", "link", "input"}


def loss(label: dict) -> float | str | None:
    variant, size, seed = (label[name] for name in ("variant", "size", "seed"))
    if (variant, size, seed) in MISSING:
        return MISSING[variant, size, seed]
    base = 1.8 + 2 * (PARAMS[size] / 1000) ** -0.3 + SHIFTS["base"][seed]
    return base if variant == "base" else base + SHIFTS[variant][seed]


class Page(HTMLParser):
    """A page's text, tables and links, layouts aside. Raises when its tags are not balanced."""

    def __init__(self, text: str):
        super().__init__()
        text = re.sub(r'<table class="layout".*?</table>', "", text, flags=re.DOTALL)
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def markdown_tables(text: str) -> list[list[list[str]]]:
    tables: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")
            tables[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif tables[-1]:
            tables.append([])
    return [table for table in tables if table]


def read(report: Report, kind: str) -> dict[str, list[dict[str, str]]]:
    """The tables of a report by their first and last headings, rows as dictionaries; all rows must be as wide."""
    if kind == "html":
        tables = Page(report.html.read_text()).tables
    else:
        tables = markdown_tables(report.markdown.read_text())
        for table in tables:
            assert all(re.fullmatch(r"-{3,}:?", cell) for cell in table.pop(1))
    for table in tables:
        assert {len(row) for row in table} == {len(table[0])}, table[0]
    return {
        f"{table[0][0]}, {table[0][-1]}": [dict(zip(table[0], row, strict=True)) for row in table[1:]]
        for table in tables
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    fabricate.study(root, loss, VARIANTS, SIZES, differs=DIFFERS)
    return root


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    return write_report(folder, "made")


@pytest.fixture(scope="module")
def labels(folder: Path) -> list[dict]:
    return json.loads((folder / "studies" / "made" / "study.json").read_text())["trials"]


def losses(labels: list[dict], variant: str, size: str) -> dict[int, float]:
    """By seed, of the finished trials of a cell."""
    mine = {t["seed"]: loss(t) for t in labels if (t["variant"], t["size"]) == (variant, size)}
    return {seed: value for seed, value in mine.items() if isinstance(value, float)}


def plus_minus(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def interval(d: list[float]) -> str:
    found = stats.ttest_1samp(d, 0).confidence_interval(0.95)
    return f"{statistics.mean(d):+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


@pytest.mark.parametrize("kind", ["html", "md"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_comparison_has_the_known_numbers(report: Report, labels: list[dict], kind: str, variant: str) -> None:
    rows = read(report, kind)["cell, trials"]
    rows = [row for row in rows if row["variant"] == variant]
    assert [row["cell"] for row in rows] == [f"{size}, tokens=100000" for size in SIZES]
    for size, row in zip(SIZES, rows, strict=True):
        mine, base = losses(labels, variant, size), losses(labels, "base", size)
        ids = [t["id"] for t in labels if (t["variant"], t["size"]) == (variant, size)]
        assert row["parameters"] == f"{PARAMS[size]:,}" and row["FLOP/token"] == f"{2 * PARAMS[size]:,}"
        assert row["tokens/s"] == f"{statistics.median(speeds(labels, variant, size)):,.0f}"
        assert row["final loss"] == plus_minus(list(mine.values()))
        assert row["early loss"] == plus_minus([fabricate.early(each) for each in mine.values()])
        assert row["bits/byte"] == f"{1.4 * statistics.mean(mine.values()):.4f}"
        assert row["n"].split()[0] == str(len(mine))
        assert row["differs in"].removesuffix(" confounded").removesuffix(" (confounded)") == ", ".join(
            DIFFERS.get(variant, [])
        )
        assert ("confounded" in row["differs in"]) == (variant == "mystery")
        assert row["trials"] == (" ".join(ids) if kind == "md" else "".join(each[:6] for each in ids))
        if variant == "base":
            assert (row["difference, 95 %"], row["verdict"], row["vs base"]) == ("", "baseline", "+0.00%")
        else:
            assert row["difference, 95 %"] == interval([mine[seed] - base[seed] for seed in mine])
            assert row["vs base"] == "+0.42%"


def speeds(labels: list[dict], variant: str, size: str) -> list[float]:
    """Of the trials whose throughput is known: all but those that failed or have not run."""
    mine = (t for t in labels if (t["variant"], t["size"]) == (variant, size))
    return [5000 + t["seed"] ** 3 for t in mine if loss(t) not in ("failed", None)]


@pytest.mark.parametrize("kind", ["html", "md"])
def test_what_did_not_finish_is_counted_and_listed(report: Report, labels: list[dict], kind: str) -> None:
    tables = read(report, kind)
    counted = [row["n"] for row in tables["cell, trials"] if row["variant"] == "mystery"]
    assert counted == ["2 (1 failed)", "2 (1 diverged)", "2 (1 pending)", "3"]
    problems = tables["trial, reason"]
    ids = {size: [t["id"] for t in labels if (t["variant"], t["size"]) == ("mystery", size)] for size in SIZES}
    assert [row["trial"] for row in problems] == [ids["s"][2], ids["m"][1]]
    assert [row["status"] for row in problems] == ["failed", "diverged"]
    reason = {"html": "ValueError: a | b\nis <not> right", "md": r"ValueError: a \| b is <not> right"}[kind]
    assert [row["reason"] for row in problems] == [reason, "the loss is nan at step 90"]


def by_seed(cells: list[dict[int, float]]) -> list[float]:
    """A value a seed: the mean over cells, and what the seed adds to it times the number of seeds."""
    means = [np.mean(list(cell.values())) for cell in cells]
    seeds = {seed for cell in cells for seed in cell}
    added = {
        seed: sum((cell[seed] - m) / len(cell) for cell, m in zip(cells, means, strict=True) if seed in cell)
        for seed in seeds
    }
    return [np.mean(means) + len(seeds) * each / len(cells) for each in added.values()]


@pytest.mark.parametrize("kind", ["html", "md"])
def test_verdicts(report: Report, labels: list[dict], kind: str) -> None:
    """Per cell after Holm over the twelve comparisons; over all cells, a value a seed, after Holm over the three
    variants."""
    tables = read(report, kind)
    verdicts: dict[str, list[str]] = {}
    for row in tables["cell, trials"]:
        verdicts.setdefault(row["variant"], []).append(row["verdict"])
    assert verdicts["rope"] == ["better"] * 4 and verdicts["swiglu+rmsnorm"] == [EQUAL] * 4
    assert verdicts["mystery"] == [EQUAL, EQUAL, EQUAL, "worse"]  # two pairs: p is 0.015 to 0.03, before Holm
    rows = tables["variant, over"]
    pairs = {}
    for variant in VARIANTS[1:]:
        cells = []
        for size in SIZES:
            mine, base = losses(labels, variant, size), losses(labels, "base", size)
            cells.append({seed: mine[seed] - base[seed] for seed in mine})
        pairs[variant] = by_seed(cells)
    p = {variant: stats.ttest_1samp(d, 0).pvalue for variant, d in pairs.items()}
    ranked = sorted(p, key=p.get)
    for row, variant in zip(rows, VARIANTS[1:], strict=True):
        assert (row["variant"], row["seeds"]) == (variant, str(len(pairs[variant])))
        assert row["difference, 95 %"] == interval(pairs[variant])
        holm = max(min(1, (3 - rank) * p[each]) for rank, each in enumerate(ranked[: ranked.index(variant) + 1]))
        assert float(row["p (Holm)"]) == pytest.approx(holm, rel=0.05)
    assert [row["verdict"] for row in rows] == ["better", EQUAL, "worse"]


@pytest.mark.parametrize("kind", ["html", "md"])
def test_fitted_laws(report: Report, kind: str) -> None:
    """The losses were made from E = 1.8 and alpha = 0.3; rope's are 0.1 below at every size."""
    rows = {row["variant"]: row for row in read(report, kind)["variant, beware"]}
    alpha = "α" if kind == "html" else "alpha"
    assert list(rows) == list(VARIANTS)
    for variant, E in (("base", 1.8), ("rope", 1.7)):
        low, high = map(float, re.fullmatch(r".* \[(.*), (.*)\]", rows[variant]["E"]).groups())
        assert float(rows[variant]["E"].split()[0]) == E and low < E < high
        assert rows[variant][alpha].startswith("0.3 [0.2")
    assert (rows["base"]["trials"], rows["base"]["points"], rows["mystery"]["trials"]) == ("12", "4", "9")


def test_what_the_study_was(report: Report) -> None:
    page, text = Page(report.html.read_text()).text, report.markdown.read_text()
    for words in (
        "Question: does it help?",
        "48: 1 diverged, 1 failed, 45 finished, 1 pending; seeds 0, 1, 2",
        "params within 1.0%",
        "kjv, bytes, vocabulary 256, 3,954,658 training tokens",
        f"unigram entropy {UNIGRAM} (loss)",
    ):
        assert words in page and words in text
    assert "not all run alike" not in page + text


def test_the_summary_says_every_verdict_and_the_unigram_entropy(report: Report, labels: list[dict]) -> None:
    lines = report.summary.splitlines()
    final = [value for t in labels if isinstance(value := loss(t), float)]
    means = [statistics.mean(losses(labels, variant, size).values()) for variant in VARIANTS for size in SIZES]
    assert f"{min(means):.4f} to {max(means):.4f}" in lines[0] and f"{UNIGRAM:.4f}" in lines[0]
    assert min(final) < min(means)
    verdicts = list(zip(VARIANTS[1:], ("better", EQUAL, "worse"), strict=True))
    for line, (variant, verdict) in zip(lines[2:5], verdicts, strict=True):
        assert line.split()[0] == variant and line.endswith(verdict) and " n=" in line
    assert lines[5] == f"on test data, {min(means) + 0.02:.4f} to {max(means) + 0.02:.4f}:"
    for line, (variant, verdict) in zip(lines[6:], verdicts, strict=True):
        assert line.split()[0] == variant and line.endswith(verdict)


def test_all_trials_are_listed_and_linked(report: Report, labels: list[dict]) -> None:
    page = Page(report.html.read_text())
    rows = read(report, "html")["trial, wall s"]
    assert [row["trial"] for row in rows] == [t["id"] for t in labels]
    expected = ["" if not isinstance(loss(t), float) else f"{loss(t):.4f}" for t in labels]
    assert [row["loss"] for row in rows] == expected
    ids = page.values("id")
    inside = {each for each in page.values("href") if not each.startswith("tables/")}
    assert len(ids) == len(set(ids)) and {f"#{each}" for each in ids} == inside


def test_the_answer_says_every_verdict_in_a_sentence(report: Report, labels: list[dict]) -> None:
    """What is sure stands first."""
    text = re.sub(r"\s+", " ", Page(report.html.read_text()).text.split("Answer", 2)[2].split("Warnings")[0])
    rows = {row["variant"]: row for row in read(report, "html")["variant, over"]}
    sentences = [
        f"{name} is {words} base: loss {rows[name]['difference, 95 %']}, n = {rows[name]['seeds']}"
        for name, words in (
            ("rope", "better than"),
            ("mystery", "worse than"),
            (VARIANTS[2], "indistinguishable from"),
        )
    ]
    places = [text.find(each) for each in sentences]
    assert -1 not in places and places == sorted(places)


def test_the_answer_says_where_test_data_say_otherwise(tmp_path: Path) -> None:
    """As of longer strings than those of training: what is better there may be worse here."""
    gains = {"base": 0.0, "rope": 1.0}
    trials = fabricate.study(tmp_path, lambda t: 2.0 + t["seed"] / 9 - (1 + t["seed"] / 1000) * gains[t["variant"]])

    def answer() -> str:
        text = Page(write_report(tmp_path, "made").html.read_text()).text
        return re.sub(r"\s+", " ", text.split("Answer", 2)[2].split("What was run")[0])

    assert "rope is better than base" in answer() and "on test data" not in answer()
    for trial in (t for t in trials if t["variant"] == "rope"):
        file = tmp_path / "trials" / trial["id"] / "record.json"
        record = json.loads(file.read_text())
        record["metrics"]["test_loss"] += 2.0
        file.write_text(json.dumps(record))
    assert re.search(r"rope is better than base: [^;]*; on test data \+0\.99\S+ \[\S+ \S+\] worse", answer())


def test_a_trial_has_its_configuration_commit_and_place(tmp_path: Path) -> None:
    """A variant is compared with the baseline at its own size, the baseline with itself at the first size."""
    trials = fabricate.study(
        tmp_path, lambda t: None if t["size"] == "l" else 2.0 + t["seed"] / 9, sizes=("s", "m", "l")
    )
    width = {"s": 16, "m": 32}
    for trial in (t for t in trials if t["size"] in width):
        file = tmp_path / "trials" / trial["id"] / "record.json"
        record = json.loads(file.read_text())
        rope = {"position": {"name": "rope", "base": 1e4}} if trial["variant"] == "rope" else {"position": {}}
        record["spec"] = {"arch": {"d_model": width[trial["size"]], **rope}, "seed": trial["seed"], "resources": {}}
        record["environment"]["git_commit"] = f"c0ffee{trial['seed']}"
        file.write_text(json.dumps(record))
    tables = read(write_report(tmp_path, "made"), "html")
    rows = tables["configuration, trials"]
    assert [
        (row["variant"], row["cell"].split(",")[0], row["compared with"], row["set otherwise"]) for row in rows
    ] == [
        ("base", "s", "", ""),
        ("rope", "s", "configuration 1", "arch.position.name not set → ropearch.position.base not set → 10000.0"),
        ("base", "m", "configuration 1", "arch.d_model 16 → 32"),
        ("rope", "m", "configuration 3", "arch.position.name not set → ropearch.position.base not set → 10000.0"),
        ("base", "l", "configuration 1", "not known before trials of both have ended"),
        ("rope", "l", "configuration 5", "not known before trials of both have ended"),
    ]
    shown = {row["trial"]: (row["configuration"], row["commit"]) for row in tables["trial, wall s"]}
    for number, row in enumerate(rows, 1):
        mine = [t["id"] for t in trials if (t["variant"], t["size"]) == (row["variant"], row["cell"][0])]
        assert row["trials"] == "".join(each[:6] for each in mine)
        commits = [f"c0ffee{seed}" if number < 5 else "" for seed in range(3)]
        assert [shown[each] for each in mine] == [(str(number), commit) for commit in commits]
    places = {(row["what"], row["value"]): row["trials"] for row in tables["what, trials"]}
    assert places["commit of the harness", "c0ffee1"] == "4" and places["hardware", "a processor"] == "12"


def test_the_page_needs_nothing_but_itself(report: Report) -> None:
    text = report.html.read_text()
    page = Page(text)
    assert page.values("src") and all(value.startswith("data:image/svg+xml;base64,") for value in page.values("src"))
    assert all(value.startswith(("#", "tables/")) for value in page.values("href"))
    assert not {tag for tag, *_ in page.attributes} & {"link", "iframe", "object", "embed"}
    assert not re.search(r"url\(|@import|://|fetch\(|XMLHttpRequest|import\(", re.sub(r'src="[^"]*"', "", text))
    policy = next(value for value in page.values("content") if "default-src" in value)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and policy.endswith(f"script-src 'sha256-{digest}'")


def test_figures_are_svg_and_the_same_inside_and_beside(report: Report) -> None:
    inside = [base64.b64decode(src.split(",")[1]) for src in Page(report.html.read_text()).values("src")]
    names = re.findall(r"!\[.+\]\((\w+)\.svg\)", report.markdown.read_text())
    assert names == ["loss_against_compute", "differences", "learning_curves"]
    for name, svg in zip(names, inside, strict=True):
        assert (report.html.parent / f"{name}.svg").read_bytes() == svg
        root = ET.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("viewBox")
        links = [value for node in root.iter() for key, value in node.attrib.items() if key.endswith("href")]
        assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 5 and all(v.startswith("#") for v in links)


def test_the_csv_files_have_the_numbers_of_the_tables(report: Report, folder: Path) -> None:
    table = study_table(folder, "made")
    beside = report.html.parent
    pd.testing.assert_frame_equal(read_table(beside / "trials.csv"), table)
    for name, expected in (
        ("comparison", comparison_table(table, "base")),
        ("overall", overall_table(table, "base")),
        ("fits", fit_variants(finished(table), draws=0).filter(regex="^(?!law|.*_lo$|.*_hi$)")),
    ):
        text = [column for column in expected if not pd.api.types.is_numeric_dtype(expected[column])]
        back = pd.read_csv(beside / f"{name}.csv", dtype=dict.fromkeys(text, "string"))
        back[text], expected[text] = back[text].fillna("").astype(object), expected[text].astype(object)
        pd.testing.assert_frame_equal(back[list(expected)], expected, check_dtype=False, rtol=1e-12)
    for row, shown in zip(back.to_dict("records"), read(report, "md")["variant, beware"], strict=True):
        assert shown["alpha"] == "{alpha:.4g} [{alpha_lo:.4g}, {alpha_hi:.4g}]".format(**row)


def test_the_report_is_the_same_wherever_and_whenever(tmp_path: Path) -> None:
    """Byte for byte, with a torn record in it."""
    written = []
    for root in (tmp_path / "one", tmp_path / "another place"):
        (first, *_) = fabricate.study(root, loss, VARIANTS[:2], SIZES[:1])
        (root / "trials" / first["id"] / "record.json").write_text("{")
        made = write_report(root, "made")
        files = sorted(file for file in made.html.parent.rglob("*") if file.is_file())
        written.append((made.summary, [(file.name, file.read_bytes()) for file in files]))
    assert written[0] == written[1] and len(written[0][1]) > 10 + 5
    assert b"record.json is not whole" in dict(written[0][1])["report.html"]


def test_what_people_wrote_is_escaped(tmp_path: Path) -> None:
    """Questions and the labels of sizes and axes are free text; names of variants are not."""
    question = 'Question: is <script>alert("1")</script> & co. > 2?\n| a | b |'
    fabricate.study(
        tmp_path, lambda t: 2.0 + t["seed"] / 100, sizes=("a|b <b>&",), axes=("p=<i>|",), question=question
    )
    made = write_report(tmp_path, "made")
    page = Page(made.html.read_text())
    assert all(line in page.text for line in question.splitlines())
    text = made.html.read_text()
    assert text.count("<script") == 1 and "<b>" not in text and "<i>" not in text
    assert read(made, "html")["cell, trials"][0]["cell"] == "a|b <b>&, p=<i>|, tokens=100000"
    markdown = markdown_tables(made.markdown.read_text().replace(question.splitlines()[1], ""))
    assert {len(row) for row in markdown[1]} == {15} and markdown[1][2][0] == r"a\|b <b>&, p=<i>\|, tokens=100000"


def test_trials_that_were_not_run_alike_are_said(tmp_path: Path) -> None:
    (first, *_) = fabricate.study(tmp_path, lambda t: 2.0 + t["seed"] / 100)
    file = tmp_path / "trials" / first["id"] / "record.json"
    record = json.loads(file.read_text())
    record["environment"] |= {"torch": "2.9", "gpu": "a card"}
    file.write_text(json.dumps(record))
    made = write_report(tmp_path, "made")
    for text in (Page(made.html.read_text()).text, made.markdown.read_text()):
        assert "not all run alike" in text
        assert "hardware (a card; a processor), torch (2.8; 2.9)." in text


@pytest.mark.parametrize("what", ["python", "platform"])
def test_other_versions_and_systems_are_said_too(tmp_path: Path, what: str) -> None:
    for number, label in enumerate(fabricate.study(tmp_path, lambda t: 2.0 + t["seed"] / 100)):
        file = tmp_path / "trials" / label["id"] / "record.json"
        record = json.loads(file.read_text())
        record["environment"] |= {what: "one" if number else "another"}
        file.write_text(json.dumps(record))
    assert f"not all run alike:** {what} (another; one)." in write_report(tmp_path, "made").markdown.read_text()


def test_tokenizers_are_compared_in_bits_per_byte(tmp_path: Path) -> None:
    """Longer tokens have the larger loss per token and fewer bits per byte: better, if they give the text back."""
    shift = {"base": 0.0, "pieces": 2.0, "words": 2.5}
    labels = fabricate.study(
        tmp_path, lambda t: 2.0 + shift[t["variant"]] + t["seed"] / 50, variants=tuple(shift), seeds=range(4)
    )
    before = write_report(tmp_path, "made")
    assert read(before, "md")["variant, over"][0]["metric"] == "loss"
    for label in labels:
        file = tmp_path / "trials" / label["id"] / "record.json"
        record, variant = json.loads(file.read_text()), label["variant"]
        record["data"] = {"fingerprint": f"tokens of {variant}", "restores_text": variant != "words"}
        noise = (label["seed"] % 2 + 0.1 * shift[variant]) / 90
        record["metrics"]["bits_per_byte"] = 2.0 - shift[variant] / 10 + noise
        file.write_text(json.dumps(record))
    made = write_report(tmp_path, "made")
    for kind in ("html", "md"):
        rows = read(made, kind)["variant, over"]
        assert [(row["metric"], row["verdict"]) for row in rows] == [("bits_per_byte", "better")] * 2
        assert rows[0]["difference, 95 %"].startswith("-0.19")
    assert "bits_per_byte 1." in made.summary
    for text in (Page(made.html.read_text()).text, made.markdown.read_text(), made.summary):
        assert "a lower bound for words: " in text
    assert "bits per byte" in (made.html.parent / "differences.svg").read_text()


def test_a_figure_of_differences_says_which_side_is_better(tmp_path: Path) -> None:
    labels = fabricate.study(tmp_path, lambda t: 2.0 + (t["variant"] == "rope") / 10 + t["seed"] / 50)
    for label in labels:
        file = tmp_path / "trials" / label["id"] / "record.json"
        record = json.loads(file.read_text())
        record["metric"] = {"name": "accuracy", "better": "higher"}
        record["metrics"] |= {"accuracy": 0.5 + (label["variant"] == "rope") / 5 + label["seed"] ** 2 / 90}
        file.write_text(json.dumps(record))
    made = write_report(tmp_path, "made")
    assert [row["verdict"] for row in read(made, "md")["variant, over"]] == ["better"]
    caption = "Paired difference of accuracy from the baseline"
    assert caption in made.markdown.read_text()


def test_every_text_of_a_study_has_its_unigram_entropy(tmp_path: Path) -> None:
    fabricate.study(
        tmp_path,
        lambda t: 2.0 + t["seed"] / 100,
        facts={"baselines": [fabricate.unigram(each) for each in (3.14159, 4.5)]},
    )
    made = write_report(tmp_path, "made")
    for text in (Page(made.html.read_text()).text, made.markdown.read_text(), made.summary):
        assert "3.1416 | 4.5000" in text


def only(status: str | None) -> Callable[[dict], float | str | None]:
    return lambda label: status


SPARSE: dict[str, tuple[Callable[[dict], float | str | None], dict]] = {
    "nothing has run": (only(None), {}),
    "all are running": (only("running"), {}),
    "all failed": (only("failed"), {}),
    "all diverged": (only("diverged"), {}),
    "one seed": (lambda t: 2.0, {"seeds": (0,)}),
    "one variant": (lambda t: 2.0 + t["seed"], {"variants": ("base",)}),
    "one trial": (lambda t: 2.0, {"variants": ("base",), "seeds": (0,)}),
    "the baseline failed": (lambda t: "failed" if t["variant"] == "base" else 2.0 + t["seed"], {}),
    "the others failed": (lambda t: "failed" if t["variant"] != "base" else 2.0 + t["seed"], {}),
    "no seed in common": (lambda t: None if (t["variant"] == "base") == (t["seed"] > 0) else 2.0, {}),
    "all alike": (lambda t: 2.0, {}),
    "four sizes, all alike": (lambda t: 2.0, {"sizes": SIZES, "seeds": (0, 1)}),
    "no labels": (lambda t: 2.0 + t["seed"], {"sizes": ("",)}),
    "forty variants": (
        lambda t: 2.0 + int(t["id"], 16) % 7,
        {"variants": [f"v{i}" for i in range(40)], "seeds": (0, 1)},
    ),
}


@pytest.mark.parametrize("case", SPARSE)
def test_any_study_gives_a_report(tmp_path: Path, case: str) -> None:
    outcome, shape = SPARSE[case]
    trials = fabricate.study(tmp_path, outcome, **shape)
    made = write_report(tmp_path, "made")
    for kind in ("html", "md"):
        rows = read(made, kind)["cell, trials"]
        assert sum(int(row["n"].split()[0]) for row in rows) == sum(isinstance(outcome(t), float) for t in trials)
        assert "nan" not in re.sub("is nan at step", "", json.dumps(read(made, kind)).lower())
    for file in made.html.parent.glob("*.csv"):
        assert len(pd.read_csv(file).columns) > 0
    for file in made.html.parent.glob("*.svg"):
        ET.fromstring(file.read_bytes())


def test_curves_that_are_gone_do_not_stop_a_report(tmp_path: Path) -> None:
    for trial in fabricate.study(tmp_path, lambda t: 2.0 + t["seed"] / 100):
        (tmp_path / "trials" / trial["id"] / "metrics.jsonl").unlink()
    rows = read(write_report(tmp_path, "made"), "md")["cell, trials"]
    assert rows[0]["final loss"] == "2.0100 ± 0.0100"


def test_a_report_written_again_follows_the_records(tmp_path: Path) -> None:
    trials = fabricate.study(tmp_path, lambda t: None if t["seed"] == 2 else 2.0 + t["seed"] / 100)
    before = read(write_report(tmp_path, "made"), "md")["cell, trials"][0]["n"]
    for trial in trials:
        fabricate.write_trial(tmp_path / "trials" / trial["id"], trial, 100_000, 2.5)
    after = read(write_report(tmp_path, "made"), "md")["cell, trials"][0]["n"]
    assert (before, after) == ("2 (1 pending)", "3")
