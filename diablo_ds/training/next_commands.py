"""What can be done with a run that is done, as commands; light, so that they are shown at once."""

from __future__ import annotations

import shlex
import textwrap
from pathlib import Path

from diablo_ds.config.choices import AUTO
from diablo_ds.config.remote_code import trust_words
from diablo_ds.config.run import RunConfig
from diablo_ds.data.default_files import with_default_files
from diablo_ds.files.layout import RunFolder
from diablo_ds.ranks.live_line import shows_progress, terminal_columns

_INDENT, _CONTINUED = "  ", " \\"
_ANY = 1 << 30
"""Columns where no terminal is."""
TENSORBOARD_NOTE = "(has no password: while it is on, every user of its machine sees the run)"


def describe_next(run_config: RunConfig, folder: Path) -> str:
    """Return the lines that a run ends with, and that are shown where it is done already.

    Args:
        run_config: of the run.
        folder: the run folder.
    """
    files = RunFolder(folder)
    generate = ["diablo-ds", "generate", "--adapter", str(folder), "--compare-base", "--chat"]
    commands = [
        shlex.join([*generate, *trust_words()]),
        evaluation_command(run_config, folder),
        shlex.join(
            ["diablo-ds", "merge", "--adapter", str(folder), "--output", f"{folder}-merged"]
        ),
        shlex.join(["diablo-ds", "report", str(folder), "--output", f"{folder}-report.html"]),
        shlex.join(["diablo-ds", "inspect", str(files.adapter)]),
        tensorboard_command(folder),
    ]
    columns = terminal_columns() if shows_progress() else _ANY
    lines = ["Next:", *(folded(command, columns) for command in commands if command)]
    note = f"{_INDENT}{TENSORBOARD_NOTE}"
    return "\n".join([*lines, *textwrap.wrap(note, columns, subsequent_indent=_INDENT)])


def folded(command: str, columns: int) -> str:
    """Return a command in indented rows that a shell takes as one command when they are pasted.

    An option stays with its value. What is longer than a row has one to itself, and it is the
    terminal that wraps it: what is copied from there is whole.

    Args:
        command: words as `shlex.join` writes them.
        columns: of the terminal.
    """
    parts: list[str] = []
    is_option = False
    for word in map(shlex.quote, shlex.split(command)):
        if is_option and not word.startswith("-"):
            parts[-1] += f" {word}"
        else:
            parts.append(word)
        is_option = word.startswith("--")
    rows = [_INDENT]
    for part in parts:
        if rows[-1].strip() and len(rows[-1]) + len(part) > columns - len(_CONTINUED):
            rows.append(2 * _INDENT)
        rows[-1] += f"{part} "
    return f"{_CONTINUED}\n".join(row.rstrip() for row in rows)


def tensorboard_command(folder: Path) -> str:
    """Return the command that shows a run in TensorBoard, by the name of its folder.

    The names are those that `--logdir` has for all runs beside it. A path with a character that
    `--logdir_spec` gives a meaning to is shown without a name.
    """
    name = folder.absolute().name
    if not name or any(mark in f"{name}{folder}" for mark in ",:"):
        return shlex.join(["tensorboard", "--logdir", str(folder)])
    return shlex.join(["tensorboard", "--logdir_spec", f"{name}:{folder}"])


def evaluation_command(run_config: RunConfig, folder: Path) -> str:
    """Return a command that compares a run's adapter with its base, on the run's held-out data.

    Of the default data these are questions of GSM8K, which are answered. Empty where the held-out
    data are a share of the training data, or several files.
    """
    if run_config.has_default_data:
        (file,) = with_default_files(run_config).heldout_data
        task = "gsm8k"
    elif len(run_config.heldout_data) == 1 and run_config.template == AUTO:
        file, task = run_config.heldout_data[0], "loss"
    elif len(run_config.data) == 1 and _is_tokenised(run_config.data[0]):
        file, task = run_config.data[0], "loss"
    else:
        return ""
    if not Path(file).expanduser().exists() or run_config.column:
        return ""
    words = ["--task", task, "--data", f"{task}={file}", "--adapter", str(folder)]
    words += ["--output", f"{folder}-evaluation"]
    if task == "loss" and run_config.corpus != AUTO:
        words += ["--corpus", run_config.corpus]
    if task == "loss" and run_config.control_tokens != AUTO:
        words += ["--control-tokens", run_config.control_tokens]
    return f"diablo-ds evaluate {shlex.join([*words, *trust_words()])}"


def _is_tokenised(path: str) -> bool:
    from diablo_ds.data.dataset_files import is_tokenised  # not for runs on other data: it is slow

    return is_tokenised(Path(path).expanduser())
