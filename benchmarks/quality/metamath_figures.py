"""What a run of the MetaMathQA benchmark found, from its folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.quality import metamath_protocol as protocol
from benchmarks.quality.metamath_settings import Settings
from diablo_ds.config.run_files import load_recorded
from diablo_ds.config.starts import load_starts
from diablo_ds.evaluation.model_names import BASE
from diablo_ds.evaluation.statistics import Estimate, estimate, paired_difference
from diablo_ds.files.atomic import read_json
from diablo_ds.files.layout import (
    ADAPTER_TENSOR_FILE,
    PREDICTIONS_FILE,
    RESULTS_FILE,
    RunFolder,
)
from diablo_ds.files.tensor_files import file_tensors
from diablo_ds.training.metrics_file import read_metrics

if TYPE_CHECKING:
    from benchmarks.quality.metamath import Inputs

_LOSS_STEPS = 250
"""The protocol's training loss is the mean of the last ones."""


def score_answers(folder: Path, ids: Sequence[str]) -> dict[str, list[float]]:
    """Return by model the protocol's 0 or 1 of each question, in order.

    Args:
        folder: of the evaluation.
        ids: of the questions.
    """
    lines = (folder / PREDICTIONS_FILE).read_text(encoding="utf-8").splitlines()
    rows = {(row["model"], row["id"]): row for row in map(json.loads, lines)}
    models = dict.fromkeys(model for model, _ in rows)
    return {
        model: [
            float(protocol.is_right(row["prompt"], row["output"], row["reference"]))
            for row in (rows[model, number] for number in ids)
        ]
        for model in models
    }


def training_figures(run_folder: Path) -> dict[str, Any]:
    """Return what the training took and gave: seconds, bytes, tokens, nats per token."""
    files = RunFolder(run_folder)
    points = [p for p in read_metrics(files.metrics)[0] if "loss" in p]
    tensors = file_tensors(files.adapter / ADAPTER_TENSOR_FILE)
    last = [p["loss"] for p in points[-_LOSS_STEPS:]]
    start, recorded = load_starts(files.run_config)[-1], load_recorded(files.run_config)
    return {
        "steps": len(points),
        "loss": sum(last) / len(last),
        "loss_steps": len(last),
        "seconds": sum(p["step_s"] for p in points),
        "tokens": round(sum(p["step_s"] * p["tokens_per_s"] for p in points)),
        "peak_memory_bytes": max(p["memory_bytes"] for p in points),
        "trainable_parameters": sum(tensor.num_elements for tensor in tensors.values()),
        "adapter_bytes": (files.adapter / ADAPTER_TENSOR_FILE).stat().st_size,
        "learning_rate": recorded.learning_rate,
        "precision": recorded.precision,
        "hosts": start.get("hosts"),
        "model": start.get("model"),
    }


def answer_figures(settings: Settings, inputs: Inputs) -> dict[str, Any]:
    """Return the scores of the test questions, by model."""
    count = settings.limit or len(inputs.questions)
    ids = [str(number) for number in range(1, count + 1)]
    folder = settings.output / "evaluation"
    scores = score_answers(folder, ids)
    ours = {
        result["model"]: result
        for result in read_json(folder / RESULTS_FILE)["results"]
        if result["metric"] == "last_number" and result["n"] == count
    }
    found: dict[str, Any] = {
        ("base" if model == BASE else "diablo"): {
            "accuracy": estimate_json(estimate(values)),
            "last_number": ours.get(model, {}).get("score"),
        }
        for model, values in scores.items()
        if model != BASE or settings.with_base
    }
    if "base" in found:
        adapted = next(values for model, values in scores.items() if model != BASE)
        difference = paired_difference(scores[BASE], adapted)
        found["difference"] = difference._asdict()
    return found


def estimate_json(found: Estimate) -> dict[str, Any]:
    """Return a score with its number of questions and its interval."""
    return {"score": found.score, "n": found.n, "interval": list(found.interval)}


def forgetting_figures(settings: Settings) -> dict[str, Any] | None:
    """Return the losses on the general texts, and their rise; None where none were given."""
    if settings.texts is None:
        return None
    results = read_json(settings.output / "forgetting" / RESULTS_FILE)["results"]
    return {
        ("base" if result["model"] == BASE else "diablo") + " " + result["metric"]: result["score"]
        for result in results
        if result["metric"] in ("loss", "rise")
    }


def other_than_published(
    settings: Settings, inputs: Inputs, figures: Mapping[str, Any]
) -> list[str]:
    """Return why this run's score cannot be set beside the published ones; nothing if it can."""
    shape = {name: inputs.model_config.get(name) for name in protocol.MODEL_SHAPE}
    steps, examples = protocol.STEPS, protocol.STEPS * protocol.GLOBAL_BATCH
    asked = settings.limit or len(inputs.questions)
    precision = figures["training"]["precision"]
    facts = [
        (shape != protocol.MODEL_SHAPE, f"the model is not {protocol.MODEL}"),
        (settings.examples != examples, f"{settings.examples:,} examples, not {examples:,}"),
        (settings.steps != steps, f"{settings.steps:,} steps, not {steps:,}"),
        (
            asked != protocol.NUM_QUESTIONS,
            f"{asked:,} test questions, not {protocol.NUM_QUESTIONS:,}",
        ),
        (
            settings.max_new_tokens != protocol.MAX_NEW_TOKENS,
            f"answers of at most {settings.max_new_tokens} tokens, not {protocol.MAX_NEW_TOKENS}",
        ),
        (precision != "bf16", f"trained in {precision}, not bf16"),
        (settings.greedy, "greedy decoding, whatever generation_config.json says"),
        (
            inputs.selection.num_tests > 0,
            f"{inputs.selection.num_tests} rows left out that are test questions",
        ),
    ]
    return [text for is_so, text in facts if is_so]
