"""Lines below a text table: totals, sources and empty rows."""

import csv
import re

from skipway.errors import printable
from skipway.utils.format_text import count_of

__all__ = ["last_lines"]

_TAIL = 1 << 16  # bytes at the end of a text that may hold lines below the table
_TOTAL = re.compile(r"(grand[ -]?)?(total|sum|summe|gesamt|insgesamt)s?:?", re.I)
_BELOW = re.compile(
    r"((grand|sub|column)[ -]?)?(total|sum|summe|mean|average|gesamt|insgesamt|sources?|quelle|notes?|remarks?"
    r"|generated|exported|copyright|end of|count)\w*\b|\*|©",
    re.I,
)


def last_lines(text: bytes, separator: str, width: int) -> tuple[int, str]:
    """Find lines below a table.

    All fields of such a line are empty, or it begins with a word such as Total and has empty fields or another number
    of fields. It may also hold one sentence, or any text after a blank line.

    Args:
        text: UTF-8 text, from the header on.
        separator: separator of the fields.
        width: number of fields of a row.

    Returns:
        The offset of the first such line, or the end of the text, and a note, which may be "".
    """
    cut = 0 if len(text) <= _TAIL else text.find(b"\n", len(text) - _TAIL) + 1
    records = _records(text[cut:], separator)
    first = len(records)
    while first > (0 if cut else 2) and _is_below(records, first - 1, width):
        first -= 1
    if width < 2 or not records:
        return len(text), ""
    if first == len(records):
        name = records[-1][2][0].strip()
        is_total = _TOTAL.fullmatch(name) is not None
        return len(text), f"the last row begins with {name!r} and is kept as a row" if is_total else ""
    below = [fields for _, _, fields in records[first:]]
    texts = [" ".join(filter(None, map(str.strip, fields))) for fields in below]
    texts = [shown for shown in texts if shown]
    example = f"such as {printable(texts[0])[:40]!r}" if texts else "which are empty"
    return cut + records[first][0], f"{count_of(len(below), 'line')} below the table left out, {example}"


def _records(tail: bytes, separator: str) -> list[tuple[int, bool, list[str]]]:
    """Return (offset, True after a blank line, fields) of the records in a tail; no records if it is damaged."""
    offset = 0
    starts = []
    lines = tail.splitlines(keepends=True)
    for line in lines:
        starts.append(offset)
        offset += len(line)
    reader = csv.reader((line.decode("utf-8", "replace") for line in lines), delimiter=separator, strict=True)
    records = []
    is_after_blank, number = False, 0
    try:
        for fields in reader:
            is_blank = not fields or (len(fields) == 1 and not fields[0].strip())
            if not is_blank:
                records.append((starts[number], is_after_blank, fields))
            is_after_blank, number = is_blank, reader.line_num
    except csv.Error:
        return []
    return records


def _is_below(records: list[tuple[int, bool, list[str]]], index: int, width: int) -> bool:
    _, is_after_blank, fields = records[index]
    filled = [text.strip() for text in fields if text.strip()]
    if not filled:
        return True
    is_first = bool(fields[0].strip())
    if len(filled) == width or not is_first:
        return False
    if _BELOW.match(filled[0]):
        return True
    if len(filled) == 1 or (is_after_blank and len(fields) != width):
        is_sentence = " " in filled[0] or ":" in filled[0]
        return not filled[0][0].isdigit() and (is_sentence or is_after_blank) and (width > 2 or len(fields) != width)
    return False
