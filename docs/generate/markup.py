"""Small pieces of pages: docstrings and types as HTML and Markdown."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any


def prose(doc: str) -> str:
    """A docstring as HTML: paragraphs, `code`, indented lines as they are. Its signs are no Markdown."""
    blocks = []
    for block in re.split(r"\n\s*\n", doc.strip()):
        if all(line.startswith("  ") for line in block.splitlines()):
            blocks.append(f"<pre>{escape(block, quote=False)}</pre>")
        else:
            blocks.append(f"<p>{code(' '.join(block.split()))}</p>")
    return "\n".join(blocks)


def code(text: str) -> str:
    """Text as HTML, with `code`; class names of other modules keep theirs."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table: cells may hold what would end a Markdown cell."""
    head = "".join(f"<th>{each}</th>" for each in header)
    body = "".join("<tr>" + "".join(f"<td>{each}</td>" for each in row) + "</tr>\n" for row in rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"


def type_of(annotation: str) -> str:
    """`Literal['a', 'b'] | None` as words: <code>a</code>, <code>b</code> or nothing."""
    return " or ".join(_kind(each) for each in _sides(ast.parse(annotation, mode="eval").body))


def value(given: Any) -> str:
    """A default as it would stand in a grid."""
    if given is None:
        return ""
    if isinstance(given, list | tuple):
        return f"<code>[{', '.join(map(str, given))}]</code>"
    if isinstance(given, bool):
        return f"<code>{str(given).lower()}</code>"
    return f"<code>{given:_}</code>" if isinstance(given, int) else f"<code>{escape(str(given))}</code>"


def _sides(kind: ast.expr) -> list[ast.expr]:
    return [*_sides(kind.left), *_sides(kind.right)] if isinstance(kind, ast.BinOp) else [kind]


def _kind(kind: ast.expr) -> str:
    words = {"int": "whole number", "float": "number", "bool": "true or false", "str": "text"}
    match kind:
        case ast.Constant(value=None):
            return "none"
        case ast.Name(id=name):
            return words.get(name, name)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            found = ast.literal_eval(choices)
            return ", ".join(value(each) for each in (found if isinstance(found, tuple) else (found,)))
        case ast.Subscript(value=ast.Name(id="list" | "tuple"), slice=item):
            first = item.elts[0] if isinstance(item, ast.Tuple) else item
            return f"list of {_kind(first)}"
    return f"<code>{escape(ast.unparse(kind))}</code>"
