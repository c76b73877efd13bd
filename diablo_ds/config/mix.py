"""How much of each source of data is taken: the option `--mix` of training and preparation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diablo_ds.errors import UserError


def parse_mix(texts: Sequence[str]) -> dict[str, int | float]:
    """Return how much to take of each source that is named.

    Args:
        texts: each NAME=ROWS, an integer, or NAME=SHARE, a number with a point from 0.0 to 1.0.

    Returns:
        Rows as an int, or a share as a float, by the source's name.

    Raises:
        UserError: if one is malformed, or names a source a second time.
    """
    amounts: dict[str, int | float] = {}
    for text in texts:
        name, _, amount = text.rpartition("=")
        try:
            value = int(amount) if amount.isdecimal() else float(amount)
        except ValueError:
            value = math.nan
        is_legal = value >= 0 and (isinstance(value, int) or value <= 1)
        if not name or name in amounts or not is_legal:
            raise UserError(
                "mix must be NAME=ROWS or NAME=SHARE with a share from 0.0 to 1.0, once for "
                f"each name; got mix={text!r}"
            )
        amounts[name] = value
    return amounts
