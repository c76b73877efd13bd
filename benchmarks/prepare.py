"""Preparing and reading data: speed against the tokenizer alone, memory, cost per training step.

    python -m benchmarks.prepare
    python -m benchmarks.prepare --source math=train.jsonl.gz --corpus-gb 2

Three figures: tokens per second and process beside those of the fast tokenizer called alone on the
same batches; peak memory of each process while a large generated corpus is prepared; and the time
to get a step's micro batches beside the time of the training step they feed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread for the baseline, as for us

import click
import torch

from benchmarks.report import table, write_report
from diablo_ds.adapter.attach import attach
from diablo_ds.adapter.targets import resolve_num_blocks, select_targets
from diablo_ds.config.run import RunConfig
from diablo_ds.data.batches import BatchSource, Dealer
from diablo_ds.data.corpora.encoding import RowEncoder
from diablo_ds.data.corpora.sources import find_sources
from diablo_ds.data.length_limit import LengthLimit
from diablo_ds.data.loading import SAMPLES_FOLDER, load_data
from diablo_ds.data.prepare.chunks import Chunk, ChunkEncoder, split_chunks
from diablo_ds.data.prepare.decontamination import ExcludedQuestions
from diablo_ds.data.text import tokenization
from diablo_ds.data.text.encoders import Encoder
from diablo_ds.model import finding
from diablo_ds.model.loss import causal_lm_loss

ROOT = Path(__file__).parents[1]
SAMPLES = SAMPLES_FOLDER
COMMAND = str(Path(sys.executable).with_name("diablo-ds"))
ROUNDS = 5
MIN_ROWS, MAX_ROWS = 4000, 8000


class Batch(NamedTuple):
    """One call of the tokenizer."""

    texts: list[str]
    continues: bool
    parse_special: bool


class Recorder:
    """Passes calls on to an encoder and keeps their arguments, to repeat them."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.vocab_size = encoder.vocab_size
        self.control = encoder.control
        self.unknown_id = encoder.unknown_id
        self.batches: list[Batch] = []

    def encode(self, texts: list[str], *, continues: bool, parse_special: bool) -> list[list[int]]:
        """Encode, and keep the texts."""
        self.batches.append(Batch(texts, continues, parse_special))
        return self.encoder.encode(texts, continues=continues, parse_special=parse_special)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens."""
        return self.encoder.decode(ids)


# --- speed ---------------------------------------------------------------------------------------


def measure_speed(family: str, source: str, tokenizer_path: Path) -> dict[str, Any]:
    """Time raw rows to chunk files, and the tokenizer alone on the same texts."""
    tokenizer = tokenization.load_tokenizer(tokenizer_path)
    chunks = _chunks(source)
    recorder = Recorder(tokenizer.encoder)
    limit = LengthLimit(2048)
    row_encoder = RowEncoder(family, "auto", tokenizer)
    recording = RowEncoder(family, "auto", replace(tokenizer, encoder=recorder))
    results = [result for chunk in chunks for result in recording.encode(chunk.rows)]

    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer_path)

    def backend_alone() -> int:
        backend = loaded.backend_tokenizer
        num_tokens = 0
        for batch in recorder.batches:
            backend.encode_special_tokens = not batch.parse_special
            encodings = backend.encode_batch_fast(batch.texts, add_special_tokens=False)
            num_tokens += sum(len(encoding.ids) for encoding in encodings)
        return num_tokens

    def transformers_alone() -> int:
        calls = (loaded(batch.texts, add_special_tokens=False) for batch in recorder.batches)
        return sum(len(ids) for call in calls for ids in call["input_ids"])

    def ours() -> int:
        with tempfile.TemporaryDirectory() as folder:
            encode = ChunkEncoder(row_encoder, limit, ExcludedQuestions([]), 0, Path(folder))
            for chunk in chunks:
                encode(chunk)
        return 0

    seconds = _alternate(backend_alone, transformers_alone, ours)
    num_tokens = backend_alone()
    return {
        "family": family,
        "rows": len(results),
        "tokens": num_tokens,
        "backend_tokens_per_s": num_tokens / seconds[0],
        "transformers_tokens_per_s": num_tokens / seconds[1],
        "ours_tokens_per_s": num_tokens / seconds[2],
        "ours_over_backend": seconds[0] / seconds[2],
        "ours_over_transformers": seconds[1] / seconds[2],
    }


def _chunks(source: str) -> list[Chunk]:
    """Read a source, over and over until there are enough rows to time."""
    files, _ = find_sources([source], may_be_tests=True)
    chunks: list[Chunk] = []
    while sum(len(chunk.rows) for chunk in chunks) < MIN_ROWS:
        again = split_chunks(files, 0, lambda _: None)
        for chunk in again:
            chunks.append(chunk._replace(number=len(chunks)))
            if sum(len(chunk.rows) for chunk in chunks) >= MAX_ROWS:
                return chunks
    return chunks


def _alternate(*calls: Callable[[], object]) -> list[float]:
    """Time calls in turn, so that a slow moment of the machine hits all; return medians."""
    times: list[list[float]] = [[] for _ in calls]
    for round_number in range(ROUNDS + 1):
        for call, seconds in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if round_number:  # the first one warms up
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


# --- memory --------------------------------------------------------------------------------------


def measure_memory(gigabytes: float, num_proc: int) -> dict[str, Any]:
    """Prepare a generated corpus and watch the peak memory of each process."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "generated.jsonl"
        num_rows = _generate(source, int(gigabytes * 1e9))
        command = [
            *(COMMAND, "prepare", "jsonl"),
            *("--source", str(source), "--tokenizer", "default", "--num-proc", str(num_proc)),
            *("--output", str(Path(folder) / "out")),
        ]
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
    """Write rows of random words, no two alike."""
    import numpy as np

    text = "".join(file.read_text() for file in sorted(SAMPLES.rglob("*.jsonl")))
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
    """Return resident megabytes: the peak, and what is not a file's pages."""
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


# --- reading -------------------------------------------------------------------------------------


def measure_reading(steps: int) -> list[dict[str, Any]]:
    """Time getting a step's micro batches, and the training step they feed."""
    from diablo_ds.zero.loading import load_base

    folder = finding.find_tokenizer("default")
    tokenizer = tokenization.load_tokenizer(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_base(folder, "bf16").to(device).train()
    layers = select_targets(model, (), model_type=model.config.model_type)
    deltas = attach(model, resolve_num_blocks(layers, "64"))
    optimizer = torch.optim.AdamW(deltas.values(), lr=1e-3)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary) / "out"
        options = ["--source", SAMPLES / "gsm8k" / "train.jsonl", "--tokenizer", "default"]
        command = [COMMAND, "prepare", "math", "--output", output, *options]
        subprocess.run([*map(str, command)], check=True)
        for packing in (False, True):
            config = RunConfig(
                data=str(output),
                packing=packing,
                micro_batch=4,
                global_batch=8,
                heldout_share=0.0,
                max_steps=steps + 1,
            )
            examples, _ = load_data(config, tokenizer, model.config.vocab_size)
            source = BatchSource(examples, config, Dealer(config, tokenizer.pad_id, 0, 1))
            list(source.step(0))  # makes the order of the pass
            reading, training = [], []
            for step in range(1, steps + 1):
                start = time.perf_counter()
                micro_batches = list(source.step(step))
                read = time.perf_counter()
                for batch in micro_batches:
                    logits = model(**batch.model_inputs()).logits
                    causal_lm_loss(logits, batch.labels).backward()
                optimizer.step()
                optimizer.zero_grad()
                if device == "cuda":
                    torch.cuda.synchronize()
                reading.append(read - start)
                training.append(time.perf_counter() - read)
            read_s, train_s = statistics.median(reading), statistics.median(training)
            rows.append(
                {
                    "packing": packing,
                    "read_ms": 1e3 * read_s,
                    "train_ms": 1e3 * train_s,
                    "share": read_s / train_s,
                }
            )
    return rows


# --- the report ----------------------------------------------------------------------------------


@click.command()
@click.option("--source", "sources", multiple=True, help="FAMILY=PATH; the samples by default.")
@click.option("--tokenizer", default="default", show_default=True)
@click.option("--corpus-gb", default=0.2, show_default=True, help="Size of the generated corpus.")
@click.option("--num-proc", default=2, show_default=True)
@click.option("--steps", default=5, show_default=True, help="Training steps to time.")
def main(
    sources: Sequence[str], tokenizer: str, corpus_gb: float, num_proc: int, steps: int
) -> None:
    """Measure, and write the report."""
    default = [f"math={SAMPLES / 'gsm8k'}"]
    default += [f"{name}={SAMPLES / name}" for name in ("commonsense", "code", "safety")]
    pairs = [text.split("=", 1) for text in sources or default]
    path = finding.find_tokenizer(tokenizer)
    speed = []
    for family, source in pairs:  # each in a fresh process, as a worker is
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            speed.append(pool.submit(measure_speed, family, source, path).result())
    memory = measure_memory(corpus_gb, num_proc)
    reading = measure_reading(steps)
    figures = {"speed": speed, "memory": memory, "reading": reading}
    text = "\n\n".join((_speed_text(speed), _memory_text(memory), _reading_text(reading)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report = write_report("prepare", "Preparing and reading data", figures, text, device)
    _plot(speed, report.with_suffix(".png"))


def _speed_text(speed: Sequence[dict[str, Any]]) -> str:
    speeds, ratios = ("backend alone", "transformers"), ("ours / backend", "ours / transformers")
    header = ("family", "rows", *speeds, "ours", *ratios)
    rows = [
        (
            s["family"],
            f"{s['rows']:,}",
            *(f"{s[f'{who}_tokens_per_s']:,.0f}" for who in ("backend", "transformers", "ours")),
            *(f"{s[f'ours_over_{who}']:.2f}" for who in ("backend", "transformers")),
        )
        for s in speed
    ]
    return (
        "Tokens per second in one process and one thread, on the same batches of texts. *Backend "
        "alone* is `encode_batch_fast` of the Rust tokenizer with its ids read; *transformers* is "
        "the call of the Hugging Face tokenizer; *ours* is everything from raw lines to the file "
        f"of a chunk: JSON, fields, template, masks, digests, disk. Median of {ROUNDS} rounds.\n\n"
        + table(header, rows)
    )


def _memory_text(memory: dict[str, Any]) -> str:
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


def _reading_text(reading: Sequence[dict[str, Any]]) -> str:
    rows = [
        (
            "packed" if r["packing"] else "one example a row",
            f"{r['read_ms']:.2f} ms",
            f"{r['train_ms']:,.0f} ms",
            f"{r['share']:.3%}",
        )
        for r in reading
    ]
    return (
        "Getting the micro batches of a step (8 sequences of up to 512 tokens) from a prepared "
        "dataset, and the step they feed: SmolLM2-135M in bf16, 64 blocks, forward, backward, "
        "AdamW.\n\n" + table(("batches", "reading", "training", "reading / training"), rows)
    )


def _plot(speed: Sequence[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    for offset, who in enumerate(("backend", "transformers", "ours")):
        places = [index + 0.27 * (offset - 1) for index in range(len(speed))]
        axes.bar(places, [s[f"{who}_tokens_per_s"] / 1e3 for s in speed], 0.25, label=who)
    axes.set_xticks(range(len(speed)), [s["family"] for s in speed])
    axes.set_ylabel("thousand tokens / s, one process")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
