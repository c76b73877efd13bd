"""The page of `benchmarks.evaluate`: rates, ratios, goals."""

from __future__ import annotations

import datetime
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.evaluate_methods import HARNESS, OURS, SINGLE, Part
from benchmarks.report import table
from diablo_ds.data.text.tokenization import load_tokenizer
from diablo_ds.evaluation.items import GENERATION

GOALS = {SINGLE: 5.0, HARNESS: 1.5}
"""The rate of the engine divided by that of the other methods, at least."""


@dataclass(frozen=True)
class Rate:
    """What one method did with one part."""

    method: str
    batch_size: int
    """0 where the method chooses it."""
    seconds: float
    """For all questions, from the median over rounds of the time of a question."""
    cpu_s: float
    memory_bytes: int
    answers: Mapping[int, Any]
    """By the place of the question."""


def rates(lines: Sequence[Mapping[str, Any]], part: Part) -> dict[str, Rate]:
    """Return what each method did with a part.

    Args:
        lines: the measurements.
        part: whose rates to return.
    """
    found = {}
    for method in (OURS, SINGLE, HARNESS):
        own = [
            line
            for line in lines
            if line["step"] == "measured"
            and (line["task"], line["kind"], line["method"]) == (part.task, part.kind, method)
        ]
        found[method] = Rate(
            method,
            own[0]["batch_size"],
            part.count * statistics.median(line["seconds"] / line["questions"] for line in own),
            part.count * statistics.median(line["cpu_s"] / line["questions"] for line in own),
            max(line["memory_bytes"] for line in own),
            {
                place: answer
                for line in own
                for place, answer in zip(line["places"], line["answers"], strict=True)
            },
        )
    return found


def evaluation_report(
    lines: Sequence[Mapping[str, Any]],
    parts: Sequence[Part],
    where: Mapping[str, Any],
    folder: Path,
) -> str:
    """Return the page.

    Args:
        lines: the measurements.
        parts: what was measured.
        where: machine, versions, threads and the model's name.
        folder: of the model, whose tokens are counted.
    """
    found = {part: rates(lines, part) for part in parts}
    loads = [line["load"] for line in lines]
    command = " ".join(["python -m benchmarks.evaluate", *sys.argv[1:]])
    versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    return (
        "# Answering questions\n\n"
        f"{datetime.date.today().isoformat()}; {where['hardware']}; Python {where['python']}, "
        f"{versions}, lm_eval {_harness_version()}.\nCommand: `{command}`\n\n"
        f"{where['model']}, fp32, {where['threads']} threads; load of the machine from "
        f"{min(loads)} to {max(loads)}. From questions to answers; the model is loaded and warm. "
        "The batch size of lm-evaluation-harness is the best of those that were tried. Memory is "
        "the peak of the process, libraries included.\n\n"
        f"{_goals(found)}\n\n## Rates\n\n{_rates(found, folder)}\n\n"
        f"## Batch sizes of the harness\n\n{_search(lines, parts)}\n"
    )


def _harness_version() -> str:
    from importlib.metadata import version

    return version("lm_eval")


def _name(part: Part) -> str:
    if part.kind == GENERATION:
        tokens = f", answers of up to {part.max_new_tokens} tokens" if part.max_new_tokens else ""
        return f"{part.task}, {part.count} questions{tokens}"
    return f"{part.task}, choices of {part.count} questions"


def _goals(found: Mapping[Part, Mapping[str, Rate]]) -> str:
    rows = []
    for part, by_method in found.items():
        ours = by_method[OURS]
        for other, goal in GOALS.items():
            theirs = by_method[other]
            ratio, by_cpu = theirs.seconds / ours.seconds, theirs.cpu_s / ours.cpu_s
            equal = sum(ours.answers[place] == answer for place, answer in theirs.answers.items())
            rows.append(
                [
                    _name(part),
                    other,
                    f"{ratio:.2f}",
                    f"{by_cpu:.2f}",
                    f"{goal}",
                    "reached" if ratio >= goal else "missed",
                    f"{equal} of {len(theirs.answers)}",
                ]
            )
    header = ["questions", "compared with", "rate", "by CPU time", "goal", "", "equal answers"]
    return f"## Rate of diablo_ds divided by that of the others\n\n{table(header, rows)}"


def _rates(found: Mapping[Part, Mapping[str, Rate]], folder: Path) -> str:
    encoder = load_tokenizer(folder).encoder
    rows = []
    for part, by_method in found.items():
        for rate in by_method.values():
            tokens = "-"
            if part.kind == GENERATION:
                texts = list(rate.answers.values())
                ids = encoder.encode(texts, continues=True, parse_special=False)
                tokens = f"{sum(map(len, ids)) / rate.seconds:.1f}"
            batch = "own" if rate.method == OURS else str(rate.batch_size)
            rows.append(
                [
                    _name(part),
                    rate.method,
                    batch,
                    f"{part.count / rate.seconds:.2f}",
                    tokens,
                    f"{rate.seconds:.1f}",
                    f"{rate.cpu_s:.1f}",
                    f"{rate.memory_bytes / 1e9:.2f}",
                ]
            )
    header = ["questions", "method", "batch", "questions/s", "new tokens/s", "s", "CPU s", "GB"]
    return table(header, rows)


def _search(lines: Sequence[Mapping[str, Any]], parts: Sequence[Part]) -> str:
    tried = [line for line in lines if line["step"] == "search"]
    sizes = sorted({line["batch_size"] for line in tried})
    rows = []
    for part in parts:
        own = {
            line["batch_size"]: line["seconds"] / line["questions"]
            for line in tried
            if (line["task"], line["kind"]) == (part.task, part.kind)
        }
        rows.append([_name(part), *(f"{own[size]:.3f}" for size in sizes)])
    return table(["seconds per question", *(f"batch {size}" for size in sizes)], rows)
