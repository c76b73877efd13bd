"""Files that are nearly valid: truncated, bits flipped, parts moved, numbers out of range."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
_WORDS = [
    *rb"[ ] { } , : null NaN -0 1e999 true false \ud800 \udc00\ud800 \\ \" 0001 ../x".split(),
    b'{"a": 1, "a": 2}',
    b"[" * 3000,
    b'{"a":' * 3000,
    b"7" * 5000,
    b"\0",
    b"\r",
    b"\n",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\x1b]0;title\x07",
]
_NUMBERS = [b"-1", b"0", b"1e308", b"2147483648", b"9223372036854775807", b"18446744073709551616"]
_NUMBERS += [b"1" * 400, b"0.5", b"NaN", b'"1"', b"[1]", b"null", b"true", b"1000000000"]
_VALUES: list[Any] = [None, True, -1, 0.5, 10**400, 1e308, "", "a\x1b[2J\ud800", [], [[]], {}]
_VALUES += [{"a": {}}, "<script>", "../x", -(10**12), [None]]
_SIZES = [0, 1, 255, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1]


def mutate(data: bytes, dice: random.Random) -> bytes:
    """Return a file that differs from a valid one in one to four ways."""
    for _ in range(dice.choice((1, 1, 1, 2, 2, 3, 4))):
        data = dice.choice(_KINDS)(data, dice)
    return data


def _truncate(data: bytes, dice: random.Random) -> bytes:
    return data[: dice.randrange(len(data) + 1)]


def _flip(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 8)) if data else 0):
        changed[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _overwrite(data: bytes, dice: random.Random) -> bytes:
    """Write a size as binary formats have it over any place."""
    value, (form, width) = dice.choice(_SIZES), dice.choice((("<I", 4), ("<Q", 8), ("<H", 2)))
    number = struct.pack(form, value % (1 << 8 * width))
    place = dice.randrange(len(data) + 1)
    return data[:place] + number + data[place + width :]


def _insert(data: bytes, dice: random.Random) -> bytes:
    place = dice.randrange(len(data) + 1)
    end = min(len(data), place + dice.choice((0, 0, 1, 2, 16)))
    return data[:place] + dice.choice(_WORDS) + data[end:]


def _number(data: bytes, dice: random.Random) -> bytes:
    found = list(_NUMBER.finditer(data))
    if not found:
        return _flip(data, dice)
    match = dice.choice(found)
    return data[: match.start()] + dice.choice(_NUMBERS) + data[match.end() :]


def _move(data: bytes, dice: random.Random) -> bytes:
    """Copy a part to another place, over what is there or between it."""
    start = dice.randrange(len(data) + 1)
    part = data[start : start + dice.choice((1, 4, 16, 64, 256))]
    place = dice.randrange(len(data) + 1)
    return data[:place] + part + data[place + dice.choice((0, len(part))) :]


def _remove(data: bytes, dice: random.Random) -> bytes:
    place = dice.randrange(len(data) + 1)
    return data[:place] + data[place + dice.choice((1, 2, 4, 16, 64)) :]


def _value(data: bytes, dice: random.Random) -> bytes:
    """Replace or remove a value in a line of JSON; it stays JSON."""
    lines = data.split(b"\n")
    number = dice.randrange(len(lines))
    try:
        document = json.loads(lines[number])
    except (ValueError, RecursionError):
        try:
            lines, number, document = [data], 0, json.loads(data)
        except (ValueError, RecursionError):
            return _flip(data, dice)
    holder = [document]
    place, key = dice.choice([*_places(holder)])
    if dice.randrange(4):
        place[key] = dice.choice(_VALUES)
    elif place is not holder:
        del place[key]
    lines[number] = json.dumps(holder[0]).encode()
    return b"\n".join(lines)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each list or object in a value with each index or key of it."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], list | dict):
            yield from _places(value[key])


def _replace_all(data: bytes, dice: random.Random) -> bytes:
    size = dice.choice((0, 1, 3, 8, 64))
    return dice.choice((dice.randbytes(size), data[:4] + dice.randbytes(size), data * 2))


_KINDS: list[Callable[[bytes, random.Random], bytes]] = [
    _truncate,
    _flip,
    _flip,
    _overwrite,
    _insert,
    _number,
    _number,
    _value,
    _value,
    _value,
    _move,
    _remove,
    _replace_all,
]
