"""Numbers in answers: as they are written, and their values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

_NUMBER = re.compile(
    r"""
    (?<!\d)(?<!\d[.])                        # not inside a number
    (?P<minus> (?<![\w)}\]]) [-\u2212] )?    # a sign, and not a subtraction
    (?: \\?\$\s? (?P<late_minus> [-\u2212])? )?
    (?: \\[dt]?frac \{ (?P<top>\d+) \} \{ (?P<bottom>\d+) \}
      | (?: (?P<whole>\d+) [ ] )? (?P<dividend>\d+) / (?P<divisor>\d+) (?![\d/.])
      | (?P<decimal> (?: \d{1,3} (?:,\d{3})+ (?![\d]) | \d+ ) (?: [.]\d+ )? | (?<![A-Za-z]) [.]\d+ )
    )
    """,
    re.VERBOSE | re.ASCII,
)


class Number(NamedTuple):
    """A number in a text."""

    text: str
    value: Fraction


def numbers(text: str) -> Iterator[Number]:
    """Yield the numbers of a text, in order, but for those of thousands of digits.

    A number may have a sign, a dollar sign, thousands separators, a decimal part, or be a fraction
    such as 3/4, 1 1/2 or LaTeX's frac. What follows it, such as a unit or a percent sign, does not
    change its value.
    """
    for match in _NUMBER.finditer(text):
        try:
            value = _value(match)
        except ValueError:  # Python converts 4,300 digits at most
            value = None
        if value is not None:
            is_negative = match["minus"] or match["late_minus"]
            yield Number(match[0].strip(), -value if is_negative else value)


def _value(match: re.Match[str]) -> Fraction | None:
    if match["decimal"]:
        return Fraction(match["decimal"].replace(",", ""))
    top, bottom = (
        (match["top"], match["bottom"]) if match["top"] else match.group("dividend", "divisor")
    )
    if int(bottom) == 0:
        return None
    return int(match["whole"] or 0) + Fraction(int(top), int(bottom))


def last_number(text: str) -> Number | None:
    """Return the last number of a text, if it has one."""
    last = None
    for last in numbers(text):  # noqa: B007
        pass
    return last


def number_after(text: str, phrase: str) -> Number | None:
    """Return the first number after the last occurrence of a phrase, if there is one."""
    _, found, rest = text.rpartition(phrase)
    return next(numbers(rest), None) if found else None
