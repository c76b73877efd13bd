"""Time to get a step's micro batches from a prepared dataset, beside the step that they feed."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.prepare_memory import COMMAND
from benchmarks.report import table
from diablo_ds.adapter.attach import attach
from diablo_ds.adapter.targets import resolve_num_blocks, select_targets
from diablo_ds.config.run import RunConfig
from diablo_ds.data.batch_source import BatchSource
from diablo_ds.data.batches import Dealer
from diablo_ds.data.default_files import SAMPLES_FOLDER
from diablo_ds.data.loading import load_data
from diablo_ds.data.text import tokenization
from diablo_ds.model import finding
from diablo_ds.model.loss import causal_lm_loss


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
        options = ["--source", SAMPLES_FOLDER / "gsm8k" / "train.jsonl", "--tokenizer", "default"]
        command = [COMMAND, "prepare", "math", "--output", output, *options]
        subprocess.run([*map(str, command)], check=True)
        for packing in (False, True):
            run_config = RunConfig(
                data=(str(output),),
                packing=packing,
                micro_batch=4,
                global_batch=8,
                heldout_share=0.0,
                max_steps=steps + 1,
            )
            examples, _ = load_data(run_config, tokenizer, model.config.vocab_size)
            source = BatchSource(examples, run_config, Dealer(run_config, tokenizer.pad_id, 0, 1))
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


def describe_reading(reading: Sequence[dict[str, Any]]) -> str:
    """Return the figures as a part of the report."""
    rows = [
        (
            "packed" if r["packing"] else "one example per row",
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
