"""Mutations of bytes and of structured values, including payloads that reveal the execution of content."""

import copy
import json
import random
from typing import Any

CANARY = "skipway-canary"  # file that every payload would create in the working folder
_SHELL = f"touch {CANARY}"
_PICKLE = b"cos\nsystem\n(S'" + _SHELL.encode() + b"'\ntR."
_ODD_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
TOKENS = (
    _PICKLE,
    b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    f'!!python/object/apply:os.system ["{_SHELL}"]'.encode(),
    f"{{a: !!python/object/new:os.system [{_SHELL}]}}".encode(),
    f'=cmd|"/c {_SHELL}"!A1'.encode(),
    f"$({_SHELL})`{_SHELL}`".encode(),
    f"__import__('os').system('{_SHELL}')".encode(),
    b"%!PS\n(" + _SHELL.encode() + b") (w) file",
    b"../../" + CANARY.encode(),
    b"<script>alert(1)</script>",
    b"&a [*a,*a,*a,*a,*a,*a]",
    b"\x00",
    b"\xff\xfe",
    b'"',
    b"NaN",
    b"1e999",
    b"-1",
    b"9" * 400,
    b"[" * 300,
    b"\r\n",
)
_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 1e308, -0.5, 1e-320, "", "x" * 5000, "\x1b[2J", "\ud800"),
    *([], {}, [[]], [None], {"": {}}, {"__reduce__": _SHELL}, [0] * 1000, "NaN", "1e999", "../../" + CANARY),
    *(f"!!python/object/apply:os.system [{_SHELL!r}]", "<img src=x onerror=alert(1)>"),
)


def damage(draw: random.Random, data: bytes) -> bytes:
    """Apply one to four mutations to `data`: flips, cuts, unusual numbers, copied parts, zeros and payloads."""
    content = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at = draw.randrange(len(content) + 1)
        kind = draw.randrange(8)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del content[at:]
        elif kind == 2:
            content[at : at + draw.choice((1, 2, 8))] = draw.randbytes(draw.choice((1, 2, 8)))
        elif kind == 3:
            size = draw.choice((1, 2, 4, 8))
            number = draw.choice(_ODD_NUMBERS) & (256**size - 1)
            content[at : at + size] = number.to_bytes(size, draw.choice(("little", "big")))
        elif kind == 4:
            content[at:at] = draw.choice(TOKENS)
        elif kind == 5:
            del content[at : at + draw.randrange(64)]
        elif kind == 6:
            piece = content[at : at + draw.randrange(64)]
            place = draw.randrange(len(content) + 1)
            content[place:place] = piece
        else:
            end = at + draw.choice((8, 64, 512))
            content[at:end] = bytes(len(content[at:end]))
    return bytes(content)


def restructure(draw: random.Random, values: Any) -> Any:
    """Apply one to three mutations to plain values: unusual, missing, moved, renamed and nested values."""
    whole = [copy.deepcopy(values)]
    for _ in range(draw.choice((1, 1, 2, 3))):
        places = list(_places(whole))
        holder, key = draw.choice(places)
        kind = draw.randrange(5)
        if kind == 0 and holder is not whole:
            del holder[key]
        elif kind == 1:
            other, there = draw.choice(places)
            holder[key] = copy.deepcopy(other[there])
        elif kind == 2:
            holder[key] = [holder[key]]
        elif kind == 3 and isinstance(holder, dict):
            holder[draw.choice(("", "x", "schema", "__proto__", f"{key}s"))] = holder.pop(key)
        else:
            holder[key] = copy.deepcopy(draw.choice(_ODD_VALUES))
    return whole[0]


def as_json(values: Any) -> bytes:
    """Encode values as JSON, including NaN and infinity."""
    return json.dumps(values, separators=(",", ":")).encode()


def _places(holder: Any) -> Any:
    """Yield (container, key) of each value."""
    items = list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder))
    for key, value in items:
        yield holder, key
        if isinstance(value, dict | list):
            yield from _places(value)
