"""Layouts as LaTeX with booktabs, by packages of any TeX distribution and by fonts that every engine has."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from analysis.layouts.layout import Cell, Column, Layout, printable

PACKAGES = ("array", "booktabs", "color", "graphicx", "longtable")
LONG = 40  # characters of a cell, above which its column breaks lines
WORD = 24  # letters of a word, above which a line may end within it
WIDE = 88  # characters of a table that fit between the margins, as \small
MANY = 40  # rows of a table that fit on a page
GREY = 0.4  # of white: 5.7 : 1 against it

_ASCII = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"{\char34}", "`": r"{\char96}",
}  # fmt: skip
_MATH = {
    "∞": r"\infty", "×": r"\times", "±": r"\pm", "≈": r"\approx", "≤": r"\leq", "≥": r"\geq", "≠": r"\neq", "−": "-",
    "→": r"\rightarrow", "←": r"\leftarrow", "·": r"\cdot", "°": r"{}^\circ", "▲": r"\bigtriangleup",
    "▼": r"\bigtriangledown", "√": r"\surd", "∈": r"\in", "∑": r"\sum", "∂": r"\partial",
    "µ": r"\mu", "ϵ": r"\epsilon",
}  # fmt: skip
_TEXT = {
    "…": r"\ldots{}", "–": r"\textendash{}", "—": r"\textemdash{}", "‘": r"\textquoteleft{}",
    "’": r"\textquoteright{}", "“": r"\textquotedblleft{}", "”": r"\textquotedblright{}", "§": r"\S{}",
    "ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}", "ø": r"\o{}", "Ø": r"\O{}",
    "ł": r"\l{}", "Ł": r"\L{}", "ı": r"\i{}", "©": r"\copyright{}", "£": r"\pounds{}",
}  # fmt: skip
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u030a": "r", "\u030c": "v",
    "\u0327": "c", "\u0304": "=", "\u0306": "u", "\u0307": ".", "\u030b": "H", "\u0323": "d",
}  # fmt: skip
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi "
    "omega"
).split()
_GREEK_CAPITALS = "gamma delta theta lambda xi pi sigma upsilon phi psi omega".split()
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"
_LIGATURE = re.compile(r"([-,'])(?=\1)")  # two of which TeX prints as one
_RUN = re.compile(f"([{_SUPERSCRIPTS}]+)")


def latex(layout: Layout) -> str:
    """A `table` with a `tabular`, or a `longtable` above 40 rows; the label is `tab:NAME`.

    It needs the packages array, booktabs, color, graphicx and longtable. A table wider than the page is made smaller.
    Characters that LaTeX's own fonts lack are written as their code points, `U+4E2D`. Trial ids are not in it:
    `frame` has them.
    """
    return _long(layout) if len(layout.data) > MANY else _floating(layout)


def document(layouts: Iterable[Layout]) -> str:
    """A document of its own with these tables."""
    packages = "\n".join(rf"\usepackage{{{name}}}" for name in PACKAGES)
    tables = "\n\\clearpage\n".join(map(latex, layouts))
    head = f"\\documentclass{{article}}\n\\usepackage[margin=2.5cm]{{geometry}}\n{packages}\n"
    return f"{head}\\begin{{document}}\n{tables}\n\\end{{document}}\n"


def escaped(text: str) -> str:
    """Text as LaTeX prints it, character for character."""
    found = []
    for part in _RUN.split(text):
        if part and part[0] in _SUPERSCRIPTS:
            power = "".join("-" if each == "⁻" else str(unicodedata.digit(each)) for each in part)
            found.append(f"$^{{{power}}}$")
        else:
            found += [_character(each) for each in unicodedata.normalize("NFC", part)]
    return _LIGATURE.sub(r"\1{}", "".join(found))


def _character(each: str) -> str:
    if each in _ASCII:
        return _ASCII[each]
    if each in _TEXT:
        return _TEXT[each]
    if each in _MATH:
        return f"${_MATH[each]}$"
    if " " <= each <= "~":
        return each
    return _accented(each) or _greek(each) or rf"\texttt{{U+{ord(each):04X}}}"


def _accented(each: str) -> str:
    parts = unicodedata.normalize("NFD", each)
    base, marks = parts[0], parts[1:]
    if len(marks) == 1 and marks in _ACCENTS and base.isascii() and base.isalpha():
        return rf"\{_ACCENTS[marks]}{{{base}}}"
    return ""


def _greek(each: str) -> str:
    *kind, letter = unicodedata.name(each, "?").lower().replace("lamda", "lambda").split()
    if kind == ["greek", "small", "letter"] and letter in _GREEK:
        return rf"$\{letter}$"
    if kind == ["greek", "capital", "letter"] and letter in _GREEK_CAPITALS:
        return rf"$\{letter.capitalize()}$"
    return ""


def _floating(layout: Layout) -> str:
    head, body = _head(layout), _body(layout)
    parts = ["\\toprule", head, "\\midrule", *body, "\\bottomrule"]
    tabular = "\n".join([rf"\begin{{tabular}}{{{_alignment(layout)}}}", *parts, r"\end{tabular}"])
    if _width(layout) > WIDE:
        tabular = f"\\resizebox{{\\linewidth}}{{!}}{{%\n{tabular}}}"
    lines = [r"\begin{table}[tbp]", r"\centering\small", _caption(layout), tabular, *_remarks(layout), r"\end{table}"]
    return "\n".join([*lines, ""])


def _long(layout: Layout) -> str:
    size = r"\scriptsize\setlength{\tabcolsep}{3pt}" if _width(layout) > WIDE else r"\small"
    head = _head(layout)
    lines = [
        f"{{{size}",
        rf"\begin{{longtable}}{{{_alignment(layout)}}}",
        rf"{_caption(layout)}\\",
        r"\toprule",
        head,
    ]
    lines += [r"\midrule\endfirsthead", r"\toprule", head, r"\midrule\endhead", r"\bottomrule\endfoot"]
    return "\n".join([*lines, *_body(layout), r"\end{longtable}", *_remarks(layout), "}", ""])


def _caption(layout: Layout) -> str:
    return rf"\caption{{{_breaking(layout.caption())}}}\label{{tab:{layout.name}}}"


def _head(layout: Layout) -> str:
    return _line(map(_heading, layout.columns))


def _heading(column: Column) -> str:
    """The unit below the heading: columns of numbers are narrow."""
    heading, unit = escaped(printable(column.heading)), escaped(printable(column.unit))
    if not unit:
        return heading
    return rf"\begin{{tabular}}[b]{{@{{}}{column.align[0]}@{{}}}}{heading}\\({unit})\end{{tabular}}"


def _body(layout: Layout) -> list[str]:
    wide, lines = len(layout.columns), []
    for number, (label, rows) in enumerate(layout.parts()):
        if label and number:
            lines.append(r"\addlinespace")
        if label:
            place = "l" if len(label) <= LONG else r"p{0.9\linewidth}"
            lines.append(rf"\multicolumn{{{wide}}}{{{place}}}{{\emph{{{_breaking(label)}}}}} \\*")
        lines += [_line(map(_printed, row)) for row in layout.cells(rows)]
    return lines


def _line(cells: Iterable[str]) -> str:
    text = " & ".join(cells)
    guard = "{}" if text.startswith(("[", "*")) else ""  # else they belong to the command above
    return rf"{guard}{text} \\"


def _printed(cell: Cell) -> str:
    text = _breaking(cell.text)
    if cell.column.monospace and text:
        text = rf"\texttt{{{text}}}"
    if not cell.sign:
        return text
    sign = rf"{{\scriptsize {escaped(cell.sign)}}}"
    if cell.verdict == "better":
        return rf"\textbf{{{text}}} {sign}"
    return (
        rf"\textcolor[gray]{{{GREY}}}{{{text} {sign}}}" if cell.verdict == "indistinguishable" else f"{text} {sign}"
    )


def _breaking(text: str) -> str:
    """Escaped, with places where a line may end in words that are too long."""
    found = []
    for word in text.split(" "):
        step = WORD // 4 if len(word) > WORD else WORD
        parts = [word[at : at + step] for at in range(0, len(word), step)]
        found.append(r"\allowbreak{}".join(map(escaped, parts)))
    return " ".join(found)


def _alignment(layout: Layout) -> str:
    longest = _longest(layout)
    many = sum(each > LONG for each in longest)
    share = 0.4 if many == 1 else 0.6 / max(many, 1)
    paragraph = rf">{{\raggedright\arraybackslash}}p{{{share:.2f}\linewidth}}"
    pairs = zip(layout.columns, longest, strict=True)
    return "".join(paragraph if length > LONG else column.align[0] for column, length in pairs)


def _longest(layout: Layout) -> list[int]:
    """The longest text of each column, in characters."""
    cells = [row for _, rows in layout.parts() for row in layout.cells(rows)]
    texts = [[len(row[place].text + row[place].sign) for row in cells] for place in range(len(layout.columns))]
    heads = [max(len(column.heading), len(column.unit) + 2) for column in layout.columns]
    return [max([head, *lengths]) for head, lengths in zip(heads, texts, strict=True)]


def _width(layout: Layout) -> int:
    return sum(min(each, LONG) + 2 for each in _longest(layout))


def _remarks(layout: Layout) -> list[str]:
    told = [rf"{_breaking(each)}\par" for each in layout.remarks()]
    return [r"\par\smallskip{\footnotesize\raggedright", *told, "}"] if told else []
