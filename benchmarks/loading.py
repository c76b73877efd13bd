"""Start-up under ZeRO-3: bytes read and peak memory of each rank, beside `from_pretrained`.

    python -m benchmarks.loading --gb 2

The checkpoint is made here, random, in files of 0.5 GB. The baseline is transformers' own loading
under `HfDeepSpeedConfig`. The files are not in the page cache at first. The system counts two
things for a process: the bytes that its calls returned, and those fetched from the disk for it,
which include files that are mapped and what is read ahead.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.plots import plot_bars
from benchmarks.random_llama import save_random_llama
from benchmarks.ranks import FREED_AT_ONCE, peak_memory, rank_main, reset_peak_memory, run_ranks
from benchmarks.report import table, write_report

METHODS = {"ours": "diablo_ds", "from_pretrained": "from_pretrained under HfDeepSpeedConfig"}


def make_checkpoint(folder: Path, gigabytes: float) -> int:
    """Save a random bf16 Llama of about that size and return its bytes."""
    hidden, vocabulary = 2048, 32_000
    per_layer = 4 * hidden**2 + 3 * hidden * 5632
    num_layers = max(1, round((gigabytes * 5e8 - 2 * vocabulary * hidden) / per_layer))
    save_random_llama(
        folder,
        torch.bfloat16,
        max_shard_size="500MB",
        hidden_size=hidden,
        intermediate_size=5632,
        num_hidden_layers=num_layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
    )
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def forget(folder: Path) -> None:
    """Drop a folder's files from the page cache."""
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_read() -> tuple[int, int]:
    """Return the bytes this process has read by system calls, and from the disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    counts = dict(line.split(": ") for line in lines)
    return int(counts["rchar"]), int(counts["read_bytes"])


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Load the model on this rank."""
    from diablo_ds.config.run import RunConfig
    from diablo_ds.model.architecture import BaseSizes
    from diablo_ds.model.base import read_base
    from diablo_ds.model.pretrained import from_pretrained
    from diablo_ds.ranks.distributed import world_size
    from diablo_ds.zero.ds_config import complete_ds_config, load_ds_config
    from diablo_ds.zero.joining import init_process_group
    from diablo_ds.zero.loading import load_weights

    init_process_group()
    file = Path(__file__).parents[1] / "ds_configs" / "zero3.json"
    run_config = RunConfig(micro_batch=1, global_batch=world_size(), precision="bf16")
    sizes = BaseSizes(hidden_size=2048, total=0, layer=0, head=0)
    complete = complete_ds_config(
        load_ds_config(file), run_config, world_size=world_size(), base=sizes, source=str(file)
    )
    base = read_base(Path(settings["folder"]))
    torch.distributed.barrier()
    reset_peak_memory()
    before, before_read, start = peak_memory(), bytes_read(), time.perf_counter()
    if settings["method"] == "ours":
        model = load_weights(base, "bf16", complete)
    else:
        model = from_pretrained(base.model_config, base.folder, torch.bfloat16, complete)
    torch.distributed.barrier()
    seconds = time.perf_counter() - start
    by_calls, from_disk = (
        after - was for after, was in zip(bytes_read(), before_read, strict=True)
    )
    shard = sum(p.ds_tensor.numel() * p.ds_tensor.element_size() for p in model.parameters())
    return {
        "seconds": seconds,
        "by_calls": by_calls,
        "from_disk": from_disk,
        "peak_bytes": peak_memory() - before,
        "shard_bytes": shard,
        "largest_tensor_bytes": max(p.ds_numel * 2 for p in model.parameters()),
    }


@click.command(context_settings={"show_default": True})
@click.option("--gb", default=2.0, help="Size of the checkpoint, in GB.")
@click.option("--ranks", default=2)
def main(gb: float, ranks: int) -> None:
    """Measure both ways of loading."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        total = make_checkpoint(Path(folder), gb)
        for method in METHODS:
            settings = {"method": method, "folder": folder}
            forget(Path(folder))
            found[method] = run_ranks(
                "benchmarks.loading", settings, ranks, environment=FREED_AT_ONCE
            )
    rows = [
        [
            METHODS[method],
            str(rank),
            f"{r['by_calls'] / 1e9:.3f}",
            f"{r['from_disk'] / 1e9:.3f}",
            f"{max(r['by_calls'], 0 if method == 'ours' else r['from_disk']) / total * ranks:.3f}",
            f"{r['peak_bytes'] / 1e9:.2f}",
            f"{r['peak_bytes'] / (r['shard_bytes'] + r['largest_tensor_bytes']):.2f}",
            f"{r['seconds']:.1f}",
        ]
        for method, ranks_found in found.items()
        for rank, r in enumerate(ranks_found)
    ]
    one = found["ours"][0]
    text = (
        f"A checkpoint of {total / 1e9:.3f} GB in bf16, {ranks} ranks; a rank's shards take "
        f"{one['shard_bytes'] / 1e9:.3f} GB, the largest tensor "
        f"{one['largest_tensor_bytes'] / 1e9:.3f} GB. Used are "
        "ours by calls, since it maps nothing, and the other's from the disk. Peak memory is what "
        "the process grew by.\n\n"
        + table(
            [
                "loading",
                "rank",
                "by calls, GB",
                "from disk, GB",
                "used / (checkpoint / ranks)",
                "peak, GB",
                "peak / (shards + one tensor)",
                "s",
            ],
            rows,
        )
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = write_report(
        "loading", "Loading under ZeRO-3", {"checkpoint_bytes": total, **found}, text, device
    )
    plot_bars(
        path.with_suffix(".png"),
        [f"{row[0].split()[0]}, rank {row[1]}" for row in rows],
        {
            "read (GB)": [max(float(r[2]), float(r[3])) for r in rows],
            "peak memory (GB)": [float(r[5]) for r in rows],
        },
        "GB",
    )


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1].startswith("{"):
        rank_main(measure)
    else:
        main()
