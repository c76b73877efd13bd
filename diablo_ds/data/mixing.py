"""Shares of the sources of a run: the same choice of rows as a preparation makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from diablo_ds.data.examples import Examples
from diablo_ds.data.prepare import selection

Spans = Sequence[tuple[str, int]]
"""Names of consecutive rows of a source's table, each with the number of rows."""


def mix_sources(
    sources: Sequence[tuple[Examples, Spans]], amounts: Mapping[str, int | float], seed: int
) -> list[Examples]:
    """Take the wanted number or share of rows of each name, at random; all of other names.

    Rows count that have an example within the limit on its length.

    Args:
        sources: examples of each source, and the names of its rows.
        amounts: rows as an int, or a share as a float, by name.
        seed: determines, with the name, which rows are taken.

    Raises:
        UserError: if a name has fewer rows.
    """
    if not amounts:
        return [examples for examples, _ in sources]
    places, names, rows = [], [], []
    for number, (examples, spans) in enumerate(sources):
        own = examples.table.source_rows(examples.indices)
        ends = np.cumsum([0, *(count for _, count in spans)])
        for (name, count), start in zip(spans, ends, strict=False):
            mine = np.flatnonzero((own >= start) & (own < start + count))
            places.append((number, mine))
            names.append(name)
            rows.append(own[mine])
    masks = selection.mix(
        [np.ones(len(mine), np.bool_) for _, mine in places], rows, names, amounts, seed
    )
    keep = [np.zeros(len(examples), np.bool_) for examples, _ in sources]
    for (number, mine), mask in zip(places, masks, strict=True):
        keep[number][mine] = mask
    return [_keep(examples, mask) for (examples, _), mask in zip(sources, keep, strict=True)]


def _keep(examples: Examples, mask: selection.Mask) -> Examples:
    kept = examples.subset(mask)
    return replace(kept, num_not_in_mix=examples.num_rows() - kept.num_rows())
