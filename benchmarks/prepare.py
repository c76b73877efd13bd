"""Preparing and reading data: speed beside the tokenizer alone, memory, cost per training step.

    python -m benchmarks.prepare
    python -m benchmarks.prepare --source math=train.jsonl.gz --corpus-gb 2

Three figures: tokens per second and process, beside those of the fast tokenizer alone on the same
batches; peak memory of each process while a large generated corpus is prepared; and the time to get
a step's micro batches, beside that of the training step that they feed.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
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

from benchmarks.prepare_memory import describe_memory, measure_memory
from benchmarks.prepare_reading import describe_reading, measure_reading
from benchmarks.report import table, write_report
from diablo_ds.cli.console import clean_errors
from diablo_ds.data.corpora.chunking import Chunk, split_chunks
from diablo_ds.data.corpora.encoding import RowEncoder
from diablo_ds.data.corpora.sources import find_sources
from diablo_ds.data.default_files import SAMPLES_FOLDER
from diablo_ds.data.length_limit import LengthLimit
from diablo_ds.data.prepare.chunks import ChunkEncoder
from diablo_ds.data.prepare.decontamination import ExcludedQuestions
from diablo_ds.data.text import tokenization
from diablo_ds.data.text.encoders import Encoder
from diablo_ds.model import finding

COMMAND = str(Path(sys.executable).with_name("diablo-ds"))
ROUNDS = 5
MIN_ROWS, MAX_ROWS = 4000, 8000


class Batch(NamedTuple):
    """One call of the tokenizer."""

    texts: list[str]
    continues: bool
    parse_special: bool


class Recorder:
    """Forwards calls to an encoder and keeps their arguments, to repeat them."""

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
            encode = ChunkEncoder(row_encoder, limit, ExcludedQuestions([]), 0, Path(folder), {})
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
    """Read a source, repeatedly, until there are enough rows to time."""
    files, _ = find_sources([source], may_be_tests=True)
    chunks: list[Chunk] = []
    while sum(len(chunk.rows) for chunk in chunks) < MIN_ROWS:
        again = split_chunks(files)
        for chunk in again:
            chunks.append(replace(chunk, number=len(chunks)))
            if sum(len(chunk.rows) for chunk in chunks) >= MAX_ROWS:
                return chunks
    return chunks


def _alternate(*calls: Callable[[], object]) -> list[float]:
    """Time calls in turn, so that a slow moment of the machine affects all; return medians."""
    times: list[list[float]] = [[] for _ in calls]
    for round_number in range(ROUNDS + 1):
        for call, seconds in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if round_number:  # the first one warms up
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


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
    default = [f"math={SAMPLES_FOLDER / 'gsm8k'}"]
    default += [f"{name}={SAMPLES_FOLDER / name}" for name in ("commonsense", "code", "safety")]
    pairs = [text.split("=", 1) for text in sources or default]
    path = finding.find_tokenizer(tokenizer)
    speed = []
    for family, source in pairs:  # each in a fresh process, as a worker is
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            speed.append(pool.submit(measure_speed, family, source, path).result())
    memory = measure_memory(corpus_gb, num_proc)
    reading = measure_reading(steps)
    figures = {"speed": speed, "memory": memory, "reading": reading}
    text = "\n\n".join((_speed_text(speed), describe_memory(memory), describe_reading(reading)))
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
    with clean_errors():
        main()
