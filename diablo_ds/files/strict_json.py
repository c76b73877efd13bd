"""JSON read strictly: one meaning, or an error that says where and why.

Python's reader takes the last of two equal keys, ends in a RecursionError on deep nesting and in a
bare ValueError on long integers, and lets through half of a surrogate pair, which no UTF-8 file
can hold.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable
from json import JSONDecodeError
from typing import Any, NamedTuple

from diablo_ds.errors import UserError
from diablo_ds.files.bounds import check_values

MAX_DEPTH = 100
"""Lists and objects inside each other; far below what copying or showing a value can bear."""
MAX_DIGITS = 4300
"""Digits of an integer; Python's own limit."""
TOO_DEEP = f"at most {MAX_DEPTH} lists and objects may be nested"

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SPACE = " \t\r\n"
_CONTROL = ("Cc", "Cs", "Zl", "Zp")
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_UNSHOWN = re.compile(r"[^ -~]")


class Decoded(NamedTuple):
    """A value at the beginning of a text."""

    value: Any
    end: int
    """Where the text continues."""
    problem: str
    """Why the value cannot be used although its end is known; empty where it can."""


class Decoder:
    """Reads values one by one from a text.

    Args:
        finite: whether NaN, infinities and numbers beyond a float's range are a problem. Rows of
            data may have them in fields that nobody reads; settings may not.
    """

    def __init__(self, *, finite: bool) -> None:
        self._problem = ""
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_int=self._finite_integer if finite else self._integer,
            parse_float=self._number if finite else None,
            parse_constant=self._constant if finite else None,
        )

    def decode(self, text: str, start: int = 0) -> Decoded:
        """Read the value that begins at ``start``, without white space before it.

        Raises:
            JSONDecodeError: if there is none, or its end cannot be found.
        """
        self._problem = ""
        try:
            value, end = self._decoder.raw_decode(text, start)
        except RecursionError:
            raise JSONDecodeError(TOO_DEEP, text, start) from None
        problem = self._problem
        if text.count("[", start, end) + text.count("{", start, end) > MAX_DEPTH and _is_deep(
            value
        ):
            problem = TOO_DEEP
        elif _SURROGATE.search(text, start, end) and has_lone_surrogate(value):
            problem = problem or "a surrogate must be one of a pair"
        return Decoded(value, end, problem)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            self._problem = f"each key of an object must be there once: {twice!a:.60}"
        return value

    def _integer(self, digits: str) -> int | float:
        if len(digits) > MAX_DIGITS:
            self._problem = f"an integer must have at most {MAX_DIGITS:,} digits: {len(digits):,}"
            return 0
        return int(digits)

    def _finite_integer(self, digits: str) -> int | float:
        self._number(digits)
        return self._integer(digits)

    def _number(self, digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            self._problem = f"a number must be in the range of a double: {digits:.60}"
        return value

    def _constant(self, name: str) -> float:
        self._problem = f"a number must be finite: {name}"
        return 0.0


def loads(data: bytes, *, finite: bool = True) -> Any:
    """Read the one value that a UTF-8 text holds, with or without a byte-order mark.

    Raises:
        JSONDecodeError: with line and column.
    """
    text = decode_text(data)
    start = len(text) - len(text.lstrip(_SPACE))
    if start == len(text):
        raise JSONDecodeError("the text is empty", text, start)
    if problem := check_values(text):
        raise JSONDecodeError(problem, text, start)
    value, end, problem = Decoder(finite=finite).decode(text, start)
    if problem:
        raise JSONDecodeError(problem, text, start)
    rest = text[end:].lstrip(_SPACE)
    if rest:
        raise JSONDecodeError("nothing may follow the value", text, len(text) - len(rest))
    return value


def decode_text(data: bytes) -> str:
    """Return the text of UTF-8 bytes, without a byte-order mark.

    Raises:
        JSONDecodeError: if they are not UTF-8; names the encoding where their beginning shows it.
    """
    if encoding := foreign_encoding(data[:4]):
        raise JSONDecodeError(f"the text must be UTF-8: it is {encoding}", "", 0)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # One character a byte, so that the place is the byte's.
        place = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        message = f"the text must be UTF-8: {error.reason}"
        raise JSONDecodeError(message, data.decode("latin-1"), place) from None


def foreign_encoding(start: bytes) -> str:
    """Return the name of an encoding other than UTF-8 that a text's first bytes show, or "".

    Args:
        start: the first four bytes, or fewer where the text is shorter.
    """
    if start[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        return "UTF-32"
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-16"
    zeros = [byte == 0 for byte in start]  # of ASCII characters, when there is no mark
    if zeros in ([False, True, True, True], [True, True, True, False]):
        return "UTF-32 without a byte-order mark"
    if zeros in ([False, True, False, True], [True, False, True, False]):
        return "UTF-16 without a byte-order mark"
    return ""


def finite(value: float) -> float | None:
    """Return a number as JSON can hold it: None where it is infinite or not a number."""
    return value if math.isfinite(value) else None


def has_lone_surrogate(value: Any) -> bool:
    """Return whether a value's text holds half of a surrogate pair."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def is_one_line(text: str) -> bool:
    """Return whether a text has no control characters and no bytes that were not UTF-8.

    Names with them cannot be written down: in a record, on a screen, or in a job script. What ends
    a line for Python, or has a terminal show characters in another order, counts as control too.
    """
    return text.isprintable() or not any(
        unicodedata.category(character) in _CONTROL or character in _REORDERING
        for character in text
    )


def key_list(keys: Iterable[str], most: int = 5) -> str:
    """Return keys of a file, which may be anything, as a short text for an error."""
    names = [_UNSHOWN.sub("?", key)[:60] for key in sorted(keys)]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return False
    return any(isinstance(inner, dict | list) for inner in level)


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def check_text(**settings: object) -> None:
    """Refuse control characters, by which a line of a script or a log would become two.

    Args:
        settings: values by name; texts and tuples of texts are looked at.

    Raises:
        UserError: if one is text that cannot be written on one line.
    """
    for name, value in settings.items():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and not is_one_line(text):
                raise UserError(
                    f"{name} must be text without control characters; got {name}={text!a:.60}"
                )


def check_texts(name: str, value: Any) -> None:
    """Refuse control characters in every text of a JSON value, keys included.

    Raises:
        UserError: if one is text that cannot be written on one line.
    """
    check_text(**{name: value})
    for child in [*value, *value.values()] if isinstance(value, dict) else _children(value):
        check_texts(name, child)
