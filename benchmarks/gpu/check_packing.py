"""Packed rows in a small model on the device: their gradients, and the same bits again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.check_model import (
    LEAST_BOUND,
    SIZES,
    Sizes,
    bounds,
    errors,
    is_within,
    measure,
    random_batch,
)
from benchmarks.gpu.models import device
from diablo_ds.data.batches import MicroBatch, collate
from diablo_ds.data.labels import Example
from diablo_ds.model.attention import attentions_by_length, takes_lengths
from diablo_ds.model.varlen import VARLEN


def attentions() -> tuple[str, ...]:
    """Return the attentions that packed rows can run with on the device."""
    if device().type == "cuda":
        return ("sdpa", *attentions_by_length())
    return ("sdpa", VARLEN)  # on a CPU by what its kernel computes


def _examples(sizes: Sizes) -> list[Example]:
    numbers = np.random.default_rng(0)
    ids = [numbers.integers(0, sizes.vocab, length).tolist() for length in sizes.examples]
    return [Example(row, row) for row in ids]


def check_packing(scale: str, attention: str, window: int = 0) -> dict[str, Any]:
    """Compare packed rows with the same examples alone, both with fp32's, alone.

    ``mixed`` is what rows give under one causal mask, where examples see each other: the error that
    this check must be able to find.

    Args:
        scale: of `SIZES`.
        attention: transformers' name.
        window: of sliding-window attention; 0 for none.
    """
    sizes = replace(SIZES[scale], window=window)
    examples = _examples(sizes)
    half = len(examples) // 2
    alone = collate([[example] for example in examples], pad_id=0)
    packed = collate([examples[:half], examples[half:]], pad_id=0, packing=True)
    precision = "bf16" if device().type == "cuda" else "fp32"
    expected = measure(sizes, "fp32", alone, rounded=precision)

    def compared(batch: MicroBatch, name: str) -> dict[str, float]:
        return errors(measure(sizes, precision, batch, attention=name), expected)

    of_packed = compared(packed, attention)
    of_alone = compared(alone, "sdpa")
    mixed = compared(packed._replace(position_ids=None), "sdpa")
    # Packing must cost no more than rounding does to the examples alone.
    allowed = max(2 * of_alone["gradient_error"], LEAST_BOUND)
    passed = (
        is_within(of_packed, precision)
        and of_packed["gradient_error"] <= allowed
        and mixed["gradient_error"] > 4 * allowed
    )
    return {
        **{f"packed {name}": value for name, value in of_packed.items()},
        **{f"alone {name}": value for name, value in of_alone.items()},
        **{f"mixed {name}": value for name, value in mixed.items()},
        **bounds(precision),
        "by_length": takes_lengths(attention),
        "precision": precision,
        "passed": passed,
    }


# --- the same bits again -------------------------------------------------------------------------


def check_repeats(scale: str, attention: str) -> dict[str, Any]:
    """Compare two runs of forward and backward bit by bit, and two with deterministic algorithms.

    Rows are long enough for attention's backward to split a row's keys: its sums over them may then
    be taken in any order, which is what can keep a resumed run from the same bits.

    Args:
        scale: of `SIZES`.
        attention: transformers' name.
    """
    sizes = replace(
        SIZES[scale],
        length=4 * SIZES[scale].length,
        examples=tuple(4 * length for length in SIZES[scale].examples),
    )
    packed = collate([[example] for example in _examples(sizes)], pad_id=0, packing=True)
    batch = packed if takes_lengths(attention) else random_batch(sizes)
    precision = "bf16" if device().type == "cuda" else "fp32"

    def twice() -> tuple[bool, float]:
        first, second = (measure(sizes, precision, batch, attention=attention) for _ in range(2))
        is_equal = first.loss == second.loss and all(
            torch.equal(first.gradients[name], second.gradients[name]) for name in first.gradients
        )
        return is_equal, errors(second, first)["gradient_error"]

    is_equal, difference = twice()
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        is_equal_if_asked, _ = twice()
    finally:
        torch.use_deterministic_algorithms(before)
    return {
        "equal": is_equal,
        "relative_difference_of_gradients": difference,
        "equal_with_deterministic_algorithms": is_equal_if_asked,
        "precision": precision,
        "passed": is_equal or is_equal_if_asked,
    }
