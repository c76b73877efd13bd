"""A tokenised example, and which of its tokens carry loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

IGNORE_LABEL = -100
"""Label of a position that carries no loss, e.g. a prompt token or padding."""


class Example(NamedTuple):
    """One tokenised example; both fields have the same length, and are lists or int32 arrays."""

    input_ids: Any
    labels: Any
    """The token at each position, or `IGNORE_LABEL` where it carries no loss."""


def has_target(labels: Sequence[int]) -> bool:
    """Return whether any position carries loss, other than the first, which cannot be predicted."""
    # From the end, where targets usually are.
    return any(labels[index] != IGNORE_LABEL for index in range(len(labels) - 1, 0, -1))
