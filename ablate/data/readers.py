"""Documents from files: text, JSON lines, CSV and Parquet, plain or compressed."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ablate.errors import UserError, unknown

Row = tuple[str, Mapping[str, Any]]
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}


def kind_of(file: Path) -> str | None:
    """The format of a file by its name without a compression suffix, None where no reader knows it."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    packed = bool(suffixes) and suffixes[-1] in OPENERS
    if packed:
        suffixes.pop()
    kind = suffixes[-1] if suffixes and suffixes[-1] in READERS else None
    return None if packed and kind == ".parquet" else kind  # Parquet compresses by itself


def read_documents(file: Path, column: str) -> Iterator[str]:
    """The documents of one file, in order. A text file is one document; elsewhere each row is one.

    Raises `UserError` with the file and the row for anything that is not what its name says.
    """
    try:
        for place, row in read_rows(file, (column,)):
            yield text_of(row, column, place)
    except UserError as error:
        hint = " (set data.column)" if "unknown column" in str(error) else ""
        raise UserError(f"{error}{hint}") from None


def read_rows(file: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of one file, in order: the place of each, for messages, and its values by column.

    Raises `UserError` with the file and the row for anything that is not what its name says.
    """
    kind = kind_of(file)
    if kind is None:
        known = ", ".join(READERS)
        raise UserError(f"{file}: cannot be read as text; known: {known}, each also with {', '.join(OPENERS)}")
    try:
        yield from READERS[kind](file, columns)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}:{_bad_line(file)}: not UTF-8: byte 0x{error.object[error.start]:02x}; "
            "convert it first, for example with iconv -f latin1 -t utf-8"
        ) from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None


class Zstandard(io.RawIOBase):
    """The bytes of a .zst file, all its frames. (`zstandard.open` ends at the first, and at a torn one, silently.)"""

    def __init__(self, file: Path):
        self._stream = open(file, "rb")
        self._frame: Any = None
        self._bytes = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        from zstandard import ZstdDecompressor, ZstdError

        while not self._bytes:
            if not (packed := self._stream.read(1 << 16)):
                if self._frame is not None:
                    raise EOFError("Compressed file ended before the end of its last frame")
                return 0
            while packed:
                self._frame = self._frame or ZstdDecompressor().decompressobj()
                try:
                    self._bytes += self._frame.decompress(packed)
                except ZstdError as error:
                    raise OSError(error) from None
                packed = self._frame.unused_data
                if self._frame.eof:
                    self._frame = None
        size = min(len(buffer), len(self._bytes))
        buffer[:size], self._bytes = self._bytes[:size], self._bytes[size:]
        return size

    def close(self) -> None:
        self._stream.close()
        super().close()


OPENERS[".zst"] = lambda file, mode: io.BufferedReader(Zstandard(file))


def _open_bytes(file: Path) -> Any:
    return OPENERS.get(file.suffix.lower(), open)(file, "rb")


def _open(file: Path) -> IO[str]:
    return io.TextIOWrapper(_open_bytes(file), encoding="utf-8-sig", newline="")


def _bad_line(file: Path) -> int:
    """The first line that is not UTF-8; no character of it holds a line end, so lines can be tried alone."""
    with _open_bytes(file) as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _read_text(file: Path, columns: Sequence[str]) -> Iterator[Row]:
    with _open(file) as stream:
        yield str(file), {columns[0]: stream.read().replace("\r\n", "\n")}


def _read_jsonl(file: Path, columns: Sequence[str]) -> Iterator[Row]:
    with _open(file) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            place = f"{file}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{place}: not JSON: {error.msg}") from None
            except RecursionError:
                raise UserError(f"{place}: nested too deeply") from None
            row = {columns[0]: row} if isinstance(row, str) else row
            if not isinstance(row, dict):
                raise UserError(f"{place}: holds {type(row).__name__}, must be an object or text")
            yield place, row


def _read_csv(file: Path, columns: Sequence[str], **form: Any) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    with _open(file) as stream:
        rows = csv.reader(stream, strict=True, **form)
        try:
            header = next(rows, [])
            for row in rows:
                if len(row) != len(header):
                    raise UserError(f"{file}:{rows.line_num}: {len(row)} columns, but the header has {len(header)}")
                yield f"{file}:{rows.line_num}", dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise UserError(f"{file}:{rows.line_num}: not CSV: {error}") from None


def _read_tsv(file: Path, columns: Sequence[str]) -> Iterator[Row]:
    return _read_csv(file, columns, delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_parquet(file: Path, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    try:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        for column in columns:
            if column not in names:
                raise UserError(f"{file}: {unknown('column', column, names)}")
        number = 0
        for batch in table.iter_batches(columns=list(columns)):
            for row in batch.to_pylist():
                number += 1
                yield f"{file}: row {number}", row
    except ArrowException as error:
        raise UserError(f"{file}: not Parquet: {error}") from None


def text_of(row: Mapping[str, Any], column: str, place: str) -> str:
    """A row's text. Raises `UserError` with the place where there is none."""
    text = value_of(row, column, place)
    if not isinstance(text, str):
        raise UserError(f"{place}: column {column!r} is {text!r:.60}, must be text")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise UserError(f"{place}: holds U+{ord(text[error.start]):04X}, which is no character") from None
    return text


def value_of(row: Mapping[str, Any], column: str, place: str) -> Any:
    """A row's value, whatever it is."""
    if column not in row:
        raise UserError(f"{place}: {unknown('column', column, row)}")
    return row[column]


READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[Row]]] = {
    ".txt": _read_text,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
