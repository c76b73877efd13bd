"""Merging against a plain copy of the same files, and against PEFT's merge in memory.

    python -m benchmarks.merge --gb 2

The checkpoint is made here, random, bf16, in files of 0.5 GB, with an adapter for its default
targets: DiaBlo's, and LoRA's of as many parameters. Each way runs in a process of its own, in turn,
as often as asked; its time is that of the work alone, without starting Python and importing, and
its peak memory is what the system says of the ended process, all of it. The files lie in the page
cache. What is written is synced to the disk, unless the row says otherwise.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

# Nothing heavy is imported here: a process starts with the peak memory of the one that made it.

METHODS = {
    "copy": "file copy",
    "copy_unsynced": "file copy, not synced",
    "ours": "diablo-ds merge",
    "peft_lora": "PEFT LoRA: merge_and_unload, save_pretrained",
    "peft_diablo": "PEFT DiaBlo: merge_and_unload, save_pretrained",
}
_MAKE = "make"
_SIZES, _RESULT = "sizes.json", "result.json"
_SHARD_SIZE = "500MB"


def _make_inputs(folder: Path, gigabytes: float, num_blocks: int) -> dict[str, Any]:
    """Save a base and its two adapters; return sizes."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from benchmarks.loading import make_checkpoint
    from diablo_ds.adapter.storage import AdapterConfig, save_adapter
    from diablo_ds.adapter.targets import DEFAULT_TARGETS, select_targets
    from diablo_ds.model.finding import fingerprint

    base = folder / "base"
    num_bytes = make_checkpoint(base, gigabytes)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    layers = select_targets(model, DEFAULT_TARGETS["llama"])
    deltas = {
        f"{name}.delta": 1e-3
        * torch.randn(num_blocks, m.in_features // num_blocks, m.out_features // num_blocks)
        for name, m in layers.items()
    }
    counts = dict.fromkeys(layers, num_blocks)
    config = AdapterConfig(str(base), fingerprint(base), counts)
    save_adapter(folder / "diablo", deltas, config)
    num_parameters = sum(delta.numel() for delta in deltas.values())
    width = sum(m.in_features + m.out_features for m in layers.values())
    lora = LoraConfig(
        r=max(1, round(num_parameters / width)),
        target_modules=list(DEFAULT_TARGETS["llama"]),
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(model, lora)
    peft_model.save_pretrained(folder / "lora")
    return {
        "checkpoint_bytes": num_bytes,
        "files": len(list(base.glob("*.safetensors"))),
        "largest_tensor_bytes": max(p.numel() * p.itemsize for p in model.parameters()),
        "adapter_parameters": num_parameters,
        "lora_rank": lora.r,
    }


# --- one way, in its own process -----------------------------------------------------------------


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _copy(folder: Path, output: Path, *, synced: bool) -> Callable[[], object]:
    def run() -> None:
        shutil.copytree(folder / "base", output)
        if synced:
            _sync(output)

    return run


def _ours(folder: Path, output: Path) -> Callable[[], object]:
    from diablo_ds.conversion.merging.merge import merge_adapter
    from diablo_ds.conversion.merging.options import MergeOptions

    options = MergeOptions(adapter=folder / "diablo", output=output)
    return lambda: merge_adapter(options)


def _peft(folder: Path, output: Path, adapter: str) -> Callable[[], object]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if adapter == "diablo":
        import diablo_ds.peft  # noqa: F401 - registers the method
    logging.disable_progress_bar()

    def run() -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
        model = PeftModel.from_pretrained(model, folder / adapter)
        model.merge_and_unload().save_pretrained(output, max_shard_size=_SHARD_SIZE)
        _sync(output)

    return run


def _run_method(method: str, folder: Path, output: Path) -> None:
    ways: dict[str, Callable[[], Callable[[], object]]] = {
        "copy": lambda: _copy(folder, output, synced=True),
        "copy_unsynced": lambda: _copy(folder, output, synced=False),
        "ours": lambda: _ours(folder, output),
        "peft_lora": lambda: _peft(folder, output, "lora"),
        "peft_diablo": lambda: _peft(folder, output, "diablo"),
    }
    run = ways[method]()
    start = time.perf_counter()
    run()
    _write_json(folder / _RESULT, time.perf_counter() - start)


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value))


def _start(method: str, folder: Path, *options: object) -> resource.struct_rusage:
    """Run a part of this program in a new process; its result is in a file of the folder."""
    words = [sys.executable, "-m", "benchmarks.merge", "--method", method, "--folder", str(folder)]
    pid = os.posix_spawn(sys.executable, [*words, *map(str, options)], os.environ)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{method} ended with status {status}")
    return usage


def _measure(method: str, folder: Path) -> dict[str, float]:
    """Run one way in a new process; return seconds and the peak of its resident memory."""
    output = folder / "output"
    os.sync()  # what others have written is not waited for inside
    start = time.perf_counter()
    usage = _start(method, folder)
    process_seconds = time.perf_counter() - start
    shutil.rmtree(output)
    return {
        "seconds": json.loads((folder / _RESULT).read_text()),
        "process_seconds": process_seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
    }


# --- the report ----------------------------------------------------------------------------------


def _describe(sizes: dict[str, Any], found: dict[str, list[dict[str, float]]], load: str) -> str:
    from benchmarks.report import table

    copies = [run["seconds"] for run in found["copy"]]
    rows = []
    for method, runs in found.items():
        seconds = [run["seconds"] for run in runs]
        ratios = [mine / copy for mine, copy in zip(seconds, copies, strict=False)]
        rows.append(
            [
                METHODS[method],
                f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})",
                f"{sizes['checkpoint_bytes'] / 1e9 / statistics.median(seconds):.2f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                f"{min(seconds) / min(copies):.2f}",
                f"{statistics.median(run['cpu_seconds'] for run in runs):.1f}",
                f"{statistics.median(run['process_seconds'] for run in runs):.1f}",
                f"{max(run['peak_bytes'] for run in runs) / 1e6:.0f}",
            ]
        )
    header = ["way", "s, median (range)", "GB/s", "time over the copy's, median (range)"]
    header += [
        "fastest over fastest",
        "CPU time of the process, s",
        "process, s",
        "peak memory, MB",
    ]
    return (
        f"A checkpoint of {sizes['checkpoint_bytes'] / 1e9:.3f} GB in bf16 in {sizes['files']} "
        f"files, its largest tensor {sizes['largest_tensor_bytes'] / 1e6:.0f} MB; an adapter of "
        f"{sizes['adapter_parameters']:,} parameters, LoRA's rank {sizes['lora_rank']}. "
        f"{len(copies)} repetitions in turn, of PEFT's ways {len(found['peft_lora'])}; a ratio is "
        "that to the copy of the same repetition. "
        f"Load of the machine (1, 5 and 15 minutes): {load}. Only CPUs: nothing here needs a GPU."
        f"\n\n{table(header, rows)}"
    )


def _load() -> str:
    return ", ".join(f"{value:.1f}" for value in os.getloadavg())


@click.command(context_settings={"show_default": True})
@click.option("--gb", default=2.2, help="Size of the checkpoint, in GB.")
@click.option("--num-blocks", default=64, help="Blocks per layer.")
@click.option("--repeats", default=5, help="How often each way runs.")
@click.option("--peft-repeats", default=2, help="How often PEFT's ways run.")
@click.option("--inputs", default="", help="Folder to keep the base and the adapters in.")
@click.option("--method", hidden=True, default="", type=click.Choice(["", _MAKE, *METHODS]))
@click.option("--folder", hidden=True, default="")
def main(
    gb: float,
    num_blocks: int,
    repeats: int,
    peft_repeats: int,
    inputs: str,
    method: str,
    folder: str,
) -> None:
    """Measure all ways of merging."""
    if method == _MAKE:
        _write_json(Path(folder) / _SIZES, _make_inputs(Path(folder), gb, num_blocks))
        return
    if method:
        _run_method(method, Path(folder), Path(folder) / "output")
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    load = _load()
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(inputs or temporary).absolute()
        made.mkdir(parents=True, exist_ok=True)
        if not (made / _SIZES).is_file():
            _start(_MAKE, made, "--gb", gb, "--num-blocks", num_blocks)
        sizes = json.loads((made / _SIZES).read_text())
        _measure("copy", made)  # fills the page cache
        for repeat in range(repeats):
            for name in METHODS:
                if not name.startswith("peft") or repeat < peft_repeats:
                    found[name].append(_measure(name, made))
    load = f"{load} before and {_load()} after"
    text = _describe(sizes, found, load)
    from benchmarks.report import write_report

    write_report("merge", "Merging", {**sizes, "load": load, "runs": found}, text, "cpu")


if __name__ == "__main__":
    main()
