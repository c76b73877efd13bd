"""Records that nothing was trained for: the loss is a parabola in the logarithm of the rate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from benchmarks.quality.arms import FAILED, Findings
from benchmarks.quality.parts import wanted_of
from benchmarks.quality.sizes import amounts
from benchmarks.quality.spec import Spec
from benchmarks.quality.study import Study

LAYERS = {"q": (576, 576), "k": (576, 192), "v": (576, 192), "o": (576, 576)}
LAYERS |= {"gate": (576, 1536), "up": (576, 1536), "down": (1536, 576)}
WIDTHS = {
    "default": tuple(LAYERS[name] for name in ("q", "k", "v", "up", "down")),
    "all-linear": tuple(LAYERS.values()),
    "attention": tuple(LAYERS[name] for name in ("q", "k", "v", "o")),
    "mlp": tuple(LAYERS[name] for name in ("gate", "up", "down")),
}
"""Widths of SmolLM2-135M's layers, one of each."""


def study(device: str = "cpu", num_examples: int = 192) -> Study:
    """Return a study of such a model, with few held-out examples to draw intervals from."""
    chosen = dataclasses.replace(amounts(device, num_examples), num_held_out=40)
    return Study(device, "fp32", WIDTHS, chosen)


def best_rate(spec: Spec) -> float:
    """Return the rate at which the parabola has its lowest point."""
    if spec.method == "full":
        return 3e-5 * math.sqrt(spec.global_batch / 8)
    blocks = float(spec.num_blocks)
    return (4e-3 if spec.method == "diablo" else 1.3e-3) * math.sqrt(
        blocks / 64 * spec.global_batch / 8
    )


def loss(spec: Spec) -> float:
    """Return the loss of a spec; infinite far above the best rate."""
    distance = math.log2(spec.rate / best_rate(spec))
    offset = {"diablo": 0.0, "lora": 0.01, "rslora": 0.02, "full": -0.01}[spec.method]
    return math.inf if distance > 3 else 1.2 + offset + 0.03 * distance**2 + 1e-3 * spec.seed


def record(spec: Spec, device: str = "cpu", value: float | None = None) -> dict[str, Any]:
    """Return a spec's record, with the given loss or the parabola's."""
    value = loss(spec) if value is None else value
    is_done, count = math.isfinite(value), spec.num_held_out
    answers = [int((7 * index + spec.seed) % 10 < 6) for index in range(spec.num_questions)]
    parts = {"build": 1.0, "train": 0.2 * spec.num_examples, "heldout": 0.05 * spec.num_held_out}
    seconds = parts | {"questions": 0.1 * spec.num_questions}
    return {
        "key": spec.key(),
        "spec": spec.to_json(),
        "status": "done" if is_done else "diverged",
        "diverged_step": None if is_done else 3,
        "trainable": 1_000_000,
        "heldout": value if is_done else None,
        "heldout_before": 2.0,
        "heldout_nats": [(value + 0.3 * math.sin(i)) * 5 for i in range(count)] if is_done else [],
        "heldout_targets": 5 * count,
        "answers": answers or None,
        "accuracy": sum(answers) / len(answers) if answers else None,
        "seconds": seconds | {"total": sum(seconds.values())},
        "machine": {"hardware": "a made-up CPU"},
        "versions": {"torch": "2.13"},
        "commit": "0123456789abcdef",
        "date": "2026-11-27T10:00:00+00:00",
        "data": {"digest": "d"},
        "device": device,
        "part": "rate",
    }


def failure(spec: Spec, *, is_refused: bool = False) -> dict[str, Any]:
    """Return the record of a failed try."""
    values = {"key": spec.key(), "spec": spec.to_json(), "status": FAILED, "device": "cpu"}
    return values | {"reason": "killed", "is_refused": is_refused}


def complete(
    part: str, study: Study, findings: Findings, answer: Callable[[Spec], dict[str, Any]] = record
) -> list[Spec]:
    """Answer what a part wants, one after another, until it wants nothing; return the specs."""
    asked: list[Spec] = []
    while left := wanted_of(part, study, findings):
        assert left[0] not in asked
        asked.append(left[0])
        findings.add(answer(left[0]))
        assert len(asked) < 1000
    return asked
