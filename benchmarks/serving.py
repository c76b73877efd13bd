"""What it costs that each row of a batch has its own adapter: decoding and prefill.

    python -m benchmarks.serving
    python -m benchmarks.serving --device cuda --depth 16 --prompt 512

Two questions. One layer: which formulation of `diablo_ds.adapter.batched` is the fastest, beside
the frozen layer and PEFT's LoRA of equal size. A model: a prefill and a decoded token of 32 rows,
ours against PEFT LoRA's mixed batches, with peak memory. Candidates take turns in each round; a
ratio is formed within a round, and the median is taken over rounds. Where an adapter is chosen once
for a generation, the benchmark chooses it again for each forward, for all candidates.
"""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.layer import Shape, timed
from benchmarks.ranks import FREED_AT_ONCE, run_ranks
from benchmarks.report import table, write_report
from benchmarks.serving_models import DTYPES, METHODS, Settings, phases
from diablo_ds.adapter.batched import FORMULATIONS, add_chosen_deltas, stack_deltas

LAYERS = (Shape(576, 1536, 64), Shape(2048, 2048, 64), Shape(2048, 8192, 64))
WARM_UP = 2


def ratios(
    candidates: dict[str, Callable[[], Any]], device: str, rounds: int
) -> tuple[float, dict[str, float]]:
    """Return the first candidate's milliseconds, and each other's time divided by its."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for index in range(WARM_UP + rounds):
        for name, function in candidates.items():
            seconds = timed(function, device)
            if index >= WARM_UP:
                times[name].append(seconds)
    first, *others = times
    return 1e3 * statistics.median(times[first]), {
        name: statistics.median(t / f for t, f in zip(times[name], times[first], strict=True))
        for name in others
    }


@torch.inference_mode()
def measure_layer(
    shape: Shape, num_adapters: int, tokens: int, dtype: str, device: str, rounds: int, batch: int
) -> tuple[float, dict[str, float]]:
    """Return milliseconds of the frozen layer, and what base and adapters take divided by them."""
    torch.manual_seed(0)
    on: dict[str, Any] = {"device": device, "dtype": DTYPES[dtype]}
    base = torch.nn.Linear(shape.in_features, shape.out_features, bias=False, **on)
    x = torch.randn(batch, tokens, shape.in_features, **on)
    blocks = shape.num_blocks, shape.in_features // shape.num_blocks
    deltas = stack_deltas(
        [torch.randn(*blocks, shape.out_features // blocks[0], **on) for _ in range(num_adapters)]
    )
    rows = [row % num_adapters for row in range(batch)]
    choice = torch.tensor(rows, device=device)

    def mixed(formulation: str) -> Tensor:
        y = F.linear(x, base.weight)
        return add_chosen_deltas(y, x, deltas, choice, inplace=True, formulation=formulation)

    candidates: dict[str, Callable[[], Any]] = {"frozen": partial(F.linear, x, base.weight)}
    candidates |= {name: partial(mixed, name) for name in FORMULATIONS}
    layer = _lora_layer(base, shape, num_adapters)
    names = [str(row) for row in rows]
    candidates["PEFT LoRA"] = lambda: layer(x, adapter_names=names)
    return ratios(candidates, device, rounds)


def _lora_layer(base: torch.nn.Linear, shape: Shape, num_adapters: int) -> torch.nn.Module:
    import peft

    wrapped = torch.nn.Sequential()
    wrapped.add_module("layer", base)
    options: dict[str, Any] = {"target_modules": ["layer"], "init_lora_weights": False}
    for number in range(num_adapters):
        config = peft.LoraConfig(r=shape.lora_rank, **options)
        peft.inject_adapter_in_model(config, wrapped, adapter_name=str(number))
    return wrapped.get_submodule("layer").to(base.weight.dtype).eval()


def measure_model(settings: Settings, rounds: int) -> dict[str, Any]:
    """Return by phase the frozen model's milliseconds and each method's ratio; and peak memory."""
    found: dict[str, Any] = {}
    with_phases = {n: phases(make(settings), settings) for n, make in METHODS.items()}
    for phase in ("prefill", "decode"):
        candidates = {name: both[phase] for name, both in with_phases.items()}
        frozen_ms, others = ratios(candidates, settings.device, rounds)
        found[phase] = {"frozen_ms": frozen_ms, "ratios": others}
    del with_phases
    found["memory_bytes"] = {
        name: run_ranks(
            "benchmarks.serving_models",
            {"method": name, "settings": asdict(settings)},
            1,
            environment={} if settings.device != "cpu" else FREED_AT_ONCE,
        )[0]["memory_bytes"]
        for name in METHODS
    }
    return found


def _layers_part(
    dtypes: Sequence[str], lengths: Sequence[int], adapters: Sequence[int], options: dict[str, Any]
) -> tuple[list[dict[str, Any]], str]:
    figures, rows = [], []
    for dtype, shape, count, tokens in itertools.product(dtypes, LAYERS, adapters, lengths):
        frozen_ms, others = measure_layer(shape, count, tokens, dtype, **options)
        case = {"dtype": dtype, **shape._asdict(), "adapters": count, "tokens": tokens}
        figures.append(case | {"frozen_ms": frozen_ms, "ratios": others})
        what = f"{shape}, {dtype}, {count} adapters, {tokens} tokens a row"
        rows.append([what, f"{frozen_ms:.2f}", *(f"{ratio:.2f}" for ratio in others.values())])
        click.echo(" ".join(rows[-1]), err=True)
    return figures, table(["layer", "frozen, ms", *figures[0]["ratios"]], rows)


def _models_part(cases: Sequence[Settings], rounds: int) -> tuple[list[dict[str, Any]], str]:
    figures, rows = [], []
    for settings in cases:
        found = measure_model(settings, rounds)
        figures.append(asdict(settings) | found)
        what = f"{settings.model}, {settings.num_layers} layers, {settings.dtype}"
        for phase in ("decode", "prefill"):
            part = found[phase]
            figures_of_phase = [f"{ratio:.2f}" for ratio in part["ratios"].values()]
            what_here = f"{what}, {settings.num_adapters} adapters, {phase}"
            rows.append([what_here, f"{part['frozen_ms']:.1f}", *figures_of_phase])
            click.echo(" ".join(rows[-1]), err=True)
        memory = [f"{size / 1e9:.2f} GB" for size in found["memory_bytes"].values()]
        rows.append([f"{what}, {settings.num_adapters} adapters, peak memory", *memory])
    return figures, table(["model", *METHODS], rows)


@click.command(context_settings={"show_default": True})
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
@click.option("--dtype", "dtypes", multiple=True, default=tuple(DTYPES))
@click.option("--adapters", multiple=True, default=(4, 16), help="Number of adapters.")
@click.option("--batch", default=32, help="Rows of a batch.")
@click.option("--prompt", default=64, help="Tokens of a prompt.")
@click.option("--model", "models", multiple=True, default=("smollm2-135m", "1b"))
@click.option("--depth", default=4, help="Decoder layers of a model.")
@click.option("--rounds", default=9, help="Rounds in which all candidates take turns.")
def main(
    device: str,
    dtypes: Sequence[str],
    adapters: Sequence[int],
    batch: int,
    prompt: int,
    models: Sequence[str],
    depth: int,
    rounds: int,
) -> None:
    """Compare mixed batches with the frozen base and PEFT LoRA's."""
    load = f"{os.getloadavg()[0]:.1f} at the start"
    options = {"device": device, "rounds": rounds, "batch": batch}
    layers, layers_table = _layers_part(dtypes, (1, prompt), adapters, options)
    cases = [
        Settings(model, depth, count, dtype, device, batch, prompt)
        for dtype, model, count in itertools.product(dtypes, models, adapters)
    ]
    found, models_table = _models_part(cases, rounds)
    load = f"{load}, {os.getloadavg()[0]:.1f} at the end"
    text = (
        f"{batch} rows, which take the adapters in turn; {torch.get_num_threads()} threads, "
        f"{rounds} rounds; load of the machine {load}. Figures are times of base and adapters "
        "together divided by the frozen base's, unless a unit is given. LoRA has the rank at which "
        "its adapters are as large.\n\n"
        f"## One layer\n\n{layers_table}\n\n"
        f"## A model\n\n{depth} decoder layers of each width, default targets, N=64, a vocabulary "
        "of 4,096; random weights. A prefill of "
        f"{prompt} tokens a row, and one more token of each row behind it. The memory is the "
        "peak of a process of its own in both, its libraries included.\n\n"
        f"{models_table}"
    )
    figures = {"load": load, "layers": layers, "models": found}
    write_report("serving", "Several adapters in one batch", figures, text, device)


if __name__ == "__main__":
    main()
