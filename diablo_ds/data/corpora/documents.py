"""Texts to sequences of one length: documents joined, each with its end token, and cut."""

from __future__ import annotations

from collections.abc import Sequence

from diablo_ds.data.labels import Example, has_target

JOINED = "text, joined with the texts beside it and cut to max_length"


def cut_documents(documents: Sequence[Example], length: int) -> list[list[Example]]:
    """Join documents and cut them into sequences.

    All tokens are kept, but for sequences without a token to predict, such as a single token that
    is left at the end. The first token of a sequence carries no loss, as in every example.

    Args:
        documents: tokens with their end tokens.
        length: tokens of each sequence but the last, at least 2.

    Returns:
        For each document the sequences that end in it; the last one gets what remains.
    """
    ids: list[int] = []
    labels: list[int] = []
    result: list[list[Example]] = []
    for document in documents:
        ids += document.input_ids
        labels += document.labels
        ends = range(length, len(ids) + 1, length)
        cut = [Example(ids[e - length : e], labels[e - length : e]) for e in ends]
        result.append([example for example in cut if has_target(example.labels)])
        done = len(ids) // length * length
        ids, labels = ids[done:], labels[done:]
    if has_target(labels):
        result[-1].append(Example(ids, labels))
    return result
