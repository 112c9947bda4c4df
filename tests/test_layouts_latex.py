"""Tables in LaTeX: what is escaped and how, and that a TeX engine takes it."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from layouts_made import HOSTILE, hostile, of_papers, small

from analysis.layouts import Column, Layout, document, latex, words
from analysis.layouts.tex import MANY, escaped

ENGINE = shutil.which("tectonic") or shutil.which("pdflatex")


@pytest.mark.parametrize(
    ("plain", "tex"),
    [
        (r"100% & $5 #1 a_b {c}", r"100\% \& \$5 \#1 a\_b \{c\}"),
        (r"~ ^ \x", r"\textasciitilde{} \textasciicircum{} \textbackslash{}x"),
        ("a<b>c|d", r"a\textless{}b\textgreater{}c\textbar{}d"),
        ("--- ,, ''", "-{}-{}- ,{}, '{}'"),
        ("`\"", r"{\char96}{\char34}"),
        ("1.5×10⁻¹⁸ ± ∞", r"1.5$\times$10$^{-18}$ $\pm$ $\infty$"),
        ("−2 ≈ 3", r"$-$2 $\approx$ 3"),
        ("é ñ Å č", r"\'{e} \~{n} \r{A} \v{c}"),
        ("e\u0301", r"\'{e}"),
        ("ß Ω α ο Α", r"\ss{} $\Omega$ $\alpha$ \texttt{U+03BF} \texttt{U+0391}"),
        ("名😀", r"\texttt{U+540D}\texttt{U+1F600}"),
        ("\ufffd", r"\texttt{U+FFFD}"),
    ],
)  # fmt: skip
def test_text_as_latex(plain: str, tex: str) -> None:
    assert escaped(plain) == tex


def test_a_table_in_booktabs() -> None:
    text = latex(small())
    for each in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lrr}", r"\label{tab:small}"):
        assert each in text
    assert r"rope & \textbf{2.250 $\pm$ 0.250 [2.000, 2.500]} {\scriptsize $\bigtriangleup$} & 1.45T \\" in text
    assert r"new & \textcolor[gray]{0.4}{2.500 {\scriptsize $\approx$}} & 3.00$\times$10$^{18}$ \\" in text
    assert r"\multicolumn{3}{l}{\emph{positions}} \\*" in text
    assert r"$\bigtriangleup$ better than the baseline;" in text and "A note.\\par" in text
    assert r"\begin{tabular}[b]{@{}r@{}}Loss\\(nats)\end{tabular}" in text


def test_no_row_begins_with_what_the_command_above_would_read() -> None:
    rows = [line for line in latex(hostile()).splitlines() if line.endswith(r"\\")]
    assert not [line for line in rows if line.startswith(("[", "*"))]
    assert [line for line in rows if line.startswith("{}[0pt]")] and [
        line for line in rows if line.startswith("{}* &")
    ]


def test_wide_tables_are_made_smaller_and_long_cells_break() -> None:
    data = pd.DataFrame({"name": ["n" * 200], "loss": [1.0]})
    text = latex(Layout("long", "", "", (words("name", "Name"), Column("loss", "Loss")), data))
    assert r">{\raggedright\arraybackslash}p{0.40\linewidth}r" in text and r"nnn\allowbreak{}nnn" in text
    assert "resizebox" not in text
    columns = tuple(Column(f"c{k}", "A long heading") for k in range(9))
    wide = Layout("wide", "", "", columns, pd.DataFrame({f"c{k}": [1.0] for k in range(9)}))
    assert r"\resizebox{\linewidth}{!}{%" in latex(wide)


def many(rows: int) -> Layout:
    return replace(
        small(), name="many", group="", data=pd.concat([small().data] * rows, ignore_index=True).head(rows)
    )


def test_tables_longer_than_a_page_go_on() -> None:
    assert r"\begin{table}" in latex(many(MANY)) and r"\begin{longtable}" in latex(many(MANY + 1))
    assert latex(many(MANY + 1)).count("Variant & ") == 2  # on the first page and on the others


@pytest.mark.skipif(ENGINE is None, reason="neither tectonic nor pdflatex is there")
def test_every_layout_compiles_and_fits_the_page(tmp_path: Path) -> None:
    empty = replace(small(), name="empty", data=small().data.head(0))
    one = replace(small(), name="one", data=small().data.head(1))
    wild = replace(hostile(), name="wild", data=pd.concat([hostile().data] * 2, ignore_index=True))
    assert len(HOSTILE) <= MANY < len(wild.data)
    made = [*of_papers(tmp_path), small(), empty, one, hostile(), wild, many(100)]
    log = compiled(document(made), tmp_path)
    assert "Missing character" not in log and "Overfull" not in log
    assert int(re.search(r"\((\d+) pages", log)[1]) >= len(made)
    kinds = "\n".join(re.findall(r"\\label{tab:(\w+)}", document(made))).split()
    assert kinds[:9] == [
        "narang",
        "ordering",
        "position",
        "vaswani3",
        "complexity",
        "isoflop",
        "optima",
        "scaling",
        "laws",
    ]


def compiled(text: str, folder: Path) -> str:
    """The log of a TeX engine, which must end without an error."""
    (folder / "made.tex").write_text(text, encoding="utf-8")
    options = ["--keep-logs"] if "tectonic" in ENGINE else ["-interaction=nonstopmode", "-halt-on-error"]
    done = subprocess.run(
        [ENGINE, *options, "made.tex"], cwd=folder, capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return (folder / "made.log").read_text(errors="replace")
