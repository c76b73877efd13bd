"""How long trainings take, and how much each may see so that the study fits a budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from types import MappingProxyType
from typing import Any

from benchmarks.quality.arms import Findings
from benchmarks.quality.parts import wanted_of_all
from benchmarks.quality.spec import Spec
from benchmarks.quality.study import Amounts, Study

_METHOD_COST = {"diablo": 1.0, "lora": 1.03, "rslora": 1.03, "dora": 1.6, "full": 1.55}
_DATA_COST = {"commonsense": 1.0, "gsm8k": 2.5}
_QUESTION_COST = {"commonsense": 0.0, "gsm8k": 15.0}
"""Guesses, in the seconds of a training example of DiaBlo; used until something is measured."""
_HELD_OUT_COST = 0.36
_UNMEASURED_S = {"cpu": 0.45, "cuda": 0.003}
_EXTENSIONS = 1.15
"""Searches that go on beyond the rates they begin with, as a factor on all seconds. A guess."""
LADDERS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "cpu": (64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048),
        "cuda": (1024, 2048, 4096, 8192, 16384, 32768),
    }
)
"""Training examples of the sweeps' trainings, of which the most that fits the budget is taken."""


def amounts(device: str, num_examples: int) -> Amounts:
    """Return how much is trained and measured on a device.

    Args:
        device: "cpu", or the name of a GPU.
        num_examples: training examples of the sweeps' trainings.
    """
    if device == "cpu":
        return Amounts(
            num_examples=num_examples,
            batch_examples=2 * num_examples,
            final_examples=num_examples,
            num_seeds=3,
            global_batch=8,
            num_held_out=96,
            final_questions=0,
        )
    return Amounts(
        num_examples=num_examples,
        batch_examples=max(num_examples, 4096),
        final_examples=min(num_examples, 7168),
        num_seeds=5,
        global_batch=32,
        num_held_out=1000,
        final_questions=500,
    )


class Estimates:
    """Seconds of a training, from the records so far.

    Args:
        findings: the records.
        machine: hardware whose records count; those of all where it is empty.
    """

    def __init__(self, findings: Findings, machine: str = "") -> None:
        self._device = findings.device
        self._records = [
            record
            for record in findings.records.values()
            if record["status"] == "done"
            and (not machine or record.get("machine", {}).get("hardware") == machine)
        ]

    def seconds(self, spec: Spec) -> float:
        """Return the expected seconds of a training, measurement included."""
        example_s = self._example_s(spec)
        held_out_s = self._per("heldout", "num_held_out", spec)
        question_s = self._per("questions", "num_questions", spec)
        plain_s = example_s / (_METHOD_COST[spec.method] * _DATA_COST[spec.data])
        if held_out_s is None:
            held_out_s = _HELD_OUT_COST * _DATA_COST[spec.data] * plain_s
        if question_s is None:
            question_s = _QUESTION_COST[spec.data] * plain_s
        build_s = median([r["seconds"]["build"] for r in self._records] or [1.0])
        total_s: float = (
            build_s
            + example_s * spec.num_examples
            + held_out_s * spec.num_held_out
            + question_s * spec.num_questions
        )
        return total_s

    def _example_s(self, spec: Spec) -> float:
        """Return the seconds of a training example."""
        own = self._per("train", "num_examples", spec, ("method",))
        if own is not None:
            return own
        same = [r for r in self._records if r["spec"]["precision"] == spec.precision]
        plain = [
            r["seconds"]["train"]
            / r["spec"]["num_examples"]
            / (_METHOD_COST[r["spec"]["method"]] * _DATA_COST[r["spec"]["data"]])
            for r in same or self._records
        ]
        kind = "cpu" if self._device == "cpu" else "cuda"
        plain_s: float = median(plain or [_UNMEASURED_S[kind]])
        return plain_s * _METHOD_COST[spec.method] * _DATA_COST[spec.data]

    def _per(self, name: str, count: str, spec: Spec, more: Iterable[str] = ()) -> float | None:
        """Return the median seconds of something by its count, over the records of such examples.

        These share data, length and precision with the spec, and what ``more`` names.
        """
        wanted = spec.to_json()
        alike = ("data", "max_length", "precision", *more)
        values = [
            record["seconds"][name] / record["spec"][count]
            for record in self._records
            if record["spec"][count] and all(record["spec"][a] == wanted[a] for a in alike)
        ]
        return median(values) if values else None


def calibration(study: Study) -> list[Spec]:
    """Return short trainings that show how fast this machine is; they are no part's.

    The first one brings libraries and data into the caches.
    """
    short = {
        "num_examples": 4 * study.amounts.global_batch,
        "num_held_out": min(32, study.amounts.num_held_out),
        "num_questions": study.num_questions(min(32, study.amounts.num_held_out)),
    }
    n = study.nearest(study.num_blocks)
    return [study.spec("full", **short), study.spec("diablo", n, **short)]


def fitting_amounts(
    study: Study,
    parts: Sequence[str],
    estimates: Estimates,
    budget_s: float,
    fixed: Mapping[str, int] = MappingProxyType({}),
) -> Amounts:
    """Return the largest amounts with which all trainings of the parts fit the budget.

    Where none fits, the smallest are returned: the parts at the end are then not run.

    Args:
        study: its amounts are replaced.
        parts: names of those that share the budget.
        estimates: of the seconds.
        budget_s: seconds, times the number of workers.
        fixed: values of fields of `Amounts`.
    """
    ladder = LADDERS["cpu" if study.device == "cpu" else "cuda"]
    chosen = dataclasses.replace(amounts(study.device, ladder[0]), **fixed)
    for num_examples in ladder[1:]:
        larger = dataclasses.replace(amounts(study.device, num_examples), **fixed)
        planned = planned_seconds(dataclasses.replace(study, amounts=larger), parts, estimates)
        if planned > budget_s:
            break
        chosen = larger
    return chosen


def planned_seconds(study: Study, parts: Sequence[str], estimates: Estimates) -> float:
    """Return the seconds of all trainings of the parts, when nothing is known yet."""
    nothing: list[dict[str, Any]] = []
    planned = wanted_of_all(parts, study, Findings(nothing, study.device))
    return _EXTENSIONS * sum(estimates.seconds(spec) for _, spec in planned)
