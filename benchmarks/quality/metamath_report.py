"""The report of the MetaMathQA benchmark: what was measured, beside what was published."""

from __future__ import annotations

import datetime
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.quality import metamath_protocol as protocol
from benchmarks.quality.metamath_commands import shown_words
from benchmarks.quality.metamath_figures import (
    answer_figures,
    estimate_json,
    forgetting_figures,
    other_than_published,
    training_figures,
)
from benchmarks.quality.metamath_settings import Settings
from benchmarks.report import machine, table
from diablo_ds.evaluation.statistics import estimate
from diablo_ds.files.atomic import read_json, write_json, write_text
from diablo_ds.files.layout import REPORT_FILE, RESULTS_FILE
from diablo_ds.ranks.masking import hide_secrets
from diablo_ds.ranks.source_commit import find_commit

if TYPE_CHECKING:
    from benchmarks.quality.metamath import Inputs

_DIFFERENCES = (
    "Order: the same rows, drawn at random by the seed; there in the order of the file. Both make "
    "batches of similar length: here over all rows, there within 80 in a row.",
    "Every text ends with an end token that carries loss; there all but the longest of a batch.",
    "Deltas are in the precision of the base, with fp32 masters in the optimizer; there adapters "
    "are fp32.",
    "The model answers with the adapter added to the weights in that precision; there it stays "
    "beside them.",
    "Memory is what was allocated in training; there what was reserved, generation included. "
    "Seconds are of the steps; there of training and test.",
    "The rate of the first step of the warm-up is small; there it is 0.",
    "No validation every 250 steps on 50 rows of GSM8K's training split.",
    "Layers are compiled on a GPU; there not.",
)
"""Where every run of this command differs from the protocol."""


def write_results(settings: Settings, inputs: Inputs, commands: Sequence[Sequence[str]]) -> str:
    """Write results.json and report.md, and return the report."""
    selection = inputs.selection
    seconds = settings.output / "seconds.json"
    figures: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        **machine(),
        "commit": find_commit()._asdict(),
        "command": shlex.join(
            ["python", "-m", "benchmarks.quality.metamath", *hide_secrets(sys.argv[1:], os.environ)]
        ),
        "settings": settings.recorded(),
        "data": {
            "rows_read": selection.num_read,
            "rows_too_long": selection.num_long,
            "rows_in_test": selection.num_tests,
            "rows_trained": len(selection.pairs),
        },
        "decoding": inputs.decoding._asdict(),
        "training": training_figures(settings.run_folder),
        "test": answer_figures(settings, inputs),
        "evaluation_seconds": read_json(seconds) if seconds.is_file() else {},
        "forgetting": forgetting_figures(settings),
    }
    figures["other_than_published"] = other_than_published(settings, inputs, figures)
    figures["published_not_measured_here"] = {
        "source": protocol.SOURCE,
        "results": [result._asdict() for result in protocol.PUBLISHED],
    }
    write_json(settings.output / RESULTS_FILE, figures)
    report = report_text(
        figures,
        inputs.decoding,
        [shown_words(words, ranks=settings.ranks) for words in commands],
    )
    write_text(settings.output / REPORT_FILE, report)
    return f"{report}\nReport: {settings.output / REPORT_FILE}"


def report_text(
    figures: Mapping[str, Any], decoding: protocol.Decoding, commands: Sequence[Sequence[str]]
) -> str:
    """Return the report as Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in figures["versions"].items())
    reasons = figures["other_than_published"]
    comparable = (
        f"**Not comparable with the published figures**: {'; '.join(reasons)}."
        if reasons
        else "Data, steps, model and questions are those of the published figures."
    )
    differences = [
        *_DIFFERENCES,
        f"Tokens of an answer are {decoding.describe()}. The protocol leaves that to the model's "
        "generation_config.json, which is read here too, but for transformers' top-k of 50.",
    ]
    data, spent = figures["data"], figures["evaluation_seconds"].get("evaluation", 0.0)
    training = figures["training"]
    parts = [
        "# DiaBlo in PEFT's MetaMathQA benchmark",
        f"{figures['date']}; {figures['hardware']}; Python {figures['python']}, {versions}.\n"
        f"Command: `{figures['command']}`",
        comparable,
        "## Measured here",
        _measured(figures),
        f"Trained on {data['rows_trained']:,} rows ({data['rows_read']:,} read, "
        f"{data['rows_too_long']:,} longer than {protocol.MAX_CHARACTERS:,} characters, "
        f"{data['rows_in_test']:,} test questions), {training['steps']:,} steps, "
        f"{training['tokens']:,} tokens; mean loss of the last {training['loss_steps']} steps "
        f"{training['loss']:.4f} nats per token. The test took {spent:,.0f} s.",
        "## Published, not measured here",
        f"By PEFT's maintainers on one NVIDIA L40S, {protocol.MODEL}, bf16; {protocol.SOURCE}. "
        "Intervals are computed here, from the number of right answers.",
        _published(),
        "## Protocol",
        "The first rows of at most 1,300 characters; `Question: ... Think step by step.\\nAnswer:` "
        "and the response, loss on all of it; 4 examples a step, AdamW with weight decay 0.1, "
        "cosine after 10 % of warm-up, gradient norm at most 1, texts of at most 768 tokens, "
        "answers of at most 300. An answer is right if what follows the last `The answer is: ` "
        "(or another of its markers) is the reference, as a number or letter by letter. Without "
        "a marker it is wrong; `last number` takes the last number instead.",
        "What differs in every run of this command:",
        "\n".join(f"- {text}" for text in differences),
        "## Commands",
        "\n".join(f"    {shlex.join(words)}" for words in commands),
    ]
    return "\n\n".join(parts) + "\n"


def _measured(figures: Mapping[str, Any]) -> str:
    training, test = figures["training"], figures["test"]
    settings = figures["settings"]
    header = ["", "accuracy (95 %)", "last number", "trainable", "adapter", "training", "memory"]
    name = f"DiaBlo N={settings['num_blocks']}, rate {training['learning_rate']:g}"
    rows = [
        [
            name,
            _accuracy(test["diablo"]["accuracy"]),
            _share(test["diablo"]["last_number"]),
            f"{training['trainable_parameters']:,}",
            f"{training['adapter_bytes'] / 1e6:.1f} MB",
            f"{training['seconds']:,.0f} s",
            f"{training['peak_memory_bytes'] / 1e9:.2f} GB",
        ]
    ]
    if "base" in test:
        base = test["base"]
        rows.append(["base", _accuracy(base["accuracy"]), _share(base["last_number"]), *[""] * 4])
    lines = [table(header, rows)]
    if difference := test.get("difference"):
        low, high = difference["interval"]
        lines.append(
            f"Difference to the base: {difference['difference']:+.3f} ({low:+.3f} to {high:+.3f}), "
            f"p = {difference['p']:.2g}, {difference['test']}."
        )
    if forgetting := figures["forgetting"]:
        values = ", ".join(f"{name} {value:.4f}" for name, value in forgetting.items())
        lines.append(f"Forgetting, nats per token of the given texts: {values}.")
    return "\n\n".join(lines)


def _published() -> str:
    header = ["", "accuracy (95 %)", "trainable", "adapter", "training, test", "memory"]
    rows = []
    for result in protocol.PUBLISHED:
        right = [1.0] * result.num_right + [0.0] * (protocol.NUM_QUESTIONS - result.num_right)
        rows.append(
            [
                f"{result.name}, {result.date}",
                _accuracy(estimate_json(estimate(right))),
                f"{result.trainable:,}",
                f"{result.adapter_bytes / 1e6:,.1f} MB",
                f"{result.train_s:,} s",
                f"{result.reserved_bytes / 1e9:.2f} GB",
                f"{result.forgetting:+.3f}",
            ]
        )
    return table([*header, "forgetting"], rows)


def _accuracy(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['score']:.3f} ({low:.3f} to {high:.3f}), n = {found['n']:,}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
