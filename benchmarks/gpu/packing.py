"""Rows packed with whole examples, against examples padded to the longest of their batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from benchmarks.gpu.models import timed_steps
from benchmarks.gpu.sessions import Session
from diablo_ds.data.batches import MicroBatch, collate
from diablo_ds.data.labels import Example
from diablo_ds.model.varlen import has_varlen_kernel, register_varlen_attention

# Tokens of the first 96 examples of GSM8K among the samples, question and answer, by SmolLM2's
# tokenizer.
# fmt: off
_LENGTHS = (
    102, 102, 166, 188, 106, 235, 154, 226, 254, 438, 226, 250, 135, 163, 112, 290, 188, 317, 210,
    186, 164, 181, 155, 213, 149, 247, 150, 315, 122, 266, 203, 211, 208, 201, 129, 137, 139, 271,
    130, 201, 247, 181, 230, 179, 215, 222, 223, 164, 93, 107, 196, 227, 134, 143, 205, 143, 202,
    227, 276, 210, 222, 281, 165, 200, 225, 129, 327, 326, 247, 116, 88, 175, 250, 149, 148, 191,
    147, 111, 151, 89, 182, 278, 173, 263, 138, 123, 100, 149, 101, 197, 196, 217, 274, 192, 95,
    278,
)
# fmt: on


class Batch(NamedTuple):
    """How examples are laid out, and by which attention."""

    packed: bool
    attention: str
    """transformers' name, or empty for what the model has."""


def batches(scale: str) -> dict[str, Batch]:
    """Return the layouts to compare, by name."""
    found = {
        "padded examples": Batch(False, ""),
        "packed, dense mask": Batch(True, ""),
    }
    if scale == "full" and has_varlen_kernel():
        found["packed, variable length"] = Batch(True, register_varlen_attention())
    return found


def measure(session: Session, batch: Batch) -> dict[str, Any]:
    """Return what a step takes; tokens a second count no padding."""
    workload = session.workload
    vocab_size = session.config.get_text_config().vocab_size
    micro_batch = _micro_batch(batch, workload.micro_batch, workload.length, vocab_size)
    with _attention(session.model, batch.attention):
        figures = timed_steps(session.step_of(micro_batch), micro_batch.num_tokens, 0.0, lever=True)
    places = micro_batch.input_ids.numel()
    figures = {key: value for key, value in figures.items() if key not in ("mfu", "tflops")}
    return figures | {
        "tokens": micro_batch.num_tokens,
        "padding": 1 - micro_batch.num_tokens / places,
    }


@contextlib.contextmanager
def _attention(model: Any, name: str) -> Iterator[None]:
    before = model.config.get_text_config()._attn_implementation
    if name:
        model.set_attn_implementation(name)
    try:
        yield
    finally:
        if name:
            model.set_attn_implementation(before)


def _micro_batch(batch: Batch, rows: int, length: int, vocab_size: int) -> MicroBatch:
    """Return whole examples in about ``rows * length`` places."""
    random = np.random.default_rng(0)
    lengths = [min(n, length) for n in _LENGTHS]
    examples = [Example(ids, ids) for ids in (random.integers(vocab_size, size=n) for n in lengths)]
    if batch.packed:
        packed: list[list[Example]] = [[] for _ in range(rows)]
        for row in packed:
            while examples and sum(len(e.input_ids) for e in (*row, examples[0])) <= length:
                row.append(examples.pop(0))
        return collate(packed, pad_id=0, packing=True)
    padded = [[example] for example in examples[: max(1, rows * length // max(lengths))]]
    return collate(padded, pad_id=0)
