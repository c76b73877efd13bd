"""Which of the tokenised rows are kept: first occurrences, shares of a mix, a held-out part."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
ROWS_PER_PASS = 4_000_000
"""Rows compared in memory at a time, about 150 bytes each."""


def first_occurrences(digests: Sequence[npt.NDArray[np.uint64]]) -> list[Mask]:
    """Return masks that are true where a row is the first with its digest.

    Args:
        digests: one array for each chunk, ``[rows, 2]``, memory-mapped where there are many.
    """
    masks = [np.ones(len(chunk), dtype=np.bool_) for chunk in digests]
    starts = np.cumsum([0, *(len(chunk) for chunk in digests)])
    num_passes = int(-(-starts[-1] // ROWS_PER_PASS))
    for number in range(num_passes):
        parts = [
            (start + np.flatnonzero(mine), chunk[mine])
            for start, chunk in zip(starts, digests, strict=False)
            if (mine := chunk[:, 0] % np.uint64(num_passes) == number).any()
        ]
        rows = np.concatenate([indices for indices, _ in parts])
        values = np.concatenate([chunk for _, chunk in parts])
        order = np.lexsort((rows, values[:, 1], values[:, 0]))
        ordered = values[order]
        again = (ordered[1:] == ordered[:-1]).all(axis=1)
        for row in rows[order[1:][again]]:
            chunk_index = int(np.searchsorted(starts, row, side="right")) - 1
            masks[chunk_index][row - starts[chunk_index]] = False
    return masks


def take(masks: Sequence[Mask], amount: int, seed: int, purpose: str) -> list[Mask]:
    """Choose rows at random, each with the same chance.

    Args:
        masks: rows to choose from.
        amount: rows to choose in all; at most as many as there are.
        seed: the seed.
        purpose: a name that makes choices with the same seed independent.

    Returns:
        Masks of the chosen rows.
    """
    key = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    generator = np.random.default_rng(np.frombuffer(key, np.uint32))
    left = sum(int(mask.sum()) for mask in masks)
    chosen = []
    for mask in masks:
        rows = np.flatnonzero(mask)
        # How many of a random choice out of all that is left fall into this chunk.
        share = int(generator.hypergeometric(amount, left - amount, len(rows))) if len(rows) else 0
        mine = np.zeros_like(mask)
        mine[generator.choice(rows, share, replace=False)] = True
        chosen.append(mine)
        amount, left = amount - share, left - len(rows)
    return chosen


def check_names(amounts: Mapping[str, int | float], names: Collection[str]) -> None:
    """Raise ValueError unless each name of a mix is that of a source."""
    for name in amounts:
        if name not in names:
            known = ", ".join(sorted(names))
            raise ValueError(f"mix must name sources; got {name!r}, known are {known}")


def mix(
    masks: Sequence[Mask], names: Sequence[str], amounts: Mapping[str, int | float], seed: int
) -> list[Mask]:
    """Keep the asked number or share of rows of each named source.

    Args:
        masks: rows to choose from, one mask for each chunk.
        names: the source name of each chunk.
        amounts: rows, or a share as a float, by name; a name without one is kept whole.
        seed: decides which rows are kept.

    Raises:
        ValueError: if a name has fewer rows.
    """
    result = list(masks)
    for name, amount in amounts.items():
        mine = [index for index, other in enumerate(names) if other == name]
        num_rows = sum(int(masks[index].sum()) for index in mine)
        wanted = round(amount * num_rows) if isinstance(amount, float) else amount
        if wanted > num_rows:
            raise ValueError(
                f"mix must ask for at most the rows there are; got {name}={wanted}, {num_rows} "
                "good and different rows"
            )
        chosen = take([masks[index] for index in mine], wanted, seed, f"mix {name}")
        for index, mask in zip(mine, chosen, strict=True):
            result[index] = mask
    return result


def count(masks: Sequence[Mask]) -> int:
    """Return the number of rows in masks."""
    return sum(int(mask.sum()) for mask in masks)


def without(masks: Sequence[Mask], others: Sequence[Mask]) -> list[Mask]:
    """Return the rows that are in the first masks and not in the second."""
    return [mask & ~other for mask, other in zip(masks, others, strict=True)]


def shard_ends(num_tokens: Iterator[int], tokens_per_shard: int) -> list[int]:
    """Return after which chunks a shard ends, given each chunk's tokens."""
    ends, total, last = [], 0, -1
    for last, tokens in enumerate(num_tokens):
        total += tokens
        if total >= tokens_per_shard:
            ends.append(last)
            total = 0
    if not ends or ends[-1] != last:
        ends.append(last)
    return ends
