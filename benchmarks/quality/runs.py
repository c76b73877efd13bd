"""One spec, one real training, one record.

Started as `python -m benchmarks.quality.runs '{"commonsense": FOLDER, ...}'` it reads a spec per
line of its input, and writes JSON lines: ``{"progress": {...}}`` during a training,
``{"record": {...}}`` at its end, and ``{"error": "..."}`` for a spec that cannot be trained.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import gc
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO, cast

import torch

from benchmarks.quality.data import Sources
from benchmarks.quality.generated import generated_answers
from benchmarks.quality.methods import Trainable, prepare
from benchmarks.quality.scoring import Scores, score
from benchmarks.quality.shared import Setup, Shared
from benchmarks.quality.spec import Spec
from benchmarks.quality.without_masters import EngineWithoutMasters
from benchmarks.ranks import peak_memory, reset_peak_memory
from benchmarks.report import machine
from diablo_ds.config.schedule import learning_rate
from diablo_ds.errors import NonFiniteError, UserError
from diablo_ds.model.loss_head import install_loss_head
from diablo_ds.ranks.source_commit import find_commit
from diablo_ds.training.step import train_step
from diablo_ds.zero.engine import Engine
from diablo_ds.zero.joining import init_process_group
from diablo_ds.zero.start import start_engine

MICRO_BATCH_TOKENS = {"cpu": 512, "cuda": 32768}
"""Tokens of a forward, padding included, by device type."""
OnStep = Callable[[int, int, float], object]
"""Called after a step with its number, that of all steps, and the loss."""


class Worker:
    """Trains one spec after the other; weights, data and what the base scores are kept.

    Args:
        sources: where the data come from.
        num_threads: PyTorch's, on a CPU; 0 for all cores.
        micro_batch_tokens: tokens of a forward, padding included; 0 for `MICRO_BATCH_TOKENS`.
    """

    def __init__(
        self, sources: Sources, *, num_threads: int = 0, micro_batch_tokens: int = 0
    ) -> None:
        device = init_process_group()
        if num_threads:
            torch.set_num_threads(num_threads)
        micro_batch_tokens = micro_batch_tokens or MICRO_BATCH_TOKENS[device.type]
        self.shared = Shared(sources, device, micro_batch_tokens)

    def train(self, spec: Spec, on_step: OnStep = lambda *_: None) -> dict[str, Any]:
        """Train a spec and return its record: JSON values, NaN and infinity as None.

        Args:
            spec: the spec.
            on_step: see `OnStep`.

        Raises:
            UserError: if the spec does not fit the model or the data.
        """
        setup = self.shared.setup(spec)
        before, answers_before = self._before(spec, setup)
        reset_peak_memory()
        watch = _Watch()
        torch.manual_seed(spec.seed)
        trainable = prepare(spec, self.shared.new_model(spec, setup), setup.design)
        engine = _start_engine(spec, trainable, setup)
        watch.note("build")
        progress = _take_steps(engine, setup, on_step)
        watch.note("train")
        after = self._score(trainable.model, spec, setup)
        watch.note("heldout")
        answers = self._answers(trainable.model, spec, setup, after)
        watch.note("questions")
        record = {
            "key": spec.key(),
            "spec": spec.to_json(),
            **progress,
            "trainable": trainable.size,
            "lora_rank": trainable.lora_rank,
            "num_steps": spec.num_steps,
            "delta_path": setup.design.run_config.delta_path if spec.method == "diablo" else None,
            "heldout_before": _known(before.loss),
            "heldout": _known(after.loss),
            "heldout_targets": after.num_targets,
            "heldout_examples": spec.num_held_out,
            "heldout_nats": [_known(value, 5) for value in after.nats],
            "answers_before": answers_before,
            "answers": answers,
            "accuracy_before": _mean(answers_before),
            "accuracy": _mean(answers),
            "question_tasks": _question_tasks(spec, setup),
            "seconds": watch.seconds(),
            "tokens_per_s": progress["tokens"] / watch.of("train"),
            "peak_memory_bytes": peak_memory(),
            "micro_batch_tokens": self.shared.micro_batch_tokens,
            "num_threads": torch.get_num_threads(),
            "data": {"digest": setup.study.parts.digest, **setup.study.parts.counts},
            **self._where,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        engine.close()
        del engine, trainable
        gc.collect()
        return record

    @cached_property
    def _where(self) -> dict[str, Any]:
        found, commit = machine(), find_commit()
        return {
            "machine": {"hardware": found["hardware"], "device": self.shared.device.type},
            "versions": {"python": found["python"], **found["versions"]},
            "commit": commit.commit,
            "commit_is_modified": commit.is_modified,
        }

    def _before(self, spec: Spec, setup: Setup) -> tuple[Scores, list[int] | None]:
        """Return what the base scores; the same for all specs that ask the same of it."""

        def ask() -> tuple[Scores, list[int] | None]:
            model = self.shared.new_model(spec, setup)
            install_loss_head(model, setup.design.shapes)
            scores = self._score(model, spec, setup)
            return scores, self._answers(model, spec, setup, scores)

        asked = (spec.data, spec.max_length, spec.num_held_out, spec.num_questions)
        found: tuple[Scores, list[int] | None] = self.shared.keep(
            ("before", spec.model, spec.precision, *asked), ask
        )
        return found

    def _score(self, model: Any, spec: Spec, setup: Setup) -> Scores:
        num_choices = spec.num_questions if spec.data == "commonsense" else 0
        return score(
            model,
            setup.study.heldout,
            [choice for choice in setup.study.choices[:num_choices] if choice is not None],
            count=spec.num_held_out,
            tokens=self.shared.micro_batch_tokens,
            pad_id=setup.pad_id,
            mask=setup.separation.mask,
            equal_lengths=setup.separation.equal_lengths,
        )

    def _answers(self, model: Any, spec: Spec, setup: Setup, scores: Scores) -> list[int] | None:
        """Return for each question whether it was answered correctly; None where none is asked."""
        if not spec.num_questions:
            return None
        if spec.data == "commonsense":
            return scores.answers
        folder = Path(self.shared.sources.gsm8k)
        return generated_answers(
            model, setup.tokenizer, setup.base, setup.study, folder, spec.num_questions
        )


def _start_engine(spec: Spec, trainable: Trainable, setup: Setup) -> Engine:
    run_config = setup.design.run_config
    if spec.master == "none":
        plain = EngineWithoutMasters(trainable.model, trainable.parameters, run_config)
        return cast("Engine", plain)
    ds_config = copy.deepcopy(setup.design.ds_config)
    return start_engine(trainable.model, trainable.parameters, run_config, ds_config)


def _take_steps(engine: Engine, setup: Setup, on_step: OnStep) -> dict[str, Any]:
    """Take all steps, or those until a number is not finite; return a part of the record."""
    batches = setup.batches()
    num_steps = batches.num_steps
    curve: list[tuple[int, float]] = []
    norms: list[float] = []
    tokens, diverged_step = 0, None
    for step in range(num_steps):
        rate = learning_rate(setup.design.run_config, step, num_steps)
        try:
            result = train_step(engine, list(batches.step(step)), rate)
        except NonFiniteError:
            diverged_step = step + 1
            break
        curve.append((step + 1, result.loss))
        norms.append(result.grad_norm)
        tokens += result.num_tokens
        on_step(step + 1, num_steps, result.loss)
    return {
        "status": "done" if diverged_step is None else "diverged",
        "diverged_step": diverged_step,
        "curve": curve,
        "grad_norms": norms,
        "tokens": tokens,
    }


def _question_tasks(spec: Spec, setup: Setup) -> list[str] | None:
    """Return the task of each question."""
    if spec.data == "commonsense":
        return list(setup.study.tasks[: spec.num_questions]) or None
    return [spec.data] * spec.num_questions or None


class _Watch:
    """Seconds of the parts of a training, which begins now."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def note(self, name: str) -> None:
        """End a part."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._seconds[name] = now - self._last
        self._last = now

    def of(self, name: str) -> float:
        """Return the seconds of a part."""
        return self._seconds[name]

    def seconds(self) -> dict[str, float]:
        """Return the rounded seconds of each part and of all."""
        total = sum(self._seconds.values())
        return {name: round(value, 3) for name, value in {**self._seconds, "total": total}.items()}


def _known(value: float, digits: int | None = None) -> float | None:
    if not math.isfinite(value):
        return None
    return value if digits is None else round(value, digits)


def _mean(values: list[int] | None) -> float | None:
    return sum(values) / len(values) if values else None


# --- as a process --------------------------------------------------------------------------------


def serve(lines: Iterable[str], output: TextIO, settings: dict[str, Any]) -> None:
    """Train a spec per line, and write progress, records and errors as JSON lines.

    Args:
        lines: each a spec in JSON.
        output: what is written to.
        settings: fields of `Sources` and arguments of `Worker`.
    """

    def write(value: dict[str, Any]) -> None:
        output.write(json.dumps(value) + "\n")
        output.flush()

    def tell(step: int, num_steps: int, loss: float) -> None:
        write({"progress": {"step": step, "num_steps": num_steps, "loss": loss}})

    options = {n: settings.pop(n) for n in ("num_threads", "micro_batch_tokens") if n in settings}
    worker = Worker(Sources(**settings), **options)
    for line in lines:
        try:
            record = worker.train(Spec.from_json(json.loads(line)), tell)
        except UserError as error:
            write({"error": str(error)})
        else:
            write({"record": record})


def main() -> None:
    """Serve on the process's own input and output; what libraries print goes to its errors."""
    with os.fdopen(os.dup(1), "w") as output:
        os.dup2(2, 1)
        with contextlib.suppress(KeyboardInterrupt):
            serve(sys.stdin, output, json.loads(sys.argv[1]))
        output.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo now and then aborts while the interpreter shuts down


if __name__ == "__main__":
    main()
