"""A table as papers print it: which columns of a DataFrame are shown, how, and what stands behind each number."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis.errors import AnalysisError


class LayoutError(AnalysisError):
    """A layout that its data do not allow. The message says which layout, what is wrong, and what would do."""


@dataclass(frozen=True)
class Mark:
    """How a verdict is shown without colour, and what it says."""

    sign: str
    says: str


MARKS = {
    "better": Mark("▲", "better than the baseline"),
    "worse": Mark("▼", "worse than the baseline"),
    "indistinguishable": Mark("≈", "inside the noise"),
    "equivalent": Mark("=", "differs by less than the smallest effect of interest"),
    "unknown": Mark("?", "too few pairs to tell"),
}
UNMARKED = ("", "baseline")
COUNT = "count"  # a form of numbers: 234240 is 234K, 1.45e12 is 1.45T
SUFFIXES = ("", "K", "M", "B", "T")
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Column:
    """One column. `key` names the values among the data's columns; `lo` and `hi` those of the ends of an interval,
    `sd` of a standard deviation, `verdict` of a verdict, `ids` of trial ids, separated by spaces.

    `form` says how numbers are printed: a format specification, or "count". Text is printed as it is.
    """

    key: str
    heading: str
    unit: str = ""
    form: str = ".4g"
    align: str = "right"
    lo: str = ""
    hi: str = ""
    sd: str = ""
    verdict: str = ""
    ids: str = ""
    monospace: bool = False

    @property
    def parts(self) -> dict[str, str]:
        """The data's columns that this one shows, by their names in a plain table."""
        ends = {"lo": self.lo, "hi": self.hi, "sd": self.sd, "verdict": self.verdict, "trial_ids": self.ids}
        return {self.key: self.key} | {f"{self.key}_{end}": name for end, name in ends.items() if name}

    @property
    def title(self) -> str:
        """Heading and unit."""
        return f"{self.heading} ({self.unit})" if self.unit else self.heading


def words(key: str, heading: str, monospace: bool = False) -> Column:
    """A column of text."""
    return Column(key, heading, align="left", monospace=monospace)


@dataclass(frozen=True)
class Cell:
    """One cell: its text without markup, and the number, interval, verdict and trials behind it."""

    column: Column
    text: str
    value: float | None = None
    ends: dict[str, float] = field(default_factory=dict)
    verdict: str = ""
    ids: tuple[str, ...] = ()

    @property
    def sign(self) -> str:
        """Of the verdict; empty where there is nothing to tell."""
        return MARKS[self.verdict].sign if self.verdict in MARKS and self.text else ""


@dataclass(frozen=True)
class Layout:
    """A table to print: `data` has a row for each of its rows, `columns` say what of it is shown.

    `source` names the paper and the table whose layout it is. Rows of one value of the column `group` stand together
    below that value, in the order of their first appearance. `tested` says how verdicts came about, in the legend of
    their marks. `name` is an identifier, for files and references.

    Raises `LayoutError` for columns that the data lack, keys that are used twice, and unknown verdicts.
    """

    name: str
    title: str
    source: str
    columns: tuple[Column, ...]
    data: pd.DataFrame
    group: str = ""
    notes: tuple[str, ...] = ()
    tested: str = ""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise LayoutError(f"layout {self.name!r}: a name has letters a-z, digits and _, and begins with a letter")
        if not self.columns:
            raise LayoutError(f"{self.name}: no columns")
        plain = ["group"] if self.group else []
        plain += [name for column in self.columns for name in column.parts]
        if twice := [name for name in plain if plain.count(name) > 1]:
            raise LayoutError(f"{self.name}: two columns are called {twice[0]!r}; give each a key of its own")
        wanted = [self.group] if self.group else []
        wanted += [name for column in self.columns for name in column.parts.values()]
        if missing := [name for name in wanted if name not in self.data]:
            there = ", ".join(map(str, self.data)) or "none"
            raise LayoutError(f"{self.name}: no column {missing[0]!r} in the data; its columns: {there}")
        for column in self.columns:
            for verdict in self.data[column.verdict].dropna().unique() if column.verdict else ():
                if verdict not in MARKS and verdict not in UNMARKED:
                    known = ", ".join((*MARKS, *UNMARKED[1:]))
                    raise LayoutError(f"{self.name}: unknown verdict {verdict!r} in {column.verdict}; known: {known}")

    def parts(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """The groups and their rows; one group without a name where there are none."""
        if not self.group:
            yield "", self.data
        elif len(self.data):
            for label, rows in self.data.groupby(self.data[self.group].fillna(""), sort=False, observed=True):
                yield printable(str(label)), rows

    def cells(self, rows: pd.DataFrame) -> list[list[Cell]]:
        """The cells of some rows, a list each."""
        return [[_cell(column, row) for column in self.columns] for row in rows.to_dict("records")]

    def caption(self) -> str:
        """Title, and whose layout it is."""
        title = printable(self.title).rstrip(".")
        return f"{title}. Laid out as {printable(self.source)}." if self.source else f"{title}."

    def remarks(self) -> list[str]:
        """The legend of the marks that occur, then the notes."""
        shown = {cell.verdict for _, rows in self.parts() for row in self.cells(rows) for cell in row if cell.sign}
        legend = "; ".join(f"{mark.sign} {mark.says}" for name, mark in MARKS.items() if name in shown)
        told = f"{legend} ({printable(self.tested)})." if legend and self.tested else legend and f"{legend}."
        return [each for each in (told, *map(printable, self.notes)) if each]


def frame(layout: Layout) -> pd.DataFrame:
    """The table with plain numbers: of a column KEY the columns KEY, KEY_lo, KEY_hi, KEY_sd, KEY_verdict and
    KEY_trial_ids, those that it has; before them `group`. Rows are in the order in which they are printed."""
    names = {"group": layout.group} if layout.group else {}
    for column in layout.columns:
        names |= column.parts
    rows = [part for _, part in layout.parts()] or [layout.data]
    ordered = pd.concat(rows, ignore_index=True)
    return pd.DataFrame({plain: ordered[name] for plain, name in names.items()})


def number(value: float, form: str = ".4g") -> str:
    """A number as it is printed: `−0.0123`, `1.5×10¹⁸`, `∞`, `234K` of form "count"; empty where missing."""
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = _counted(value) if form == COUNT else format(value, form)
    mantissa, exponent, power = text.partition("e")
    mantissa = mantissa.removesuffix(".")  # of forms as "#.3g", which keep zeros at the end
    if not any(digit in mantissa for digit in "123456789"):
        mantissa = mantissa.lstrip("+-")  # what rounds to zero has no sign
    if exponent:
        mantissa += f"×10{str(int(power)).translate(SUPERSCRIPT)}"
    return mantissa.replace("-", "−")


def printable(text: str) -> str:
    """Text on one line; characters that no page can show are replaced by U+FFFD."""
    plain = "".join(
        "\ufffd" if unicodedata.category(each) in ("Cc", "Cs") else each for each in " ".join(text.split())
    )
    return plain.replace("\ufeff", "\ufffd")


def _counted(value: float) -> str:
    if abs(value) < 1000 and value == round(value):
        return f"{value:.0f}"
    rounded = float(f"{value:.3g}")
    power = max(0, math.floor(math.log10(abs(rounded)) / 3)) if rounded else 0
    if power >= len(SUFFIXES):
        return f"{value:#.3g}"
    return f"{f'{rounded / 1000**power:#.3g}'.removesuffix('.')}{SUFFIXES[power]}"


def _cell(column: Column, row: dict[Any, Any]) -> Cell:
    raw, value = row[column.key], None
    ends: dict[str, float] = {}
    if _missing(raw):
        text = ""
    elif isinstance(raw, str):
        text = printable(raw)
    elif isinstance(raw, bool):
        text = "yes" if raw else "no"
    else:
        value, ends = float(raw), _ends(column, row)
        text = _estimate(value, ends, column.form)
    verdict = row[column.verdict] if column.verdict else ""
    ids = row[column.ids] if column.ids else ""
    said = "" if _missing(verdict) else str(verdict)
    return Cell(column, text, value, ends, said, () if _missing(ids) else tuple(printable(str(ids)).split()))


def _ends(column: Column, row: dict[Any, Any]) -> dict[str, float]:
    """Of the interval both or none; the standard deviation."""
    names = {"sd": column.sd, "lo": column.lo, "hi": column.hi}
    found = {end: float(row[name]) for end, name in names.items() if name and not _missing(row[name])}
    if "lo" not in found or "hi" not in found:
        found = {end: value for end, value in found.items() if end == "sd"}
    return found


def _estimate(value: float, ends: dict[str, float], form: str) -> str:
    """`2.301 ± 0.003 [2.295, 2.307]`."""
    text = number(value, form)
    if "sd" in ends:
        text += f" ± {number(ends['sd'], form.removeprefix('+'))}"
    if "lo" in ends:
        text += f" [{number(ends['lo'], form)}, {number(ends['hi'], form)}]"
    return text


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value))
