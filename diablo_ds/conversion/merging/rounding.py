"""What rounding makes of a merge: the deltas that it swallows, and the error of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from diablo_ds.adapter.merging import LARGE_SHARE
from diablo_ds.files.text_table import text_table

_SHOWN = 5


@dataclass
class Rounding:
    """Counts and sums over the diagonal blocks of a layer, or of several."""

    num_elements: int = 0
    num_nonzero: int = 0
    """Elements of the delta that are not 0."""
    num_swallowed: int = 0
    """Of those, how many leave the stored weight as it would be without them."""
    num_changed: int = 0
    """Stored weights that differ from those of the base."""
    squared_error: float = 0.0
    """Sum over ``(stored - exact)^2``, where exact is base plus delta before rounding."""
    squared_merged: float = 0.0
    """Sum over ``exact^2``."""
    squared_delta: float = 0.0
    """Sum over ``delta^2``."""

    def add(self, base: Tensor, delta: Tensor, merged: Tensor, stored: Tensor) -> None:
        """Count some elements; all tensors have the same shape.

        Args:
            base: the weights of the base, fp32 or fp64.
            delta: what was added to them.
            merged: their sum.
            stored: the sum, rounded to the dtype of the new file.
        """
        is_changed = stored != base.to(stored.dtype)
        is_nonzero = delta != 0
        self.num_elements += delta.numel()
        self.num_nonzero += int(is_nonzero.sum())
        self.num_changed += int(is_changed.sum())
        self.num_swallowed += int((is_nonzero & ~is_changed).sum())
        self.squared_error += _sum_of_squares(stored.to(merged.dtype) - merged)
        self.squared_merged += _sum_of_squares(merged)
        self.squared_delta += _sum_of_squares(delta)

    def __add__(self, other: Rounding) -> Rounding:
        """Return the counts of both."""
        mine, others = asdict(self), asdict(other)
        return Rounding(**{name: mine[name] + others[name] for name in mine})

    @property
    def swallowed_share(self) -> float:
        """Share of the delta's elements that rounding swallowed; those that are 0 do not count."""
        return self.num_swallowed / self.num_nonzero if self.num_nonzero else 0.0

    @property
    def relative_error(self) -> float:
        """Norm of the rounding error of the blocks over the norm of the exact blocks."""
        return math.sqrt(self.squared_error / self.squared_merged) if self.squared_merged else 0.0

    @property
    def delta_error(self) -> float:
        """Norm of the rounding error of the blocks over the norm of the delta."""
        return math.sqrt(self.squared_error / self.squared_delta) if self.squared_delta else 0.0

    def values(self) -> dict[str, Any]:
        """Return the figures of a report."""
        return {
            "elements": self.num_elements,
            "nonzero": self.num_nonzero,
            "swallowed": self.num_swallowed,
            "swallowed_share": self.swallowed_share,
            "changed": self.num_changed,
            "relative_error": self.relative_error,
            "error_over_delta": self.delta_error,
        }


def total(roundings: Iterable[Rounding]) -> Rounding:
    """Return the counts of several layers."""
    return sum(roundings, Rounding())


def describe(layers: Mapping[str, Rounding], dtype: str, report_name: str, rounding: str) -> str:
    """Return what a user should know of the rounding, with the layers that suffer most.

    Args:
        layers: counts by layer.
        dtype: of the new weights, such as "bf16".
        report_name: the file that has all layers.
        rounding: "nearest" or "stochastic", which keeps on average what it swallows here and there.
    """
    everything = total(layers.values())
    worst = sorted(layers, key=lambda name: -layers[name].swallowed_share)[:_SHOWN]
    rows = [["layer", "swallowed", "error/weight", "error/delta"]]
    for name, found in [("all layers", everything), *((n, layers[n]) for n in worst)]:
        rows.append(
            [
                name,
                f"{found.swallowed_share:.2%}",
                f"{found.relative_error:.2e}",
                f"{found.delta_error:.2e}",
            ]
        )
    text = text_table(rows, left=(0,))
    if len(layers) > len(worst):
        text += f"\nthe {len(worst)} layers with the largest share; all are in {report_name}"
    is_lost = rounding == "nearest" and dtype != "fp32"
    if is_lost and everything.swallowed_share >= LARGE_SHARE:
        text += (
            f"\nWarning: rounding to {dtype} swallowed {everything.swallowed_share:.1%} of the "
            "deltas' elements; --dtype fp32 keeps them, and --rounding stochastic keeps them on "
            "average"
        )
    return text


def _sum_of_squares(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x)) ** 2
