"""Orders of examples, and packing of several into one sequence; pure functions of lengths."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
WINDOW_BATCHES = 64
"""Number of global batches whose examples are sorted by length; they are shuffled again."""


class Order(NamedTuple):
    """Sequences of one epoch in training order; each contains one or more examples."""

    members: Ints
    """Indices of examples, sequence after sequence."""
    starts: Ints
    """Start of each sequence in ``members``, and the end, ``[sequences + 1]``."""

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.starts) - 1

    def sequence(self, index: int) -> Ints:
        """Return the examples of a sequence."""
        return self.members[self.starts[index] : self.starts[index + 1]]


def permutation(size: int, seed: int) -> Ints:
    """Return a random order that depends on the seed alone."""
    return np.random.Generator(np.random.PCG64(seed)).permutation(size)


def pass_seed(seed: int, number: int, data_order: str) -> int:
    """Return the seed of one of a run's random orders.

    Args:
        seed: the run's seed.
        number: of the pass over the data or, in a stream, of the window, counted from 0.
        data_order: "hashed", by which neighbouring seeds have nothing in common, or
            "seed-plus-epoch", by which pass 1 under seed 0 is pass 0 under seed 1.
    """
    if data_order == "seed-plus-epoch":
        return seed + number
    digest = hashlib.sha256(f"{seed},{number}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def shuffled(num_examples: int, seed: int) -> Order:
    """Return one example per sequence, in random order."""
    return Order(permutation(num_examples, seed), np.arange(num_examples + 1))


def grouped_by_length(lengths: Ints, global_batch: int, seed: int) -> Order:
    """Return one example per sequence, so that a global batch has examples of similar length.

    Examples are shuffled, sorted by length within windows of `WINDOW_BATCHES` global batches, and
    divided into global batches, which are shuffled again; one that is not full remains the last.

    Args:
        lengths: tokens of each example.
        global_batch: examples per step.
        seed: determines the order.
    """
    order = permutation(len(lengths), seed)
    window = WINDOW_BATCHES * global_batch
    for start in range(0, len(order), window):
        part = order[start : start + window]
        order[start : start + window] = part[np.argsort(-lengths[part], kind="stable")]
    num_full = len(order) // global_batch
    batches = order[: num_full * global_batch].reshape(num_full, global_batch)
    batches = batches[permutation(num_full, seed + 1)]
    members = np.concatenate([batches.ravel(), order[num_full * global_batch :]])
    return Order(members, np.arange(len(members) + 1))


def pack(lengths: Ints, capacity: int) -> Ints:
    """Assign examples to sequences, leaving as little room as possible.

    Repeatedly take the longest remaining example and add those that best fill its sequence. The
    same combination of lengths is used for as many sequences as there are examples for, so the work
    grows with the number of different lengths, not of examples. (Filling one bin at a time is Gupta
    and Ho's minimum bin slack heuristic, 1999.)

    Args:
        lengths: in decreasing order, each from 1 to ``capacity``, ``[examples]``.
        capacity: tokens per sequence.

    Returns:
        The sequence of each example, numbered from 0, ``[examples]``.
    """
    counts = np.bincount(lengths, minlength=capacity + 1)
    left = {length: int(counts[length]) for length in np.flatnonzero(counts)[::-1].tolist()}
    # Examples of equal length are adjacent in ``lengths``; this is the next one of each length.
    next_place = {length: int((lengths > length).sum()) for length in left}
    sequences = np.empty(len(lengths), np.int64)
    num_sequences = 0
    while left:
        longest = next(iter(left))
        left[longest] -= 1
        combination = Counter([longest, *_best_fill(left, capacity - longest)])
        left[longest] += 1
        repeats = min(left[length] // times for length, times in combination.items())
        numbers = np.arange(num_sequences, num_sequences + repeats)
        num_sequences += repeats
        for length, times in combination.items():
            start = next_place[length]
            next_place[length] = end = start + times * repeats
            sequences[start:end] = np.tile(numbers, times)
            left[length] -= times * repeats
            if not left[length]:
                del left[length]
    return sequences


def _best_fill(left: Mapping[int, int], room: int) -> list[int]:
    """Return lengths whose sum is closest to ``room`` without exceeding it.

    Args:
        left: number of examples by length, in decreasing order of length.
        room: tokens to fill.
    """
    full = 1 << room
    sums = 1  # bit s is set if some choice of the lengths so far has the sum s
    history: list[tuple[int, int]] = []
    for length, count in left.items():
        for _ in range(min(count, room // length)):
            history.append((length, sums))
            sums |= (sums << length) & (2 * full - 1)
        if sums & full:
            break
    rest = sums.bit_length() - 1
    chosen = []
    for length, before in reversed(history):
        if not before >> rest & 1:
            chosen.append(length)
            rest -= length
    return chosen


def packed(lengths: Ints, by_slot: Ints, global_batch: int, seed: int) -> Order:
    """Return packed sequences in random order, each with random examples of fitting length.

    Sequences that are about equally full share a global batch, so that it needs hardly any padding.

    Args:
        lengths: tokens of each example.
        by_slot: what `pack` returned for the lengths in decreasing order; the same in each epoch.
        global_batch: sequences per step.
        seed: determines the order.
    """
    examples = np.lexsort((permutation(len(lengths), seed), -lengths))
    tokens = np.bincount(by_slot, weights=lengths[examples]).astype(np.int64)
    turns = grouped_by_length(tokens, global_batch, seed).members
    place = np.empty_like(turns)
    place[turns] = np.arange(len(turns))
    order = np.argsort(place[by_slot], kind="stable")
    counts = np.bincount(by_slot)[turns]
    return Order(examples[order], np.concatenate([[0], np.cumsum(counts)]))
