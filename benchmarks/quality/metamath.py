"""DiaBlo in the MetaMathQA benchmark of PEFT: one command from model and data to the report.

    python -m benchmarks.quality.metamath --model llama-3.2-3b --data MetaMathQA-395K.json \
        --test gsm8k/test.jsonl --output runs/metamath

It trains with `diablo-ds train` and asks GSM8K's test questions with `diablo-ds evaluate`, on the
data and with the settings of PEFT's public method comparison, and writes report.md and results.json
with the published figures beside. The same command continues what was interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.quality import metamath_protocol as protocol
from benchmarks.quality.metamath_commands import (
    Runner,
    evaluate_words,
    forgetting_words,
    run,
    train_words,
)
from benchmarks.quality.metamath_settings import (
    DS_CONFIG,
    Settings,
    check_folder,
    record,
    sizes,
)
from diablo_ds.cli.console import CONTEXT, clean_errors
from diablo_ds.config.setting import AUTO
from diablo_ds.errors import UserError
from diablo_ds.evaluation.question import Question
from diablo_ds.evaluation.task_data import find_data, read_first
from diablo_ds.evaluation.tasks import find_task
from diablo_ds.files.atomic import read_json, write_json, write_text
from diablo_ds.files.layout import PREDICTIONS_FILE, RunFolder
from diablo_ds.model.finding import find_model
from diablo_ds.ranks.exit_codes import EXIT_STOPPED


@dataclass(frozen=True)
class Inputs:
    """Model, data and tests, checked before any work."""

    model_config: dict[str, Any]
    decoding: protocol.Decoding
    selection: protocol.Selection
    questions: tuple[Question, ...]
    """All of the test file."""

    def files(self) -> dict[str, str]:
        """Return the files that the commands read: training rows and prompts of the tests."""
        rows = [{"text": pair.text} for pair in self.selection.pairs]
        asked = [
            {"question": protocol.prompt_of(q.instruction), "answer": q.reference}
            for q in self.questions
        ]
        parts = {"train.jsonl": rows, "test.jsonl": asked}
        return {n: "".join(json.dumps(row) + "\n" for row in part) for n, part in parts.items()}


def read_inputs(settings: Settings) -> Inputs:
    """Read and check model, data and tests.

    Raises:
        UserError: if one does not exist, or is not what the protocol needs.
    """
    folder = find_model(settings.model)
    model_config = read_json(folder / "config.json")
    _check_positions(model_config, settings)
    file = folder / "generation_config.json"
    given = read_json(file) if file.is_file() and not settings.greedy else {}
    decoding = protocol.decoding_of(given if isinstance(given, dict) else {})
    task = find_task("gsm8k")
    questions = read_first(task, find_data(task, settings.test, "--test"), 0)
    if settings.limit > len(questions):
        raise UserError(
            f"limit must be at most the number of test questions; got limit={settings.limit} and "
            f"{len(questions)} questions in {settings.test}"
        )
    if settings.texts is not None and not settings.texts.exists():
        raise UserError(f"texts must be a path that exists; got texts={settings.texts}")
    tests = [question.instruction for question in questions]
    selection = protocol.select(protocol.read_pairs(settings.data), settings.examples, tests)
    return Inputs(model_config, decoding, selection, questions)


def _check_positions(model_config: dict[str, Any], settings: Settings) -> None:
    positions = model_config.get("max_position_embeddings")
    needed = max(protocol.MAX_LENGTH, 2 * settings.max_new_tokens)
    if isinstance(positions, int) and positions < needed:
        raise UserError(
            f"model must have at least {needed} positions, for texts of {protocol.MAX_LENGTH} "
            f"tokens and twice an answer of {settings.max_new_tokens}; got "
            f"max_position_embeddings={positions}, model={settings.model!r}"
        )


def write_data(settings: Settings, inputs: Inputs) -> None:
    """Write what the commands read; once the training has begun, check that it is as it was.

    Raises:
        UserError: if the data changed since the folder was begun.
    """
    settings.data_folder.mkdir(exist_ok=True)
    for name, content in inputs.files().items():
        file = settings.data_folder / name
        if file.is_file() and file.read_text(encoding="utf-8") == content:
            continue
        if settings.has_begun:
            raise UserError(
                "data and tests must stay as they were when the training began; got other rows "
                f"than in {file}; choose another --output"
            )
        write_text(file, content)


def run_all(settings: Settings, runner: Runner = run) -> None:
    """Check, train, evaluate, and write the report.

    Args:
        settings: what the command was told.
        runner: runs a command, as `run` does.

    Raises:
        UserError: if an input is wrong, before anything is written.
        SystemExit: if a command fails or is stopped.
    """
    settings = dataclasses.replace(settings, output=settings.output.absolute())
    check_folder(settings)
    inputs = read_inputs(settings)
    record(settings)
    write_data(settings, inputs)
    files = RunFolder(settings.run_folder)
    commands = [train_words(settings)]
    if not files.is_done():
        runner(commands[0])
    if not files.is_done():
        click.echo("The training was stopped; the same call continues from there", err=True)
        sys.exit(EXIT_STOPPED)
    commands.append(["evaluate", *evaluate_words(settings, inputs.decoding)])
    ask(settings, commands[-1], "evaluation", runner)
    if settings.texts is not None:
        commands.append(["evaluate", *forgetting_words(settings)])
        ask(settings, commands[-1], "forgetting", runner)
    from benchmarks.quality.metamath_report import write_results  # imports torch

    click.echo(write_results(settings, inputs, commands))


def ask(settings: Settings, words: Sequence[str], name: str, runner: Runner) -> None:
    """Evaluate, and add the seconds to those of earlier calls, where there was something to do."""
    predictions = settings.output / name / PREDICTIONS_FILE
    known = _num_lines(predictions)
    seconds = runner(words, ranks=settings.ranks)
    if _num_lines(predictions) > known:
        file = settings.output / "seconds.json"
        old = read_json(file) if file.is_file() else {}
        write_json(file, old | {name: old.get(name, 0.0) + seconds})


def _num_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.is_file() else 0


_PATH = click.Path(path_type=Path)


def _rate(text: str) -> str:
    """Return a learning rate as it was given."""
    try:
        is_rate = text == AUTO or float(text) > 0
    except ValueError:
        is_rate = False
    if not is_rate:
        raise click.BadParameter(f"it must be above 0, or {AUTO}; got {text}")
    return text


@click.command(context_settings={**CONTEXT, "show_default": True})
@click.option("--model", required=True, help=f"Base model; {protocol.MODEL} in the protocol.")
@click.option("--data", required=True, help="MetaMathQA: a file, a folder or a hub name.")
@click.option("--test", required=True, type=_PATH, help="GSM8K's test split: a file or a folder.")
@click.option("--output", required=True, type=_PATH, help="Folder of run, answers and report.")
@click.option("--num-blocks", default="64", help="Diagonal blocks per target layer.")
@click.option("--targets", multiple=True, help="Target layers; repeatable.  [default: DiaBlo's]")
@click.option(
    "--learning-rate",
    default=AUTO,
    callback=lambda context, parameter, text: _rate(text),
    help="Peak; auto is the trainer's rule.",
)
@click.option(
    "--examples", type=click.IntRange(min=1), help="First rows to train on.  [default: 4 * steps]"
)
@click.option(
    "--steps", type=click.IntRange(min=1), help="Of 4 examples.  [default: 5000, or examples / 4]"
)
@click.option("--limit", type=click.IntRange(min=0), default=0, help="Test questions; 0 for all.")
@click.option("--ranks", type=click.IntRange(min=1), default=1, help="Devices of this machine.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the order of the data.")
@click.option("--precision", type=click.Choice(["bf16", "fp16", "fp32", "auto"]), default="bf16")
@click.option(
    "--ds-config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=DS_CONFIG,
    show_default=DS_CONFIG.name,
    help="DeepSpeed config file of the training.",
)
@click.option("--greedy", is_flag=True, help="Ignore the sampling of generation_config.json.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=protocol.MAX_NEW_TOKENS,
    help="Most tokens of an answer.",
)
@click.option("--with-base", is_flag=True, help="Ask the base without the adapter, too.")
@click.option(
    "--texts", type=_PATH, help="General texts on which the rise of the loss is measured."
)
def main(**values: Any) -> None:
    """Run PEFT's MetaMathQA benchmark with DiaBlo, from model and data to the report."""
    with clean_errors():
        examples, steps = sizes(values.pop("examples"), values.pop("steps"))
        run_all(Settings(**values, examples=examples, steps=steps))


if __name__ == "__main__":
    main()
