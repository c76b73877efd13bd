"""The commands of the MetaMathQA benchmark: which they are, and how they are run."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import click

from benchmarks.quality import metamath_protocol as protocol
from benchmarks.quality.metamath_settings import Settings
from diablo_ds.ranks.exit_codes import EXIT_STOPPED, EXIT_USER_ERROR

ROOT = Path(__file__).resolve().parents[2]
SAVE_EVERY = 250
"""Steps between checkpoints; as often the protocol validates."""


class Runner(Protocol):
    """Runs a command of `diablo-ds`, as `run` does."""

    def __call__(self, words: Sequence[str], *, ranks: int = 1) -> float:
        """Run it, and return the seconds that it took."""


def train_words(settings: Settings) -> list[str]:
    """Return the command that trains, as words after the program."""
    start = ["train"]
    if settings.ranks > 1:
        start = ["launch", "--ranks-per-node", str(settings.ranks)]
    named = {
        "ds-config": settings.ds_config,
        "model": settings.model,
        "data": settings.data_folder / "train.jsonl",
        "text": "row",
        "heldout-share": 0,
        "max-length": protocol.MAX_LENGTH,
        "overlong": "cut-completion",
        "num-blocks": settings.num_blocks,
        "global-batch": protocol.GLOBAL_BATCH,
        "max-steps": settings.steps,
        "learning-rate": settings.learning_rate,
        "schedule": "cosine",
        "warmup-steps": int(protocol.WARMUP_SHARE * settings.steps),
        "weight-decay": protocol.WEIGHT_DECAY,
        "max-grad-norm": protocol.MAX_GRAD_NORM,
        "precision": settings.precision,
        "seed": settings.seed,
        "save-every": SAVE_EVERY,
        "output": settings.run_folder,
    }
    words = [word for name, value in named.items() for word in (f"--{name}", str(value))]
    targets = [word for target in settings.targets for word in ("--targets", target)]
    return [*start, *words, *targets, "--group-by-length", "--no-recompute"]


def evaluate_words(settings: Settings, decoding: protocol.Decoding) -> list[str]:
    """Return the options that ask the test questions."""
    words = ["--task", "gsm8k", "--data", f"gsm8k={settings.data_folder / 'test.jsonl'}"]
    words += ["--template", "plain", "--max-new-tokens", str(settings.max_new_tokens)]
    if decoding.temperature:
        words += ["--temperature", str(decoding.temperature), "--top-p", str(decoding.top_p)]
    if settings.limit:
        words += ["--limit", str(settings.limit)]
    if not settings.with_base:
        words.append("--skip-base")
    return [*words, *_of_models(settings, "evaluation")]


def forgetting_words(settings: Settings) -> list[str]:
    """Return the options that measure how much the loss on general texts rises."""
    words = ["--task", "forgetting", "--data", f"forgetting={settings.texts}"]
    return [*words, "--max-length", str(protocol.MAX_LENGTH), *_of_models(settings, "forgetting")]


def _of_models(settings: Settings, name: str) -> list[str]:
    return [
        "--adapter",
        str(settings.run_folder),
        "--precision",
        settings.precision,
        "--output",
        str(settings.output / name),
    ]


def shown_words(words: Sequence[str], *, ranks: int) -> list[str]:
    """Return a command as a person would give it: that of an evaluation starts its ranks."""
    if ranks == 1 or words[0] != "evaluate":
        return ["diablo-ds", *words]
    script = str(ROOT / "launch" / "evaluate.py")
    return ["deepspeed", f"--num_accelerators={ranks}", script, *words[1:]]


def run(words: Sequence[str], *, ranks: int = 1) -> float:
    """Show a command and run it; its output is not kept.

    Args:
        words: after the program.
        ranks: processes to start, where the command does not do it itself.

    Returns:
        The seconds that it took.

    Raises:
        SystemExit: with the command's exit code, if that is not 0.
    """
    program, *others = shown = shown_words(words, ranks=ranks)
    command = [sys.executable, "-m", "diablo_ds", *others]
    if program == "deepspeed":
        command = [str(Path(sys.executable).with_name(program)), *others]
    click.echo(f"\n$ {shlex.join(shown)}", err=True)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    start = time.monotonic()
    with _left_to_end(command, environment) as process:
        code = process.wait()
    if code:
        if code != EXIT_USER_ERROR:  # that has been explained
            state = "was stopped" if code == EXIT_STOPPED else f"ended with exit code {code}"
            click.echo(f"The command above {state}; the same call continues from there", err=True)
        sys.exit(code if code > 0 else 128 - code)
    return time.monotonic() - start


@contextlib.contextmanager
def _left_to_end(
    command: Sequence[str], environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command that ends by itself when this process is asked to end.

    SIGTERM and SIGUSR1 are passed on; control-C reaches the command from the terminal.
    """
    process: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _: Any) -> None:
        if process is not None and number != signal.SIGINT:
            process.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    old = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        process = subprocess.Popen(command, env=environment)
        yield process
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
