"""Orders of examples, and packing several of them into one sequence; pure functions of lengths."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
WINDOW_BATCHES = 64
"""Global batches among which examples are sorted by length; the batches are shuffled again."""


class Order(NamedTuple):
    """Sequences of one epoch, in the order they are trained on; each holds one or more examples."""

    members: Ints
    """Indices of examples, sequence after sequence."""
    starts: Ints
    """Where each sequence starts in ``members``; one more than there are sequences."""

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
        number: of the pass over the data or, in a stream, of the window; from 0 on.
        data_order: "hashed", where neighbouring seeds have nothing in common, or "seed-plus-epoch",
            where pass 1 under seed 0 is pass 0 under seed 1.
    """
    if data_order == "seed-plus-epoch":
        return seed + number
    digest = hashlib.sha256(f"{seed},{number}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def shuffled(num_examples: int, seed: int) -> Order:
    """Return one example a sequence, in random order."""
    return Order(permutation(num_examples, seed), np.arange(num_examples + 1))


def grouped_by_length(lengths: Ints, global_batch: int, seed: int) -> Order:
    """Return one example a sequence, so that a global batch has examples of similar length.

    Examples are shuffled, sorted by length among those of `WINDOW_BATCHES` global batches, and cut
    into global batches, which are shuffled again; one that is not full stays the last.

    Args:
        lengths: tokens of each example.
        global_batch: examples of a step.
        seed: the seed.
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
    """Assign examples to sequences with as little room left as possible.

    Again and again the longest example that is left is joined by those that fill its sequence best,
    and the same combination of lengths is used for as many sequences as there are examples for: so
    the work grows with the number of different lengths, not of examples. (The idea of filling one
    bin at a time is Gupta and Ho's minimum bin slack, 1999.)

    Args:
        lengths: in decreasing order, each from 1 to ``capacity``.
        capacity: tokens of a sequence.

    Returns:
        The sequence of each length, numbered from 0.
    """
    counts = np.bincount(lengths, minlength=capacity + 1)
    left = {length: int(counts[length]) for length in np.flatnonzero(counts)[::-1].tolist()}
    # Examples of equal length lie together in ``lengths``; this is the next one of each.
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
    """Return lengths whose sum comes closest to ``room`` without exceeding it.

    Args:
        left: examples by length, in decreasing order of length.
        room: tokens to fill.
    """
    full = 1 << room
    sums = 1  # bit s is set where some choice of the lengths so far has the sum s
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
    """Return packed sequences in random order, with random examples of fitting length in each.

    Sequences that are about equally full share a global batch, so that the little room left is not
    padded either.

    Args:
        lengths: tokens of each example.
        by_slot: what `pack` returned for the lengths in decreasing order; the same in each epoch.
        global_batch: sequences of a step.
        seed: the seed.
    """
    examples = np.lexsort((permutation(len(lengths), seed), -lengths))
    tokens = np.bincount(by_slot, weights=lengths[examples]).astype(np.int64)
    turns = grouped_by_length(tokens, global_batch, seed).members
    place = np.empty_like(turns)
    place[turns] = np.arange(len(turns))
    order = np.argsort(place[by_slot], kind="stable")
    counts = np.bincount(by_slot)[turns]
    return Order(examples[order], np.concatenate([[0], np.cumsum(counts)]))
