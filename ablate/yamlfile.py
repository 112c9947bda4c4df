"""YAML with line numbers, the scalars of YAML 1.2 (1e-3 is a number, `on` is text), and no duplicate keys."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ablate.errors import PlaceError, UserError
from analysis.typed import did_you_mean

DIGITS = r"[0-9]+(?:_[0-9]+)*"
INT = re.compile(rf"[-+]?{DIGITS}|0x[0-9a-fA-F]+|0o[0-7]+")
FLOAT = re.compile(rf"[-+]?(\.{DIGITS}|{DIGITS}(\.({DIGITS})?)?)([eE][-+]?[0-9]+)?")
SPECIAL = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
TAG = "tag:yaml.org,2002:"  # what plain values get by themselves

Path_ = tuple[str, ...]


@dataclass
class Document:
    """The value of a YAML file, and the line of every key and item in it; no lines where it was no file."""

    file: Path
    text: str
    value: Any = None
    lines: dict[Path_, int] = field(default_factory=dict)
    overridden: set[Path_] = field(default_factory=set)  # given on the command line

    def error(self, path: Path_, problem: str) -> PlaceError:
        """`file:line: dotted.path: problem`, at the nearest place that the file has; `file: ...` without lines."""
        for depth in range(len(path), 0, -1):
            if path[:depth] in self.overridden:
                return PlaceError(f"--set {'.'.join(path)}: {problem}", path, problem)
        known = path
        while known and known not in self.lines:
            known = known[:-1]
        line = f":{self.lines.get(known, 1)}" if self.lines else ""
        where = ".".join(path)
        return PlaceError(f"{self.file}{line}: {where + ': ' if where else ''}{problem}", path, problem)


def read_yaml(file: Path, loader: Any = yaml.SafeLoader) -> Document:
    """Read one file, by one of PyYAML's loaders.

    Raises `UserError` with the file and line for what is not YAML, or is ambiguous.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{file} does not exist{_near(file)}") from None
    except IsADirectoryError:
        raise UserError(f"{file} is a folder, not a file") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{file}:{line}: not UTF-8 text: byte 0x{error.object[error.start]:02x}") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    return parse_yaml(text, file, loader)


def _near(file: Path) -> str:
    """The file beside it that may have been meant."""
    beside = [each.name for each in file.parent.glob(f"*{file.suffix}")]
    hint = did_you_mean(file.name, beside)
    return f";{hint}" if hint else ""


def parse_yaml(text: str, file: Path, loader: Any = yaml.SafeLoader) -> Document:
    """The same, from text."""
    document = Document(file, text)
    try:
        node = yaml.compose(text, Loader=loader)
        if node is not None:
            document.value = _value(node, (), document, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise UserError(f"{file}:{line}: not YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{file}:{line}: not YAML: holds the character U+{ord(text[error.position]):04X}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not YAML: {str(error).splitlines()[0]}") from None
    document.lines.setdefault((), 1)  # of an empty file
    return document


def document_of(tree: Any, file: Path) -> Document:
    """A tree of Python's values as a file that is called `file` would have it; errors name no lines.

    Mappings, lists and tuples, text, numbers and what numpy has of these. Raises `UserError` for anything else.
    """
    document = parse_yaml(yaml_of(tree, str(file)), file)
    document.lines.clear()
    return document


def yaml_of(tree: Any, name: str, flow: bool = False) -> str:
    """Text that reads as these values, in one line with `flow`. Raises `UserError` with `name` and the path."""
    try:
        plain = _plain(tree, (), name)
    except RecursionError:
        raise UserError(f"{name}: contains itself") from None
    text: str = yaml.dump(plain, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=10**9,
                          default_flow_style=flow)  # fmt: skip
    return text.removesuffix("...\n").strip() if flow else text


def parse_scalar(text: str) -> Any:
    """A value as it would read in a YAML file: `3`, `1e-3`, `[1, 2]`, `{name: rope}`."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return None if node is None else _value(node, (), Document(Path("--set"), text), ())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--set: {text!r} is not a YAML value: {str(error).splitlines()[0]}") from None


def _value(node: yaml.Node, path: Path_, document: Document, above: tuple[int, ...]) -> Any:
    document.lines.setdefault(path, node.start_mark.line + 1)
    if id(node) in above:
        raise UserError(f"{document.file}:{node.start_mark.line + 1}: an alias contains itself")
    above = (*above, id(node))
    if not node.tag.startswith(TAG) or node.tag.startswith(f"{TAG}python/"):
        tag = node.tag.replace(TAG, "!!")
        raise UserError(f"{document.file}:{node.start_mark.line + 1}: tags ({tag}) are not supported: leave it out")
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, str(i)), document, above) for i, item in enumerate(node.value)]
    assert isinstance(node, yaml.MappingNode)
    out: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{document.file}:{line}: a key must be plain text")
        key = key_node.value
        if key_node.tag == "tag:yaml.org,2002:merge":
            raise UserError(f"{document.file}:{line}: merge keys (<<) are not supported: write the keys out")
        if key in out:
            first = document.lines[(*path, key)]
            raise UserError(f"{document.file}:{line}: {'.'.join((*path, key))}: given twice, first in line {first}")
        document.lines[(*path, key)] = line
        out[key] = _value(value_node, (*path, key), document, above)
    return out


def _scalar(node: yaml.ScalarNode) -> Any:
    text = node.value
    if node.style in ("'", '"', "|", ">"):
        return text
    if text in SPECIAL:
        return SPECIAL[text]
    if INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if FLOAT.fullmatch(text):
        return float(text)
    return text


class _Writer(yaml.SafeDumper):
    """Puts text between quotes wherever it would be read as something else."""


def _write_text(writer: _Writer, text: str) -> yaml.Node:
    plain = SPECIAL.get(text, text) == text and not INT.fullmatch(text) and not FLOAT.fullmatch(text)
    return writer.represent_scalar(f"{TAG}str", text, style=None if plain else '"')


_Writer.add_representer(str, _write_text)


def _plain(value: Any, path: Path_, name: str) -> Any:
    """The same of Python's own types."""
    if hasattr(value, "tolist"):
        value = value.tolist()  # of numpy, pandas and torch
    if isinstance(value, Mapping):
        return {_key(key, path, name): _plain(each, (*path, str(key)), name) for key, each in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(each, (*path, str(number)), name) for number, each in enumerate(value)]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    where = f"{'.'.join(path)}: " if path else ""
    raise UserError(f"{name}: {where}{value!r} is a {type(value).__name__}: only text, numbers, lists and mappings")


def _key(key: Any, path: Path_, name: str) -> str:
    if isinstance(key, str | int) and not isinstance(key, bool):
        return str(key)
    where = f"{'.'.join(path)}: " if path else ""
    raise UserError(f"{name}: {where}a key must be text, and {key!r} is not")
