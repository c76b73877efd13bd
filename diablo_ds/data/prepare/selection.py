"""Which of the tokenised rows are kept: first occurrences, shares of a mix, a held-out part.

A source row may give several examples: a conversation, one for each answer. Random choices are made
by row, so that the answers of a conversation stay together. Of a conversation with a duplicate
example, only that is skipped, as the others are new.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from diablo_ds.errors import UserError

Mask = npt.NDArray[np.bool_]
"""Chosen examples of a chunk, ``[examples]``."""
RowNumbers = npt.NDArray[np.int32] | npt.NDArray[np.int64]
"""The row of its chunk of each example, ``[examples]``, in ascending order."""
EXAMPLES_PER_PASS = 4_000_000
"""Examples that are compared in memory at a time, about 150 bytes each."""


def first_occurrences(digests: Sequence[npt.NDArray[np.uint64]]) -> list[Mask]:
    """Return masks of the examples that are the first with their digest.

    Args:
        digests: one array per chunk, ``[examples, 2]``.
    """
    masks = [np.ones(len(chunk), dtype=np.bool_) for chunk in digests]
    starts = np.cumsum([0, *(len(chunk) for chunk in digests)])
    num_passes = int(-(-starts[-1] // EXAMPLES_PER_PASS))
    for number in range(num_passes):
        parts = [
            (start + np.flatnonzero(mine), chunk[mine])
            for start, chunk in zip(starts, digests, strict=False)
            if (mine := chunk[:, 0] % np.uint64(num_passes) == number).any()
        ]
        examples = np.concatenate([indices for indices, _ in parts])
        values = np.concatenate([chunk for _, chunk in parts])
        order = np.lexsort((examples, values[:, 1], values[:, 0]))
        ordered = values[order]
        is_duplicate = (ordered[1:] == ordered[:-1]).all(axis=1)
        for example in examples[order[1:][is_duplicate]]:
            chunk_index = int(np.searchsorted(starts, example, side="right")) - 1
            masks[chunk_index][example - starts[chunk_index]] = False
    return masks


def take(
    masks: Sequence[Mask], rows: Sequence[RowNumbers], amount: int, seed: int, purpose: str
) -> list[Mask]:
    """Choose rows uniformly at random, each with all its examples.

    Args:
        masks: examples to choose from, one mask per chunk.
        rows: for each chunk, the row of each example.
        amount: total number of rows to choose; at most as many as there are.
        seed: with ``purpose``, determines the choice.
        purpose: a name that makes choices with the same seed independent.

    Returns:
        Masks of the chosen rows' examples.
    """
    key = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    generator = np.random.default_rng(np.frombuffer(key, np.uint32))
    left = count_rows(masks, rows)
    chosen = []
    for mask, numbers in zip(masks, rows, strict=True):
        there = np.unique(numbers[mask])
        # The number of rows of a random choice among all remaining rows that are in this chunk.
        share = (
            int(generator.hypergeometric(amount, left - amount, len(there))) if len(there) else 0
        )
        mine = generator.choice(there, share, replace=False)
        chosen.append(mask & np.isin(numbers, mine))
        amount, left = amount - share, left - len(there)
    return chosen


def check_names(amounts: Mapping[str, int | float], names: Collection[str]) -> None:
    """Raise UserError unless each name of a mix is the name of a source."""
    for name in amounts:
        if name not in names:
            known = ", ".join(sorted(names))
            raise UserError(f"mix must name sources; got {name!r}, known are {known}")


def mix(
    masks: Sequence[Mask],
    rows: Sequence[RowNumbers],
    names: Sequence[str],
    amounts: Mapping[str, int | float],
    seed: int,
) -> list[Mask]:
    """Keep the requested number or share of rows of each named source.

    Args:
        masks: examples to choose from, one mask per chunk.
        rows: for each chunk, the row of each example.
        names: the source name of each chunk.
        amounts: rows, or a share as a float, by name; all rows of a source without an amount are
            kept.
        seed: determines which rows are kept.

    Raises:
        UserError: if a source has fewer rows.
    """
    result = list(masks)
    for name, amount in amounts.items():
        mine = [index for index, other in enumerate(names) if other == name]
        own_masks, own_rows = [masks[index] for index in mine], [rows[index] for index in mine]
        num_rows = count_rows(own_masks, own_rows)
        wanted = round(amount * num_rows) if isinstance(amount, float) else amount
        if wanted > num_rows:
            raise UserError(
                f"mix must ask for at most the rows there are; got {name}={wanted}, {num_rows} "
                "good and different rows"
            )
        chosen = take(own_masks, own_rows, wanted, seed, f"mix {name}")
        for index, mask in zip(mine, chosen, strict=True):
            result[index] = mask
    return result


def count(masks: Sequence[Mask]) -> int:
    """Return the number of examples in masks."""
    return sum(int(mask.sum()) for mask in masks)


def count_rows(masks: Sequence[Mask], rows: Sequence[RowNumbers]) -> int:
    """Return the number of rows that have an example in masks."""
    return sum(len(np.unique(numbers[mask])) for mask, numbers in zip(masks, rows, strict=True))


def without(masks: Sequence[Mask], others: Sequence[Mask]) -> list[Mask]:
    """Return the examples that are in the first masks and not in the second."""
    return [mask & ~other for mask, other in zip(masks, others, strict=True)]


def shard_ends(num_tokens: Iterator[int], tokens_per_shard: int) -> list[int]:
    """Return the last chunk of each shard, given the number of tokens of each chunk."""
    ends, total, last = [], 0, -1
    for last, tokens in enumerate(num_tokens):
        total += tokens
        if total >= tokens_per_shard:
            ends.append(last)
            total = 0
    if not ends or ends[-1] != last:
        ends.append(last)
    return ends
