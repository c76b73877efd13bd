"""How fast questions are answered: the engine, one question at a time, lm-evaluation-harness.

    python -m benchmarks.evaluate --output FOLDER

Choices of commonsense tasks are scored, and answers to GSM8K generated, with the same weights in
fp32, the same questions and the same threads, from questions to answers: each method tokenises the
prompts itself. One process for each method, which takes turns with the others; its peak memory is
that of the process, libraries included. The harness first looks for its best batch size, in a
process of its own. One question at a time is slow: in each round it answers its part of the
questions, the others answer all. Of the time per question the median over rounds is taken.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.evaluate_methods import HARNESS, METHODS, SINGLE, Part, part_fields, serve
from benchmarks.evaluate_report import evaluation_report
from benchmarks.harness import require_harness
from benchmarks.report import machine
from diablo_ds.cli.console import clean_errors
from diablo_ds.evaluation.items import CHOICE, GENERATION
from diablo_ds.evaluation.task_data import parse_data_paths
from diablo_ds.files.atomic import write_text
from diablo_ds.model.finding import find_model

BATCH_SIZES = (1, 4, 8, 16, 32)
"""Of lm-evaluation-harness, of which the best is taken."""
SEARCHED = 32
"""Questions that it is looked for with, at most."""
WARM_UP = 2
"""Questions that each process answers before it is measured."""


class Worker:
    """A process that answers by one method."""

    def __init__(self, method: str, folder: Path, threads: int, parts: Sequence[Part]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, method, str(folder), threads, part_fields(list(parts)))
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._connection.recv()

    def measure(self, part: int, places: Sequence[int], batch_size: int) -> dict[str, Any]:
        """Answer some questions of a part."""
        self._connection.send((part, list(places), batch_size))
        reply: dict[str, Any] = self._connection.recv()
        return reply

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(30)
        self._process.kill()


@contextlib.contextmanager
def workers(
    names: Sequence[str], folder: Path, threads: int, parts: Sequence[Part]
) -> Iterator[dict[str, Worker]]:
    """Have a process for each method inside the block."""
    with contextlib.ExitStack() as stack:
        running = {}
        for name in names:
            running[name] = Worker(name, folder, threads, parts)
            stack.callback(running[name].close)
        yield running


class Lines:
    """The file of measurements, one JSON object a line, each written at once."""

    def __init__(self, path: Path) -> None:
        self.path, self.all = path, list[dict[str, Any]]()
        write_text(path, "")

    def add(self, **values: Any) -> None:
        """Append a measurement."""
        self.all.append(values | {"load": round(os.getloadavg()[0], 1)})
        with self.path.open("a") as file:
            file.write(json.dumps(self.all[-1]) + "\n")
        shown = {key: value for key, value in values.items() if key != "answers"}
        click.echo(json.dumps(shown), err=True)


def find_batch_sizes(
    worker: Worker, parts: Sequence[Part], sizes: Sequence[int], lines: Lines
) -> list[int]:
    """Return the batch size at which the harness answers each part the fastest."""
    best = []
    for number, part in enumerate(parts):
        worker.measure(number, range(min(WARM_UP, part.count)), 1)
        seconds = {}
        for size in sizes:
            places = range(min(SEARCHED, part.count))
            reply = worker.measure(number, places, size)
            seconds[size] = reply["seconds"]
            del reply["answers"]
            lines.add(
                task=part.task,
                kind=part.kind,
                method=HARNESS,
                step="search",
                batch_size=size,
                questions=len(places),
                **reply,
            )
        best.append(min(seconds, key=lambda size: seconds[size]))
    return best


def measure_parts(
    running: dict[str, Worker],
    parts: Sequence[Part],
    sizes: Sequence[int],
    rounds: int,
    lines: Lines,
) -> None:
    """Let the methods take turns on each part."""
    for number, part in enumerate(parts):
        for worker in running.values():
            worker.measure(number, range(min(WARM_UP, part.count)), sizes[number])
        for turn in range(rounds):
            for name, worker in running.items():
                places = range(turn, part.count, rounds) if name == SINGLE else range(part.count)
                size = sizes[number] if name == HARNESS else 0
                reply = worker.measure(number, places, size)
                lines.add(
                    task=part.task,
                    kind=part.kind,
                    method=name,
                    step="measured",
                    round=turn,
                    batch_size=1 if name == SINGLE else size,
                    places=list(places),
                    questions=len(places),
                    **reply,
                )


def _parse_counts(texts: Sequence[str]) -> dict[str, int]:
    """Return the number of questions of each task, from texts TASK=N."""
    pairs = [text.partition("=") for text in texts]
    for task, _, count in pairs:
        if not task or not count.isdecimal() or not int(count):
            raise click.UsageError(f"a part must be TASK=N; got {task}={count}")
    return {task: int(count) for task, _, count in pairs}


def parts_of(
    score: Sequence[str],
    generate: Sequence[str],
    data: Sequence[str],
    max_new_tokens: int,
    template: str,
) -> list[Part]:
    """Return the parts of a measurement.

    Args:
        score: tasks whose choices are scored, and how many questions, as TASK=N.
        generate: tasks whose answers are generated, and how many questions, as TASK=N.
        data: TASK=PATH of those whose data are not the public corpora's.
        max_new_tokens: of a generated answer.
        template: of the prompts that are answered by generation.

    Raises:
        UserError: if there are no such questions.
    """
    scored, generated = _parse_counts(score), _parse_counts(generate)
    paths = parse_data_paths(data, (*scored, *generated), "--data")
    parts = [
        *(Part(n, CHOICE, count, 0, str(paths.get(n, ""))) for n, count in scored.items()),
        *(
            Part(n, GENERATION, count, max_new_tokens, str(paths.get(n, "")), template)
            for n, count in generated.items()
        ),
    ]
    for part in parts:
        part.read()
    return parts


@click.command(context_settings={"show_default": True})
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder of measurements.jsonl and report.md.",
)
@click.option(
    "--score",
    multiple=True,
    metavar="TASK=N",
    default=("boolq=96", "openbookqa=64", "hellaswag=24"),
    help="Commonsense tasks whose choices are scored, and how many questions.",
)
@click.option("--generate", multiple=True, metavar="TASK=N", default=("gsm8k=32",))
@click.option("--max-new-tokens", default=128, help="Of a generated answer.")
@click.option(
    "--template",
    type=click.Choice(["alpaca", "gsm8k", "plain"]),
    default="alpaca",
    help="Of prompts that are answered by generation.",
)
@click.option("--data", multiple=True, metavar="TASK=PATH", help="Instead of the public corpora.")
@click.option("--model", default="default", help="Folder of the base model, or default.")
@click.option("--batch-size", "sizes", multiple=True, default=BATCH_SIZES, help="Of the harness.")
@click.option("--rounds", default=3, help="Turns of each method.")
@click.option("--threads", default=len(os.sched_getaffinity(0)))
def main(
    output: Path,
    score: Sequence[str],
    generate: Sequence[str],
    max_new_tokens: int,
    template: str,
    data: Sequence[str],
    model: str,
    sizes: Sequence[int],
    rounds: int,
    threads: int,
) -> None:
    """Compare the rates of three methods on the same questions."""
    require_harness()
    parts = parts_of(score, generate, data, max_new_tokens, template)
    folder = find_model(model)
    output.mkdir(parents=True, exist_ok=True)
    lines = Lines(output / "measurements.jsonl")
    with workers([HARNESS], folder, threads, parts) as running:
        best = find_batch_sizes(running[HARNESS], parts, sizes, lines)
    with workers(list(METHODS), folder, threads, parts) as running:
        measure_parts(running, parts, best, rounds, lines)
    where = machine() | {"threads": threads, "model": folder.name}
    page = evaluation_report(lines.all, parts, where, folder)
    write_text(output / "report.md", page)
    click.echo(page)


if __name__ == "__main__":
    with clean_errors():
        main()
