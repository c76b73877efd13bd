"""The arms of the study: what is compared, each with the learning rate that is best for it.

An arm's trainings differ in rate and seed only. Its search goes in steps of a factor of 2 over
`Study.anchors` times powers of 2, so that the parts of the study share trainings. The best rate is
the one with the lowest held-out loss; a training that diverged counts as worse than any other.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.quality.spec import Spec

MAX_TRIES = 2
"""A training that failed as often is given up."""
MAX_STEPS = 8
"""Factors of 2 between the start of a search and its end."""
FAILED = "failed"
_SEEDS_LATER = 100
"""Added to the order of other seeds: they follow the search."""


class Findings:
    """The records of one device, found by their specs.

    Args:
        records: all records, also of other devices, which are ignored.
        device: of the study.
        retried: how many of the first records' failures do not count.
    """

    def __init__(
        self, records: Iterable[Mapping[str, Any]], device: str, *, retried: int = 0
    ) -> None:
        self.device = device
        self.records: dict[Spec, Mapping[str, Any]] = {}
        """Of trainings that ended by themselves."""
        self.failures: Counter[Spec] = Counter()
        self._retried, self._num_seen = retried, 0
        self._alike: dict[Spec, set[tuple[float, int]]] = {}
        for record in records:
            self.add(record)

    def add(self, record: Mapping[str, Any]) -> None:
        """Take another record."""
        self._num_seen += 1
        if record["device"] != self.device:
            return
        spec = Spec.from_json(record["spec"])
        if record["status"] != FAILED:
            self.records[spec] = record
        elif self._num_seen > self._retried:
            self.failures[spec] += MAX_TRIES if record.get("is_refused") else 1
        self._alike.setdefault(_template(spec), set()).add((spec.rate, spec.seed))

    def is_settled(self, spec: Spec) -> bool:
        """Return whether a training needs no further try."""
        return spec in self.records or self.failures[spec] >= MAX_TRIES

    def losses(self, spec: Spec) -> dict[tuple[float, int], float]:
        """Return held-out losses by rate and seed of trainings like this one.

        Infinite are those of trainings that diverged or that were given up.
        """
        found = {}
        for rate, seed in self._alike.get(_template(spec), ()):
            one = dataclasses.replace(spec, rate=rate, seed=seed)
            record = self.records.get(one)
            if record is not None:
                is_done = record["status"] == "done" and record["heldout"] is not None
                found[rate, seed] = record["heldout"] if is_done else math.inf
            elif self.is_settled(one):
                found[rate, seed] = math.inf
        return found


def _template(spec: Spec) -> Spec:
    """Return what trainings share that differ in rate and seed only."""
    return dataclasses.replace(spec, rate=1.0, seed=0)


class Wanted(NamedTuple):
    """A training that an arm still needs."""

    order: int
    """Smaller ones of all arms go first."""
    spec: Spec


class Tuned(NamedTuple):
    """The best rate of an arm, as far as it is known."""

    rate: float
    losses: Mapping[int, float]
    """Held-out loss by seed."""
    is_inside: bool
    """Whether the rates on both sides of it are known to be worse."""


@dataclass(frozen=True)
class Arm:
    """One thing that is compared."""

    name: str
    spec: Spec
    """Its trainings, but for rate and seed."""
    start: float
    """The rate with which the search begins."""
    seeds: tuple[int, ...] = (0,)
    """The first one searches."""
    around: int = 1
    """Rates on each side of the best that the search needs; 0 trains at the start's rate only."""
    top: int = 1
    """How many of the best rates get all seeds."""

    def at(self, place: int, seed: int) -> Spec:
        """Return a training.

        Args:
            place: factors of 2 from the start's rate.
            seed: its seed.
        """
        return dataclasses.replace(self.spec, rate=self.start * 2.0**place, seed=seed)

    def losses(self, findings: Findings) -> dict[int, dict[int, float]]:
        """Return the losses that are known by place and seed, where the first seed's is."""
        found: dict[int, dict[int, float]] = {}
        for (rate, seed), loss in findings.losses(self.spec).items():
            place = round(math.log2(rate / self.start))
            if seed in self.seeds and rate == self.start * 2.0**place and abs(place) <= self._reach:
                found.setdefault(place, {})[seed] = loss
        return {place: seeds for place, seeds in found.items() if self.seeds[0] in seeds}

    @property
    def _reach(self) -> int:
        return MAX_STEPS if self.around else 0

    def _ranked(self, findings: Findings) -> list[int]:
        """Return the places from the best to the worst; of equal ones the lower rate is better."""
        losses = self.losses(findings)
        return sorted(losses, key=lambda place: (losses[place][self.seeds[0]], place))

    def wanted(self, findings: Findings) -> list[Wanted]:
        """Return what is needed beyond the findings, in order.

        The last ones are those that the search would ask for if the best rate stayed the best.
        """
        ranked = self._ranked(findings)
        best = ranked[0] if ranked else 0
        places = [best]
        for step in range(1, self.around + 1):
            places += [best - step, best + step]
        averaged = self._best_place(findings)
        if self.around and averaged is not None:  # other seeds may prefer another rate
            places += [averaged - 1, averaged + 1]
        searches = [
            Wanted(abs(place - best), self.at(place, self.seeds[0]))
            for place in dict.fromkeys(places)
            if abs(place) <= MAX_STEPS
        ]
        order = [*ranked, *(place for place in places if place not in ranked)]
        repeats = [
            Wanted(_SEEDS_LATER * (1 + number) + position, self.at(place, seed))
            for number, place in enumerate(order[: self.top])
            if abs(place) <= MAX_STEPS
            for position, seed in enumerate(self.seeds[1:])
        ]
        return [w for w in (*searches, *repeats) if not findings.is_settled(w.spec)]

    def _best_place(self, findings: Findings) -> int | None:
        """Return the place of the lowest mean among those with the most seeds.

        These are the best of the search. None if nothing is known, or all of them diverged.
        """
        losses = self.losses(findings)
        most = max((len(known) for known in losses.values()), default=0)
        means = {
            place: sum(known.values()) / most
            for place, known in losses.items()
            if most and len(known) == most
        }
        best = min(means, key=lambda place: (means[place], place), default=None)
        return None if best is None or math.isinf(means[best]) else best

    def tuned(self, findings: Findings) -> Tuned | None:
        """Return the best rate as far as it is known, or None where nothing is known."""
        best = self._best_place(findings)
        if best is None:
            return None
        losses = self.losses(findings)
        is_inside = {best - 1, best + 1} <= losses.keys()
        return Tuned(self.start * 2.0**best, losses[best], is_inside)

    def records(self, findings: Findings) -> list[Mapping[str, Any]]:
        """Return the records of the best rate, by seed."""
        tuned = self.tuned(findings)
        if tuned is None:
            return []
        return [
            findings.records[dataclasses.replace(self.spec, rate=tuned.rate, seed=seed)]
            for seed in sorted(tuned.losses)
        ]


def wanted(arms: Sequence[Arm], findings: Findings) -> list[Spec]:
    """Return the trainings that arms still need, each once, the most telling first.

    Those that failed before follow the others.
    """
    order: dict[Spec, int] = {}
    for arm in arms:
        for item in arm.wanted(findings):
            order[item.spec] = min(item.order, order.get(item.spec, item.order))
    return sorted(order, key=lambda spec: (findings.failures[spec], order[spec]))
