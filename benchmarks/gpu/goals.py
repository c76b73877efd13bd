"""What the trainer is meant to reach on one H100 or H200, beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks.gpu.records import Records
from benchmarks.report import table

_LAYERS = (
    "4096 -> 14336, N=64",
    "14336 -> 4096, N=64",
    "8192 -> 28672, N=64",
    "28672 -> 8192, N=64",
)


class Goal(NamedTuple):
    """A value to reach."""

    name: str
    target: float
    at_least: bool
    value: float | None
    case: str


_NOT_STUDIED = ("summed", "merged", "liger")
"""Words in the names of cases that are no candidates; older records call summed merged."""


def goals_table(records: Records) -> str:
    """Return the goals as Markdown: met, or missed by how much; empty where none was measured."""
    rows = []
    for goal in _goals(records):
        if goal.value is None:
            continue
        ratio = goal.value / goal.target
        is_met = ratio >= 1 if goal.at_least else ratio <= 1
        sign = "at least" if goal.at_least else "at most"
        verdict = "met" if is_met else f"missed by {abs(ratio - 1):.1%}"
        rows.append(
            [goal.name, f"{sign} {goal.target:,.5g}", f"{goal.value:,.5g}", verdict, goal.case]
        )
    header = ["goal", "target", "measured", "", "case"]
    return "## Goals\n\n" + table(header, rows) if rows else ""


def _goals(records: Records) -> list[Goal]:
    """Return every goal; ours is the fastest case that rounds as the default does."""
    ours = {kind: _best(records, f"{kind}-zero2") for kind in ("step", "slice")}
    found = []
    name, step = ours["step"]
    found.append(Goal("8B shape, tokens/s", 14_000, True, step.get("tokens_per_s"), name))
    name, part = ours["slice"]
    found.append(Goal("8 layers of 70B, MFU", 0.45, True, part.get("mfu"), name))
    for peer in ("as it is", "liger"):
        lora = records.measured("step-trainer").get(peer, {})
        case = f"{ours['step'][0]}; LoRA {peer}"
        found.append(
            Goal("8B, rate / LoRA's", 1.25, True, _ratio(lora, step, "step_s"), case),
        )
        found.append(
            Goal("8B, memory / LoRA's", 0.8, False, _ratio(step, lora, "memory_bytes"), case)
        )
    layers = records.measured("layers")
    for shape in _LAYERS:
        paths = {
            key.removesuffix(" ms"): value / layers[shape]["frozen ms"]
            for key, value in layers.get(shape, {}).items()
            if key.endswith(" ms")
            and "forward" not in key
            and not key.startswith(("frozen", "PEFT"))
        }
        if paths:
            best = min(paths, key=lambda path: paths[path])
            found.append(Goal(f"layer {shape} / frozen", 1.03, False, paths[best], best))
    return found


def _best(records: Records, stage: str) -> tuple[str, Mapping[str, Any]]:
    """Return the fastest case that does not round ``W + D``, whose effect has not been studied."""
    cases = {
        name: figures
        for name, figures in records.measured(stage).items()
        if not any(word in name for word in _NOT_STUDIED)
    }
    name = min(cases, key=lambda name: cases[name]["step_s"], default="")
    return name, cases.get(name, {})


def _ratio(top: Mapping[str, Any], bottom: Mapping[str, Any], key: str) -> float | None:
    return top[key] / bottom[key] if key in top and key in bottom else None
