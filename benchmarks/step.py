"""A whole training step and its peak memory, beside the frozen base alone and Trainer + PEFT.

    python -m benchmarks.step
    python -m benchmarks.step --stage 3 --method fused --method lora

Every method trains SmolLM2-135M, or another model, on the same random tokens. "frozen" is forward
and backward to the inputs through the frozen base with the loss, on each rank alone: what any
method has to do at least. All methods take turns in each round.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

import click
import torch

from benchmarks.plots import plot_bars
from benchmarks.ranks import run_ranks
from benchmarks.report import table, write_report
from diablo_ds.cli.console import clean_errors
from diablo_ds.model.finding import find_model

NAMES = {
    "frozen": "frozen base",
    "fused": "DiaBlo",
    "summed": "DiaBlo, summed",
    "lora": "Trainer + PEFT LoRA",
    "dora": "Trainer + PEFT DoRA",
    "full": "Trainer, all parameters",
}
Key = tuple[str, int, bool]
"""Method, ZeRO stage, recomputation."""


def measure_rounds(
    keys: Sequence[Key], settings: dict[str, Any], world_size: int, rounds: int
) -> dict[Key, list[dict[str, Any]]]:
    """Return, by key, what every round found: seconds of a step and bytes of the largest rank."""
    found: dict[Key, list[dict[str, Any]]] = {key: [] for key in keys}
    for number, (method, stage, recomputation) in itertools.product(range(rounds), keys):
        own = {"method": method, "stage": stage, "recomputation": recomputation}
        ranks = run_ranks("benchmarks.methods", settings | own, world_size)
        result = {
            "step_s": statistics.median(
                max(times) for times in zip(*(r["step_s"] for r in ranks), strict=True)
            ),
            "memory_bytes": max(r["memory_bytes"] for r in ranks),
            "trainable": ranks[0]["trainable"],
        }
        found[method, stage, recomputation].append(result)
        click.echo(
            f"round {number + 1}, {NAMES[method]}, stage {stage}, recomputation {recomputation}: "
            f"{result['step_s']:.3f} s, {result['memory_bytes'] / 1e9:.2f} GB",
            err=True,
        )
    return found


def ratio(
    found: dict[Key, list[dict[str, Any]]], key: Key, to: Key, what: str = "step_s"
) -> float | None:
    """Return the median over rounds of one method's figure divided by another's in that round."""
    if key not in found or to not in found:
        return None
    pairs = zip(found[key], found[to], strict=True)
    return float(statistics.median(own[what] / other[what] for own, other in pairs))


@click.command(context_settings={"show_default": True})
@click.option("--model", default="default", help="Folder, hub name, or default for SmolLM2-135M.")
@click.option(
    "--method", "methods", multiple=True, default=tuple(NAMES), type=click.Choice(list(NAMES))
)
@click.option("--stage", "stages", multiple=True, type=int, default=(2, 3))
@click.option("--recomputation", type=click.Choice(["off", "on", "both"]), default="both")
@click.option("--micro-batch", default=2, help="Sequences of a rank.")
@click.option("--length", default=256, help="Tokens of a sequence.")
@click.option("--ranks", default=2)
@click.option("--rounds", default=2)
def main(
    model: str,
    methods: Sequence[str],
    stages: Sequence[int],
    recomputation: str,
    micro_batch: int,
    length: int,
    ranks: int,
    rounds: int,
) -> None:
    """Compare a step's time and peak memory."""
    settings = {"model": str(find_model(model)), "micro_batch": micro_batch, "length": length}
    choices = {"off": (False,), "on": (True,), "both": (False, True)}[recomputation]
    # The frozen base has no stage.
    keys: list[Key] = [("frozen", 0, again) for again in choices if "frozen" in methods]
    keys += [key for key in itertools.product(methods, stages, choices) if key[0] != "frozen"]
    found = measure_rounds(keys, settings, ranks, rounds)
    rows = []
    for key in keys:
        method, stage, again = key
        to_frozen = ratio(found, key, ("frozen", 0, again))
        to_lora = ratio(found, ("lora", stage, again), key)
        memory = ratio(found, key, ("lora", stage, again), "memory_bytes")
        rows.append(
            [
                NAMES[method] + ("" if method == "frozen" else f", ZeRO-{stage}"),
                "yes" if again else "no",
                f"{found[key][0]['trainable']:,}",
                f"{statistics.median(r['step_s'] for r in found[key]):.3f}",
                *("" if value is None else f"{value:.2f}" for value in (to_frozen, to_lora)),
                f"{max(r['memory_bytes'] for r in found[key]) / 1e9:.2f}",
                "" if memory is None else f"{memory:.2f}",
            ]
        )
    text = (
        f"{model} model, bf16, {ranks} ranks x micro batch {micro_batch} x {length} tokens, all of "
        f"them targets; {rounds} rounds, each the median of 7 steps after 3. Rate is Trainer + "
        "PEFT LoRA's time divided by the row's, memory the row's peak divided by LoRA's, at the "
        "same stage and recomputation. Peak memory is of the largest rank, in the measured steps"
        + (".\n\n" if torch.cuda.is_available() else ", the process with its libraries.\n\n")
        + table(
            [
                "method",
                "recomputation",
                "trainable",
                "step, s",
                "time / frozen",
                "rate / LoRA",
                "peak, GB",
                "memory / LoRA",
            ],
            rows,
        )
    )
    figures = {
        "settings": settings | {"ranks": ranks},
        "rounds": [
            {"method": m, "stage": s, "recomputation": c, "rounds": found[m, s, c]}
            for m, s, c in keys
        ],
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = write_report("step", "A training step", figures, text, device)
    labels = [row[0] + (", recomputation" if row[1] == "yes" else "") for row in rows]
    plot_bars(
        path.with_suffix(".png"),
        labels,
        {
            "step (s)": [float(row[3]) for row in rows],
            "peak memory (GB)": [float(row[6]) for row in rows],
        },
        "seconds, GB",
    )


if __name__ == "__main__":
    with clean_errors():
        main()
