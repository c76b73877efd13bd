"""Peak memory of each process while a large generated corpus is prepared."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import table
from diablo_ds.data.default_files import SAMPLES_FOLDER

COMMAND = str(Path(sys.executable).with_name("diablo-ds"))


def measure_memory(gigabytes: float, num_proc: int) -> dict[str, Any]:
    """Prepare a generated corpus and watch the peak memory of each process."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "generated.jsonl"
        num_rows = _generate(source, int(gigabytes * 1e9))
        options = ["--source", source, "--tokenizer", "default", "--num-proc", num_proc]
        options += ["--output", Path(folder) / "out"]
        command = [COMMAND, "prepare", "auto", *map(str, options)]
        start = time.perf_counter()
        process = subprocess.Popen(command)
        peaks: dict[int, dict[str, int]] = {}
        while process.poll() is None:
            for pid in (process.pid, *_workers(process.pid)):
                for key, value in _memory(pid).items():
                    peak = peaks.setdefault(pid, {})
                    peak[key] = max(value, peak.get(key, 0))
            time.sleep(0.05)
        seconds = time.perf_counter() - start
        if process.returncode:
            raise SystemExit(process.returncode)
        manifest = json.loads((Path(folder) / "out" / "manifest.json").read_text())
        workers = [peak for pid, peak in peaks.items() if pid != process.pid]
        return {
            "corpus_gb": source.stat().st_size / 1e9,
            "rows": num_rows,
            "tokens": manifest["parts"]["train"]["tokens"],
            "num_proc": num_proc,
            "seconds": seconds,
            "main_mb": peaks[process.pid],
            "worker_mb": {k: max(worker[k] for worker in workers) for k in _MEMORY.values()},
        }


def _generate(path: Path, num_bytes: int) -> int:
    """Write different rows of random words; return their number."""
    import numpy as np

    text = "".join(file.read_text() for file in sorted(SAMPLES_FOLDER.rglob("*.jsonl")))
    words = np.array(sorted({word for word in text.split() if word.isalpha()}))
    generator = np.random.default_rng(0)
    num_rows = size = 0
    with path.open("w") as file:
        while size < num_bytes:
            lengths = generator.integers(20, 200, 2000)
            chosen = iter(words[generator.integers(0, len(words), lengths.sum() + 2000)].tolist())
            for length in lengths.tolist():
                row = {
                    "prompt": " ".join(next(chosen) for _ in range(length // 4)),
                    "completion": " ".join(next(chosen) for _ in range(length - length // 4)),
                }
                size += file.write(json.dumps(row) + "\n")
                num_rows += 1
    return num_rows


def _workers(pid: int) -> list[int]:
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


_MEMORY = {"VmHWM": "resident", "RssAnon": "without_mapped_files"}


def _memory(pid: int) -> dict[str, int]:
    """Return resident megabytes: the peak, and the part that is not pages of files."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        lines = []
    values = {line.split(":")[0]: line.split(":")[1] for line in lines}
    return {
        name: int(values[key].split()[0]) * 1024 // 1_000_000
        for key, name in _MEMORY.items()
        if key in values
    }


def describe_memory(memory: dict[str, Any]) -> str:
    """Return the figures as a part of the report."""
    rows = [
        (name, *(f"{memory[key][which]:,} MB" for which in _MEMORY.values()))
        for name, key in (("main", "main_mb"), ("largest worker", "worker_mb"))
    ]
    return (
        f"A generated corpus of {memory['corpus_gb']:.2f} GB ({memory['rows']:,} rows, "
        f"{memory['tokens']:,} tokens) was prepared by {memory['num_proc']} worker processes in "
        f"{memory['seconds']:.0f} s. Peak memory of each process:\n\n"
        + table(("process", "resident", "of it not pages of mapped files"), rows)
    )
