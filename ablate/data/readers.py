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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ablate.errors import UserError, unknown

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
    kind = kind_of(file)
    if kind is None:
        known = ", ".join(READERS)
        raise UserError(f"{file}: cannot be read as text; known: {known}, each also with {', '.join(OPENERS)}")
    try:
        yield from READERS[kind](file, column)
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


def _read_text(file: Path, column: str) -> Iterator[str]:
    with _open(file) as stream:
        yield stream.read().replace("\r\n", "\n")


def _read_jsonl(file: Path, column: str) -> Iterator[str]:
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
            yield _cell({column: row} if isinstance(row, str) else row, column, place)


def _read_csv(file: Path, column: str) -> Iterator[str]:
    csv.field_size_limit(sys.maxsize)
    with _open(file) as stream:
        rows = csv.reader(stream, strict=True)
        try:
            header = next(rows, [])
            for row in rows:
                if len(row) != len(header):
                    raise UserError(f"{file}:{rows.line_num}: {len(row)} columns, but the header has {len(header)}")
                yield _cell(dict(zip(header, row, strict=True)), column, f"{file}:{rows.line_num}")
        except csv.Error as error:
            raise UserError(f"{file}:{rows.line_num}: not CSV: {error}") from None


def _read_parquet(file: Path, column: str) -> Iterator[str]:
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    try:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        if column not in names:
            raise UserError(f"{file}: {unknown('column', column, names)} (set data.column)")
        number = 0
        for batch in table.iter_batches(columns=[column]):
            for value in batch.column(0).to_pylist():
                number += 1
                yield _cell({column: value}, column, f"{file}: row {number}")
    except ArrowException as error:
        raise UserError(f"{file}: not Parquet: {error}") from None


def _cell(row: Any, column: str, place: str) -> str:
    if not isinstance(row, dict):
        raise UserError(f"{place}: holds {type(row).__name__}, must be an object or text")
    if column not in row:
        raise UserError(f"{place}: {unknown('column', column, row)} (set data.column)")
    text = row[column]
    if not isinstance(text, str):
        raise UserError(f"{place}: column {column!r} is {text!r:.60}, must be text")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise UserError(f"{place}: holds U+{ord(text[error.start]):04X}, which is no character") from None
    return text


READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _read_text,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
