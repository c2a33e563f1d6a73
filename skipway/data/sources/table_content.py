"""Contents of table files: their kinds by name, and their bytes, which may be compressed, as UTF-8 text."""

import bz2
import gzip
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from skipway.data.sources.missing_file import missing_file
from skipway.errors import InputError, MissingExtra, printable, reason_of

__all__ = [
    "SCANNED",
    "SPACED_SUFFIXES",
    "WORKBOOK_SUFFIXES",
    "decode_text",
    "read_content",
    "refuse_size",
    "table_stem",
    "table_suffix",
]

SPACED_SUFFIXES = frozenset((".txt", ".dat", ".data"))  # of text whose fields may be separated by spaces
_TEXT_SUFFIXES = SPACED_SUFFIXES | {".csv", ".tsv", ".tab", ".json", ".jsonl", ".ndjson"}  # these may be compressed
WORKBOOK_SUFFIXES = frozenset((".xlsx", ".xlsm"))
_SUFFIXES = _TEXT_SUFFIXES | WORKBOOK_SUFFIXES | {".parquet", ".feather", ".arrow"}
# In folders of images, text and JSON files are rarely tables, and files of pyarrow are often parts of other datasets.
SCANNED = _SUFFIXES - SPACED_SUFFIXES - {".json", ".feather", ".arrow"}
_MAX_BYTES = 2 << 30  # tables are read into memory and need up to 10 times their file size
_BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an Excel workbook (.xls)",
    b"\x1f\x8b": "a gzip file",
    b"PAR1": "a parquet file",
    b"%PDF": "a PDF file",
    b"SQLite": "an SQLite database",
}


def table_suffix(path: str | Path) -> str:
    """Return the kind of a table file as its suffix in lower case, without that of its compression, or "".

    A zip archive is a table if it holds one file, which is a table.

    >>> table_suffix("a.CSV"), table_suffix("a.csv.gz"), table_suffix("a.png"), table_suffix("a.parquet.gz")
    ('.csv', '.csv', '', '')
    """
    stem, suffix = os.path.splitext(os.path.basename(path).lower())
    if suffix not in _OPENERS:
        return suffix if suffix in _SUFFIXES else ""
    inner = os.path.splitext(stem)[1]
    if suffix == ".zip" and os.path.isfile(path):
        inner = os.path.splitext(_only_member(Path(path)).lower())[1]
    return inner if inner in _TEXT_SUFFIXES else ""


def table_stem(name: str) -> str:
    """Return the name of a table file without its suffixes.

    >>> table_stem("train.csv.gz"), table_stem("a.b.csv")
    ('train', 'a.b')
    """
    stem, suffix = os.path.splitext(name)
    return table_stem(stem) if suffix.lower() in _OPENERS and table_suffix(name) else stem


def read_content(path: Path) -> bytes:
    """Return the bytes of a file, decompressed if its suffix is that of a compression.

    Raises:
        InputError: the file cannot be read, is too large, or is damaged.
        MissingExtra: the package for its compression is not installed.
    """
    where = printable(path)
    opener = _OPENERS.get(path.suffix.lower(), open)
    try:
        if not path.exists():
            raise missing_file(path)
        if not path.is_file():
            raise InputError(f"cannot read {where}: expected a regular file. Pass a .csv, .tsv or .parquet file.")
        refuse_size(path.stat().st_size, where)
        if opener is open:
            return path.read_bytes()
        with opener(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile, gzip.BadGzipFile, RuntimeError) as error:
        raise InputError(f"cannot decompress {where}: {reason_of(error)}. Download or create it again.") from None
    except OSError as error:
        reason = error.strerror or reason_of(error)
        raise InputError(f"cannot read {where}: {reason}. Check the path and the permissions.") from None
    refuse_size(len(data), where)
    return bytes(data)


def decode_text(data: bytes, where: str) -> tuple[bytes, list[str]]:
    """Return text as UTF-8 without a byte order mark, and notes on its encoding.

    Raises:
        InputError: the data are no text, or empty.
    """
    for start, kind in _OTHER_FORMATS.items():
        if data.startswith(start):
            raise InputError(f"cannot read {where}: expected a text table, got {kind}. Save it as CSV.")
    if not data or data.isspace():
        raise InputError(
            f"cannot read {where}: expected column names in the first line, got an empty file. Add a header."
        )
    for mark, name in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            try:
                text = data.decode(name).encode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"cannot read {where}: expected {name.removesuffix('-sig').upper()} by its byte order mark, got "
                    f"an invalid byte at offset {error.start:,}. Save it as UTF-8."
                ) from None
            return text, ([] if name == "utf-8-sig" else ["read as UTF-16"])
    head = data[:4096]
    for offset, name in ((1, "utf-16-le"), (0, "utf-16-be")):  # every second byte of Latin text is zero
        if len(head) >= 4 and head[offset::2].count(0) > 0.7 * len(head[offset::2]):
            try:
                return data.decode(name).encode("utf-8"), ["read as UTF-16"]
            except UnicodeDecodeError:
                break
    if (zero := data.find(0)) >= 0:
        raise InputError(
            f"cannot read {where}:{_line_at(data, zero)}: expected text, got a NUL byte. Save the table as UTF-8."
        )
    if data.isascii():
        return data, []
    try:
        data.decode("utf-8")
        return data, []
    except UnicodeDecodeError as error:
        note = f"line {_line_at(data, error.start):,} is not UTF-8: read as Windows-1252 (Latin-1)"
        try:
            return data.decode("cp1252").encode("utf-8"), [note]
        except UnicodeDecodeError:
            return data.decode("latin-1").encode("utf-8"), [note]


def refuse_size(size: int, where: str) -> None:
    """Raise InputError if a file has more bytes than are read into memory."""
    if size > _MAX_BYTES:
        raise InputError(
            f"cannot read {where}: expected at most {_MAX_BYTES:,} bytes, got {size:,}. Split it, or save it as "
            ".parquet."
        )


def _line_at(data: bytes, offset: int) -> int:
    before = data[:offset].replace(b"\r\n", b"\n")
    return before.count(b"\n") + before.count(b"\r") + 1


def _only_member(path: Path) -> str:
    """Return the name of the only file in a zip archive, or "" if there are several or none."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
    except (OSError, ValueError, zipfile.BadZipFile):
        return ""
    return names[0] if len(names) == 1 else ""


def _open_zip(path: Path, mode: str) -> IO[bytes]:
    if not (name := _only_member(path)):
        raise InputError(
            f"cannot read {printable(path)}: expected a zip archive of one table, got other content. Unpack it."
        )
    return zipfile.ZipFile(path).open(name)


def _open_zstd(path: Path, mode: str) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise MissingExtra("parquet", f"decompressing {printable(path)}") from None
    return pyarrow.CompressedInputStream(str(path), "zstd")


_OPENERS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
    ".zip": _open_zip,
}
