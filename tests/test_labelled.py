"""Texts with labels: every layout gives the rows that are in it, and what is wrong is named with its file and row."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import shared

from ablate.data.labelled import Example, Layout, class_names, files_of, labelled
from ablate.errors import UserError
from ablate.spec import DataSpec

TEXT = Layout(("text", "label"))


def put(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def pack(file: Path, files: Mapping[str, str | bytes]) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file


def read(path: Path | Mapping[str, Path], layout: Layout = TEXT, **settings: Any) -> list[Example]:
    places = str(path) if isinstance(path, Path) else tuple(sorted((name, str(file)) for name, file in path.items()))
    return labelled(DataSpec(path=places, **settings), layout)


def rows(examples: list[Example]) -> set[tuple[Any, ...]]:
    return {(*each.texts, each.label) for each in examples}


def lines(word: str, count: int = 15) -> str:
    return "".join(f"{word} number {n}\n" for n in range(count))


POLARITY = {
    "polarity/README.txt": "notes\n",
    "polarity/rt-polarity.neg": lines("bad"),
    "polarity/rt-polarity.pos": lines("good"),
}
EXPECTED = {(f"{word} number {n}", label) for word, label in (("bad", "neg"), ("good", "pos")) for n in range(15)}


@pytest.mark.parametrize("packed", [True, False])
def test_one_file_a_class(tmp_path: Path, packed: bool) -> None:
    path = pack(tmp_path / "p.zip", POLARITY) if packed else put(tmp_path / "p", POLARITY)
    found = read(path, valid=0.2, test=0.1)
    assert rows(found) == EXPECTED
    assert Counter(each.split for each in found) == {"train": 21, "valid": 6, "test": 3}


def test_names_of_classes_are_what_the_files_do_not_share(tmp_path: Path) -> None:
    put(tmp_path, {"plot.tok.gt9.5000": lines("a"), "quote.tok.gt9.5000": lines("b"), "README.txt": "x"})
    assert {each.label for each in read(tmp_path)} == {"plot", "quote"}


@pytest.mark.parametrize("packed", [True, False])
def test_one_folder_a_class(tmp_path: Path, packed: bool) -> None:
    files = {f"reviews/{label}/cv{n:03}.txt": f"{label}\ntext {n}\n" for label in ("neg", "pos") for n in range(12)}
    files["reviews/README"] = "notes"
    path = pack(tmp_path / "r.zip", files) if packed else put(tmp_path, files)
    found = read(path)
    assert rows(found) == {(f"{label}\ntext {n}\n", label) for label in ("neg", "pos") for n in range(12)}


def test_a_folder_for_each_split(tmp_path: Path) -> None:
    for split, count in (("train", 30), ("test", 4)):
        put(tmp_path, {f"{split}/{label}/{n}.txt": f"{split} {label} {n}" for label in "ab" for n in range(count)})
    found = read(tmp_path, valid=0.1)
    assert Counter(each.split for each in found) == {"train": 54, "valid": 6, "test": 8}
    assert all(each.texts[0].startswith("test") == (each.split == "test") for each in found)


def test_tables_named_by_split_and_a_validation_split_cut_from_the_training_rows(tmp_path: Path) -> None:
    table = "text,category\n" + "".join(f'"row, {n}",c{n % 3}\n' for n in range(40))
    put(tmp_path, {"train.csv": table, "test.csv": "text,category\nhello,c1\n", "categories.json": "[]"})
    found = read(tmp_path, Layout(("text", "category")), valid=0.25)
    assert Counter(each.split for each in found) == {"train": 30, "valid": 10, "test": 1}
    assert next(each for each in found if each.split == "test") == Example(
        "test", f"{tmp_path / 'test.csv'}:2", ("hello",), "c1"
    )


def test_equal_texts_never_lie_on_both_sides(tmp_path: Path) -> None:
    table = "text,label\n" + "".join(f"text {n % 30},{n % 2}\n" for n in range(300))
    put(tmp_path, {"all.csv": table})
    splits: dict[str, set[str]] = {}
    for each in read(tmp_path / "all.csv", valid=0.2, test=0.2):
        splits.setdefault(each.split, set()).add(each.texts[0])
    assert set(splits) == {"train", "valid", "test"}
    assert sum(map(len, splits.values())) == 30


def test_a_json_file_with_lists_by_split(tmp_path: Path) -> None:
    tree = {"train": [["a", "x"]], "val": [["b", "x"]], "test": [["c", "y"]], "oos_train": [["d", "oos"]]}
    put(tmp_path, {"c.json": json.dumps(tree)})
    found = read(tmp_path / "c.json")
    assert [(each.split, *each.texts, each.label) for each in found] == [
        ("train", "a", "x"), ("valid", "b", "x"), ("test", "c", "y"),
    ]  # fmt: skip
    more = read(tmp_path / "c.json", Layout(("text", "label"), out_of_scope=True))
    assert rows(more) - rows(found) == {("d", "oos")}


def test_a_json_list_and_a_path_for_each_split(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        put(tmp_path, {f"{split}.json": json.dumps([{"text": f"{split} text", "label": 3}])})
    found = read({split: tmp_path / f"{split}.json" for split in ("train", "valid", "test")})
    assert [(each.split, *each.texts, each.label) for each in sorted(found, key=lambda each: each.split)] == [
        ("test", "test text", 3), ("train", "train text", 3), ("valid", "valid text", 3),
    ]  # fmt: skip


def test_pairs_come_from_columns(tmp_path: Path) -> None:
    table = "premise\thypothesis\tlabel\n" + "".join(f"p{n}\th{n}\tyes\n" for n in range(25))
    put(tmp_path, {"pairs.tsv": table, "pos.txt": lines("a"), "neg.txt": lines("b")})
    layout = Layout(("premise", "hypothesis", "label"))
    assert ("p3", "h3", "yes") in rows(read(tmp_path / "pairs.tsv", layout))
    with pytest.raises(UserError, match=r"neg\.txt: holds one text a row: a pair"):
        (tmp_path / "pairs.tsv").unlink()
        read(tmp_path, layout)


def test_another_encoding_is_named_with_its_line_and_can_be_given(tmp_path: Path) -> None:
    files = {**POLARITY, "polarity/rt-polarity.neg": lines("bad").encode() + "très naïf\n".encode("latin-1")}
    path = pack(tmp_path / "p.zip", files)
    with pytest.raises(UserError, match=r"p\.zip:polarity/rt-polarity\.neg:16: not utf-8: byte 0xe8.*latin-1"):
        read(path)
    assert ("très naïf", "neg") in rows(read(path, Layout(("text", "label"), encoding="latin-1")))
    with pytest.raises(UserError, match=r"encoding: unknown encoding 'latin-99'"):
        read(path, Layout(("text", "label"), encoding="latin-99"))


def test_a_next_line_character_ends_no_line(tmp_path: Path) -> None:
    """0x85 is an ellipsis in cp1252 and a line end for `str.splitlines` in latin-1."""
    put(tmp_path, {"pos.txt": lines("a").encode() + b"so\x85 it goes\r\n", "neg.txt": lines("b")})
    assert ("so\x85 it goes", "pos") in rows(read(tmp_path, Layout(("text", "label"), encoding="latin-1")))


WRONG = {
    "no such column": ({"a.csv": "text,kind\na,b\n"}, "a.csv", r"a\.csv:2: unknown column 'label'"),
    "ragged columns": ({"a.csv": "text,label\na,b\na,b,c\n"}, "a.csv", r"a\.csv:3: 3 columns, but the header has 2"),
    "text that is none": ({"a.jsonl": '{"text": 5, "label": 1}\n'}, "a.jsonl", r"a\.jsonl:1: column 'text' is 5"),
    "too few rows": (
        {"a.csv": "text,label\na,b\n"},
        "a.csv",
        r"a\.csv: 1 rows are too few to cut a test and a valid",
    ),
    "one class": ({"pos.txt": "a\n"}, "", r"holds no two files or folders to be classes: pos\.txt"),
    "nothing": ({"README.txt": "a\n"}, "", r"holds no two files or folders to be classes: none"),
    "plain text": ({"a.txt": "a\n"}, "a.txt", r"a\.txt is no labelled text: give a file \.csv"),
    "not there": ({"a.txt": "a\n"}, "b.csv", r"b\.csv does not exist"),
    "no archive": ({"a.zip": "PK but not"}, "a.zip", r"a\.zip: cannot be read"),
    "no JSON": ({"a.json": "{"}, "a.json", r"a\.json: not JSON"),
    "JSON without training rows": ({"a.json": '{"test": []}'}, "a.json", r"a\.json: must be a list of rows"),
    "a JSON row": ({"a.json": '[["a", "b"], 7]'}, "a.json", r"a\.json: row 2: 7 must be an object, or a list \[text"),
    "tests alone": ({"test.csv": "text,label\na,b\n"}, "", r"has no training split"),
}


@pytest.mark.parametrize(("files", "name", "problem"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, files: dict[str, str], name: str, problem: str) -> None:
    put(tmp_path, files)
    with pytest.raises(UserError, match=problem):
        read(tmp_path / name)


def test_a_table_in_an_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.zip:train\.csv: a table in an archive: unpack it"):
        read(pack(tmp_path / "a.zip", {"train.csv": "text,label\n"}))


def test_classes_have_one_order() -> None:
    assert class_names(["b", "a", "b"]) == ["a", "b"]
    assert class_names([10, 9, 2]) == ["2", "9", "10"]
    assert class_names([10, "9", 2]) == ["10", "2", "9"]


def test_files_are_told_apart_by_split_and_class(tmp_path: Path) -> None:
    """The fingerprint of the data rests on it: two files that change their names change what is learned."""
    put(tmp_path, {"rt.neg": "a", "rt.pos": "b"})
    assert files_of(DataSpec(path=str(tmp_path)), TEXT) == {
        "all/neg": (tmp_path / "rt.neg",),
        "all/pos": (tmp_path / "rt.pos",),
    }


PUBLISHED = {
    "sentence_polarity.zip": (10_662, 2, TEXT),
    "subjectivity.zip": (10_000, 2, TEXT),
    "movie_reviews.zip": (2_000, 2, TEXT),
    "banking_data": (13_083, 77, Layout(("text", "category"))),
    "clinc150_full.json": (22_500, 150, TEXT),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_data_have_their_published_sizes(name: str) -> None:
    count, classes, layout = PUBLISHED[name]
    found = read(shared("data", "text_cls", name), layout)
    assert len(found) == count
    assert len({each.label for each in found}) == classes
    assert {each.split for each in found} == {"train", "valid", "test"}
