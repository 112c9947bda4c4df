"""What a study says of itself in Python: plain text in a terminal, HTML in a notebook, numbers to go on with."""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


class View:
    """Something to look at. `source` is what it shows, `to_frame()` the same as a DataFrame."""

    def __init__(self, text: str, html: str, frame: Callable[[], pd.DataFrame], source: Any = None):
        self._text, self._html, self._frame = text, html, frame
        self.source = source

    def __repr__(self) -> str:
        return self._text

    def _repr_html_(self) -> str:
        return self._html

    def to_frame(self) -> pd.DataFrame:
        """The numbers, not rounded. Each call makes a DataFrame anew, which may be changed."""
        return self._frame()


@dataclass(frozen=True, repr=False)
class Figure:
    """A figure of a report. `svg` is the file."""

    caption: str
    svg: bytes

    def __repr__(self) -> str:
        return f"<figure: {self.caption}>"

    def _repr_html_(self) -> str:
        picture = base64.b64encode(self.svg).decode()
        image = f'<img style="max-width:100%" src="data:image/svg+xml;base64,{picture}" alt="{escape(self.caption)}">'
        return f"<figure>{image}<figcaption>{escape(self.caption)}</figcaption></figure>"

    def save(self, file: str | Path) -> None:
        """Write it as SVG."""
        Path(file).write_bytes(self.svg)


class Figures(dict[str, Figure]):
    """Figures by name; in a notebook all of them."""

    def _repr_html_(self) -> str:
        return "\n".join(each._repr_html_() for each in self.values())


@dataclass(frozen=True, repr=False)
class Page:
    """A report: `path` is its page, which a notebook shows in a frame, `figures` are those on it."""

    path: Path
    markdown: Path
    summary: str
    figures: Figures

    def __repr__(self) -> str:
        return f"{self.summary}\nreport: {self.path}"

    def _repr_html_(self) -> str:
        page = escape(self.path.read_text(encoding="utf-8"))
        frame = f'<iframe style="width:100%;height:40em;border:1px solid #ccc" srcdoc="{page}"></iframe>'
        return f"<p>report: <code>{escape(str(self.path))}</code></p>{frame}"


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str] = ()) -> str:
    """Columns in line, those that `left` names to the left, others to the right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if name in left else cell.rjust(width)
            for name, cell, width in zip(headings, row, widths, strict=True)
        ).rstrip()
        for row in (headings, *rows)
    ]
    return "\n".join(lines)


def html_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], remarks: Sequence[str] = (), left: Collection[str] = ()
) -> str:
    """The same as HTML, with a line of text for each of `remarks` below it."""
    styles = [f'style="text-align:{"left" if name in left else "right"}"' for name in headings]
    head = "".join(f"<th {style}>{escape(name)}</th>" for name, style in zip(headings, styles, strict=True))
    body = "\n".join(
        f"<tr>{''.join(f'<td {style}>{escape(cell)}</td>' for cell, style in zip(row, styles, strict=True))}</tr>"
        for row in rows
    )
    below = "".join(f"<p>{escape(line)}</p>" for line in remarks)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>{below}"


def html_text(text: str) -> str:
    """Plain text as HTML."""
    return f"<pre>{escape(text)}</pre>"
