"""Texts with labels: the layouts in which they are published, and their rows by split.

What `data.path` may name, split by a hash of the text unless the names of files or folders say how:

a table            columns of texts and labels: .csv, .tsv, .jsonl, .parquet
a folder of tables train.csv, test.csv and maybe valid.csv; other files beside them are notes
a .json file       lists of [text, label] by split, as CLINC150, or one list of objects
one file a class   a line an example: rt-polarity.pos and rt-polarity.neg are classes pos and neg
one folder a class a file an example: pos/1.txt, neg/1.txt

The last two as a folder or a .zip file, also in one folder for each split: train/pos/1.txt.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ablate.data.corpora import FEWEST_DOCUMENTS, SPLIT_NAMES, SPLITS, examples_of, hashes_of, split_by_hash
from ablate.data.readers import Row, kind_of, read_rows, text_of, value_of
from ablate.errors import SpecError, UserError
from ablate.spec import DataSpec

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
NOTES = {"readme", "license", "licence", "copying", "notice", "authors", "changes", "changelog", "citation"}
OUT_OF_SCOPE = "oos_"  # begins the names of CLINC150's lists of questions that are of no class


@dataclass(frozen=True)
class Example:
    """One row: its texts, one or two, and its label as it was read."""

    split: str
    place: str  # for messages
    texts: tuple[str, ...]
    label: Any


@dataclass(frozen=True)
class Layout:
    """How rows are read: the columns of tables, the encoding of files of text, whether lists that are out of scope
    count as a class."""

    columns: tuple[str, ...]  # of the texts, then of the label
    encoding: str = "utf-8"
    out_of_scope: bool = False

    def __post_init__(self) -> None:
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            problem = f"unknown encoding {self.encoding!r}; known: utf-8, latin-1, cp1252 and Python's others"
            raise SpecError(["task", "encoding"], problem) from None


@dataclass(frozen=True)
class Part:
    """A file, or a part of one, whose rows are of one split, or of `all`."""

    split: str
    kind: Literal["table", "json", "lines", "document"]
    file: Path
    member: str = ""  # of an archive, or the name of a JSON file's list
    label: str = ""  # of all its rows, where they have none of their own

    @property
    def place(self) -> str:
        return f"{self.file}:{self.member}" if self.member else str(self.file)


def files_of(data: DataSpec, layout: Layout) -> dict[str, tuple[Path, ...]]:
    """The files of a specification with absolute paths, by split and class: what its fingerprint is made of."""
    found: dict[str, dict[Path, None]] = {}
    for part in parts_of(data, layout):
        found.setdefault(f"{part.split}/{part.label}", {})[part.file] = None
    return {name: tuple(files) for name, files in found.items()}


def labelled(data: DataSpec, layout: Layout) -> list[Example]:
    """The rows of a resolved specification. Where there is no validation split, or no test split, it is cut from the
    training rows by a hash of the first text, so that equal texts never lie on both sides.

    Raises `UserError` with the file and the row for what cannot be read.
    """
    parts = parts_of(data, layout)
    given = {part.split for part in parts}
    with Bytes() as content:
        rows = [(part.split, *row) for part in parts for row in _read(part, layout, content)]
    cut = {split for split in ("valid", "test") if split not in given}
    if not cut:
        return [Example(*row) for row in rows]
    train = [row for row in rows if row[0] in ("train", "all")]
    if len(train) < FEWEST_DOCUMENTS:
        problem = f"{len(train)} rows are too few to cut a {' and a '.join(sorted(cut))} split from: there must be"
        raise UserError(f"{parts[0].place}: {problem} {FEWEST_DOCUMENTS}")
    found = iter(split_by_hash(hashes_of(texts[0] for _, _, texts, _ in train), data.valid, data.test))
    examples = []
    for split, *row in rows:
        if split in ("train", "all"):
            split = next(found)
            split = split if split in cut else "train"
        examples.append(Example(split, *row))
    return examples


def parts_of(data: DataSpec, layout: Layout) -> list[Part]:
    """Where the rows of a specification are. Raises `SpecError` for a layout that is none of those known."""
    if data.hub is not None:
        return [Part("all", "table", file) for _, files in examples_of(data, layout.columns).files for file in files]
    if data.path is None:
        raise SpecError(["path"], f"is missing: task {data.task.name!r} has no data of its own")
    given = data.path if isinstance(data.path, tuple) else (("all", data.path),)
    parts = [part for split, path in given for part in _parts(Path(path), split, layout)]
    if len(given) == 1 and not {part.split for part in parts} & {"all", "train"}:
        raise SpecError(["path"], f"{data.path} has no training split: {sorted({part.split for part in parts})}")
    return parts


def _parts(path: Path, split: str, layout: Layout) -> list[Part]:
    if not path.exists():
        raise SpecError(["path"], f"{path} does not exist")
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return _arranged({file.relative_to(path).parts: Part(split, "lines", file) for file in files}, path, split)
    if path.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                names = sorted(each.filename for each in archive.infolist() if not each.is_dir())
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from None
        return _arranged({tuple(name.split("/")): Part(split, "lines", path, name) for name in names}, path, split)
    if path.suffix.lower() == ".json":
        return _lists(path, split, layout.out_of_scope)
    if kind_of(path) in TABLES:
        return [Part(split, "table", path)]
    known = f"a file {', '.join(TABLES)} or .json, a .zip file or a folder of one file or folder for each class"
    raise SpecError(["path"], f"{path} is no labelled text: give {known}")


Tree = Mapping[tuple[str, ...], Part]


def _arranged(tree: Tree, path: Path, split: str) -> list[Part]:
    """The parts of a folder or an archive: each file's split, kind and class, by the names on its way."""
    tree = {names: part for names, part in tree.items() if not _is_note(names)}
    while tree and len({names[0] for names in tree}) == 1 and all(len(names) > 1 for names in tree):
        if next(iter(tree))[0].lower() in SPLIT_NAMES:
            break
        tree = {names[1:]: part for names, part in tree.items()}
    if tables := {names[0]: part for names, part in tree.items() if len(names) == 1 and _table(names[0])}:
        return _tables(tables, path, split)
    folders = sorted({names[0] for names in tree if len(names) > 1})
    if split == "all" and (split_of := {name: SPLIT_NAMES[name.lower()] for name in folders if _is_split(name)}):
        inner: list[Part] = []
        for name, own in split_of.items():
            below = {names[1:]: part for names, part in tree.items() if names[0] == name and len(names) > 1}
            inner += _arranged(below, path / name, own)
        return inner
    if len(folders) > 1:
        return [
            Part(split, "document", part.file, part.member, names[0])
            for names, part in tree.items()
            if len(names) > 1
        ]
    files = {names[0]: part for names, part in tree.items() if len(names) == 1}
    if len(files) < 2:
        raise SpecError(["path"], f"{path} holds no two files or folders to be classes: {', '.join(files) or 'none'}")
    labels = _differing(list(files))
    return [Part(split, "lines", part.file, part.member, labels[name]) for name, part in files.items()]


def _is_note(names: tuple[str, ...]) -> bool:
    hidden = any(name.startswith((".", "__MACOSX")) for name in names)
    return hidden or names[-1].split(".")[0].lower() in NOTES


def _is_split(name: str) -> bool:
    return name.lower() in SPLIT_NAMES


def _table(name: str) -> bool:
    return kind_of(Path(name)) in TABLES


def _tables(tables: Mapping[str, Part], path: Path, split: str) -> list[Part]:
    if packed := next((part for part in tables.values() if part.member), None):
        raise SpecError(["path"], f"{packed.place}: a table in an archive: unpack it")
    named = {name: SPLIT_NAMES.get(re.split(r"[.\-_]", name)[0].lower(), "") for name in tables}
    if split != "all" or not any(named.values()):
        return [Part(split, "table", part.file) for part in tables.values()]
    if "train" not in named.values():
        raise SpecError(["path"], f"{path} has no training split: {', '.join(tables)}")
    return [Part(named[name], "table", part.file) for name, part in tables.items() if named[name]]


def _differing(names: list[str]) -> dict[str, str]:
    """What file names do not have in common, in words between points, hyphens and underscores, as their classes."""
    words = {name: re.split(r"[.\-_]", name.removesuffix(".txt")) for name in names}
    shortest = min(len(each) for each in words.values())
    first = next((n for n in range(shortest) if len({each[n] for each in words.values()}) > 1), shortest)
    alike = (n for n in range(shortest - first) if len({each[-1 - n] for each in words.values()}) > 1)
    last = next(alike, shortest - first)
    labels = {name: ".".join(each[first : len(each) - last]) for name, each in words.items()}
    return labels if all(labels.values()) else {name: name.removesuffix(".txt") for name in names}


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8: byte 0x{error.object[error.start]:02x}") from None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{file}: not JSON: {error}") from None


def _lists(file: Path, split: str, out_of_scope: bool) -> list[Part]:
    """The lists of a JSON file: by split, or one without."""
    tree = _json(file)
    if isinstance(tree, list):
        return [Part(split, "json", file)]
    splits = {}
    for name in tree if isinstance(tree, dict) else ():
        plain = name.removeprefix(OUT_OF_SCOPE) if out_of_scope else name
        if plain.lower() in SPLIT_NAMES and isinstance(tree[name], list):
            splits[name] = SPLIT_NAMES[plain.lower()]
    if "train" not in splits.values():
        raise SpecError(["path"], f"{file}: must be a list of rows, or hold lists called {', '.join(SPLITS)}")
    return [Part(own, "json", file, name) for name, own in splits.items() if split in ("all", own)]


class Bytes(contextlib.ExitStack):
    """Reads files, and members of archives, each of which is opened once."""

    def __init__(self) -> None:
        super().__init__()
        self._archives: dict[Path, zipfile.ZipFile] = {}

    def of(self, part: Part) -> bytes:
        try:
            if not part.member:
                return part.file.read_bytes()
            if part.file not in self._archives:
                self._archives[part.file] = self.enter_context(zipfile.ZipFile(part.file))
            return self._archives[part.file].read(part.member)
        except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError) as error:  # torn; encrypted, unknown packing
            raise UserError(f"{part.place}: cannot be read: {error}") from None


def _read(part: Part, layout: Layout, content: Bytes) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """The place, the texts and the label of every row of a part."""
    if part.kind in ("table", "json"):
        *texts, label = layout.columns
        rows = _rows(part, layout.columns) if part.kind == "json" else read_rows(part.file, layout.columns)
        for place, row in rows:
            yield place, tuple(text_of(row, column, place) for column in texts), value_of(row, label, place)
        return
    if len(layout.columns) > 2:
        raise UserError(f"{part.place}: holds one text a row: a pair of texts comes from the columns of a table")
    text = _decoded(content.of(part), layout.encoding, part.place)
    if part.kind == "document":
        yield part.place, (text,), part.label
        return
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would cut at other characters as well
        if line.strip():
            yield f"{part.place}:{number}", (line.strip(),), part.label


def _rows(part: Part, columns: tuple[str, ...]) -> Iterator[Row]:
    tree = _json(part.file)
    for number, row in enumerate(tree[part.member] if part.member else tree, 1):
        place = f"{part.place}: row {number}"
        if isinstance(row, list) and len(row) == len(columns):
            row = dict(zip(columns, row, strict=True))
        if not isinstance(row, dict):
            due = ", ".join(columns)
            raise UserError(f"{place}: {json.dumps(row)[:60]} must be an object, or a list [{due}]")
        yield place, row


def _decoded(content: bytes, encoding: str, place: str) -> str:
    try:
        return content.decode("utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        byte = f"byte 0x{content[error.start]:02x}"
        raise UserError(
            f"{place}:{line}: not {encoding}: {byte}; set the option `encoding` of the task, as encoding: latin-1"
        ) from None


def class_names(labels: Iterable[str | int]) -> list[str]:
    """The classes in their order: by number where all are numbers, else by name."""
    every = set(labels)
    numbers = [each for each in every if isinstance(each, int)]
    return [str(each) for each in (sorted(numbers) if len(numbers) == len(every) else sorted(map(str, every)))]
