"""Means over seeds with their intervals, and differences between arms at the same seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from benchmarks.quality.arms import Arm, Findings
from diablo_ds.evaluation.statistics import LEVEL, Difference, Interval, paired_difference


@dataclass(frozen=True)
class Mean:
    """A mean over seeds; without an interval where there is one seed."""

    value: float
    n: int
    half: float | None
    """Half the width of the 95 % interval."""

    @property
    def low(self) -> float:
        """Lower end of the interval; the mean where there is none."""
        return self.value - (self.half or 0.0)

    @property
    def high(self) -> float:
        """Upper end of the interval; the mean where there is none."""
        return self.value + (self.half or 0.0)

    def text(self, *, signed: bool = False) -> str:
        """Return it as in 1.2345 [1.2300, 1.2390], or with "1 seed" instead of an interval."""
        sign = "+" if signed else ""
        value = f"{self.value:{sign}.4f}"
        if self.half is None:
            return f"{value} (1 seed)"
        return f"{value} [{self.low:{sign}.4f}, {self.high:{sign}.4f}]"


def mean(values: Sequence[float]) -> Mean:
    """Return a mean with Student's t interval.

    Raises:
        ValueError: if there is no value.
    """
    if len(values) < 2:
        return Mean(fmean(values), len(values), None)
    error = stdev(values) / math.sqrt(len(values))
    return Mean(fmean(values), len(values), t_quantile(len(values) - 1) * error)


def t_quantile(degrees: int) -> float:
    """Return the value that |t| of Student's distribution exceeds with a probability of 5 %."""
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _t_share(middle, degrees) < LEVEL else (low, middle)
    return high


def _t_share(t: float, degrees: int) -> float:
    """Return the probability that |T| < t (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    theta = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(theta), math.cos(theta)
    term = cosine if degrees % 2 else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(3 if degrees % 2 else 2, degrees - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if degrees % 2:
        return 2 / math.pi * (theta + sine * total)
    return sine * total


@dataclass(frozen=True)
class Gap:
    """By how much one arm's held-out loss is higher than another's, each at its own best rate."""

    seeds: Mean
    """Over seeds, paired: a seed gives both arms the same order of the same examples."""
    examples: Interval | None
    """Over held-out examples, each with its mean over seeds; None where they were not kept."""

    @property
    def sign(self) -> int:
        """1 or -1 where all intervals are on that side of 0; 0 otherwise, and with one seed."""
        if self.seeds.half is None:
            return 0
        intervals = [(self.seeds.low, self.seeds.high), *([self.examples] if self.examples else [])]
        if all(low > 0 for low, _ in intervals):
            return 1
        return -1 if all(high < 0 for _, high in intervals) else 0

    def text(self) -> str:
        """Return it with its intervals."""
        text = self.seeds.text(signed=True)
        if self.examples is None:
            return text
        return f"{text}, over examples [{self.examples.low:+.4f}, {self.examples.high:+.4f}]"


def loss_difference(first: Arm, second: Arm, findings: Findings) -> Gap | None:
    """Compare the losses of two arms; None without a seed that both have at their best rates."""
    own, others = (
        {record["spec"]["seed"]: record for record in arm.records(findings)}
        for arm in (first, second)
    )
    common = sorted(own.keys() & others.keys())
    if not common:
        return None
    differences = [own[seed]["heldout"] - others[seed]["heldout"] for seed in common]
    values = [_example_losses([records[seed] for seed in common]) for records in (others, own)]
    examples = None
    if values[0] and len(values[0]) == len(values[1]):
        examples = paired_difference(values[0], values[1]).interval
    return Gap(mean(differences), examples)


def _example_losses(records: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return each held-out example's part of the loss: their mean is the loss; over seeds."""
    if not all(record.get("heldout_nats") for record in records):
        return []
    scaled = []
    for record in records:
        nats = record["heldout_nats"]
        scaled.append([value * len(nats) / record["heldout_targets"] for value in nats])
    return _means(scaled)


def answer_means(arm: Arm, findings: Findings) -> tuple[int, list[float]]:
    """Return the number of seeds, and for each question the share of them that answer it right."""
    answers = [r["answers"] for r in arm.records(findings) if r.get("answers")]
    if not answers:
        return 0, []
    return len(answers), _means(answers)


def answer_difference(first: Arm, second: Arm, findings: Findings) -> Difference | None:
    """Compare two arms on the same questions, over the seeds that both have.

    Returns:
        How much higher the first one's accuracy is; None without answers to the same questions.
    """
    records = [
        {r["spec"]["seed"]: r["answers"] for r in arm.records(findings) if r.get("answers")}
        for arm in (second, first)
    ]
    common = sorted(records[0].keys() & records[1].keys())
    if not common:
        return None
    before, after = (_means([own[seed] for seed in common]) for own in records)
    if len(before) != len(after):
        return None
    return paired_difference(before, after)


def _means(by_seed: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean over seeds of each example or question."""
    return [fmean(values) for values in zip(*by_seed, strict=True)]


def verdict(gap: Gap, first: str, second: str) -> str:
    """Return in words what a difference of losses shows."""
    if gap.seeds.half is None:
        return f"{first} against {second}: {gap.text()}; one seed shows nothing."
    words = {1: "has a higher loss than", -1: "has a lower loss than", 0: "against"}
    end = "" if gap.sign else "; no difference is shown"
    return f"{first} {words[gap.sign]} {second}: {gap.text()}{end}."


def num_trainable(arm: Arm, findings: Findings) -> int | None:
    """Return how many parameters an arm trains, as far as it was run."""
    records: list[Mapping[str, Any]] = arm.records(findings)
    return int(records[0]["trainable"]) if records else None
