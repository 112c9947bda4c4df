"""Layouts as HTML, Markdown and CSV."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from urllib.parse import quote

from analysis.layouts.layout import MARKS, Cell, Column, Layout, frame, printable
from analysis.layouts.tex import latex


def html(layout: Layout, anchors: Mapping[str, str] | None = None) -> str:
    """`<table class="layout" data-layout=NAME>`: a fragment without script or style.

    Headings have `data-key`; cells of a number `data-value`, `data-lo`, `data-hi` and `data-sd`, as JavaScript reads
    them, and no such attribute where a number is missing. The verdict is a class of its cell and a mark behind its
    text. Trials are links to `#TRIALID` in a `<details>` whose summary is the number. `anchors` says where on the
    page that holds the fragment a variant is explained: names of variants become links there.
    """
    wide, places = len(layout.columns), anchors or {}
    lines = [f'<table class="layout" data-layout="{layout.name}">', f"<caption>{escape(layout.caption())}</caption>"]
    lines += ["<thead>", f"<tr>{''.join(map(_heading, layout.columns))}</tr>", "</thead>"]
    for label, rows in layout.parts():
        lines.append("<tbody>")
        if label:
            lines.append(f'<tr class="group"><th scope="rowgroup" colspan="{wide}">{escape(label)}</th></tr>')
        for first, *others in layout.cells(rows):
            lines.append(f"<tr>{_header(first, places)}{''.join(_data(each, places) for each in others)}</tr>")
        lines.append("</tbody>")
    remarks = [f'<tr><td colspan="{wide}">{escape(each)}</td></tr>' for each in layout.remarks()]
    lines += ["<tfoot>", *remarks, "</tfoot>"] if remarks else []
    return "\n".join([*lines, "</table>", ""])


def _heading(column: Column) -> str:
    title = escape(printable(column.title))
    return f'<th scope="col" class="{column.align}" data-key="{escape(column.key)}">{title}</th>'


def _header(cell: Cell, anchors: Mapping[str, str]) -> str:
    return f'<th scope="row"{_attributes(cell)}>{_content(cell, anchors)}</th>'


def _data(cell: Cell, anchors: Mapping[str, str]) -> str:
    return f"<td{_attributes(cell)}>{_content(cell, anchors)}</td>"


def _attributes(cell: Cell) -> str:
    kinds = [cell.column.align, *(["mono"] if cell.column.monospace else []), *([cell.verdict] if cell.sign else [])]
    numbers = {} if cell.value is None else {"value": cell.value, **cell.ends}
    said = "".join(f' data-{end}="{_script_number(value)}"' for end, value in numbers.items())
    return f' class="{" ".join(kinds)}"{said}'


def _script_number(value: float) -> str:
    return repr(value).replace("inf", "Infinity")


def _content(cell: Cell, anchors: Mapping[str, str]) -> str:
    text = escape(cell.text)
    if cell.column.key == "variant" and cell.text in anchors:
        text = f'<a href="#{quote(anchors[cell.text])}">{text}</a>'
    if cell.column.monospace and text:
        text = f"<code>{text}</code>"
    if cell.sign:
        text = f"<b>{text}</b>" if cell.verdict == "better" else text
        text += f'\u00a0<span class="mark" title="{MARKS[cell.verdict].says}">{cell.sign}</span>'
    if not cell.ids or not text:
        return text
    links = " ".join(f'<a href="#{quote(each)}">{escape(each)}</a>' for each in cell.ids)
    return f'<details class="trials"><summary>{text}</summary>{links}</details>'


def markdown(layout: Layout) -> str:
    """A table as GitHub's Markdown has it, the title above it and notes below. Trial ids are not in it: `frame` has
    them."""
    rows = [_line([_markdown(printable(column.title)) for column in layout.columns])]
    rows.append(_line([_RULES[column.align] for column in layout.columns]))
    for label, part in layout.parts():
        if label:
            rows.append(_line([f"*{_markdown(label)}*", *[""] * (len(layout.columns) - 1)]))
        rows += [_line([_marked(cell) for cell in row]) for row in layout.cells(part)]
    notes = [f"- {_markdown(each)}" for each in layout.remarks()]
    below = ["", *notes] if notes else []
    return "\n".join([f"**{_markdown(layout.caption())}**", "", *rows, *below, ""])


_RULES = {"left": "---", "right": "---:", "center": ":---:"}
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#$&@]|:(?=//))")  # '@' and '://' make links without brackets


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    escaped = _SPECIAL.sub(r"\\\1", text)
    escaped = re.sub(r"(?i)\bwww\.", lambda found: found[0].replace(".", r"\."), escaped)
    return re.sub(r"^(\d*)([-+=.)])(?=\s|[-+=]*$)", r"\1\\\2", escaped)  # else the beginning of a list or a heading


def _marked(cell: Cell) -> str:
    if cell.column.monospace and cell.text.isalnum():
        return f"`{cell.text}`"
    text = _markdown(cell.text) if cell.value is None else cell.text
    if not cell.sign:
        return text
    return f"**{text}** {cell.sign}" if cell.verdict == "better" else f"{text} {cell.sign}"


def csv(layout: Layout) -> str:
    """`frame(layout)` as CSV: full numbers, `inf` where they are infinite, empty where they are missing."""
    return str(frame(layout).to_csv(index=False, lineterminator="\n"))


def bundle(layout: Layout) -> Iterator[tuple[str, str]]:
    """The table in every form: the ending of its file, and its text."""
    for ending, render in (("html", html), ("md", markdown), ("tex", latex), ("csv", csv)):
        yield ending, render(layout)


def write_bundle(layout: Layout, folder: Path) -> list[Path]:
    """Write NAME.html, NAME.md, NAME.tex and NAME.csv into a folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for ending, text in bundle(layout):
        file = folder / f"{layout.name}.{ending}"
        file.write_text(text, encoding="utf-8", errors="replace", newline="\n")
        files.append(file)
    return files
