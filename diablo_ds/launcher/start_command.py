"""The command that started a rank, as a line for a shell that continues its run.

Only the standard library is used here, as in everything that a guard imports.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from diablo_ds.files.process_status import process_status
from diablo_ds.ranks.masking import COMMAND, runnable_words

_LAUNCHERS = ("deepspeed", "ds", "torchrun")
_MOST_ANCESTORS = 4


def start_command(environment: Mapping[str, str], run_folder: str) -> str:
    """Return the command that a person gave, with the run folder and without secrets.

    Args:
        environment: of the rank.
        run_folder: named where the command leaves it out; empty where it is not known.
    """
    words = launcher_words()
    if words is None:
        line = environment.get(COMMAND, "")
        words = shlex.split(line)
    else:
        line = shlex.join(runnable_words(words, environment))
    has_folder = any(word == "--output" or word.startswith("--output=") for word in words)
    return (
        line if has_folder or not run_folder else f"{line} {shlex.join(['--output', run_folder])}"
    )


def launcher_words() -> list[str] | None:
    """Return the words of the launcher above this process; None where there is none known."""
    pid = os.getppid()
    for _ in range(_MOST_ANCESTORS):
        try:
            data = Path(f"/proc/{pid}/cmdline").read_bytes()
            pid = process_status(pid).parent
        except (OSError, ValueError):
            return None
        if words := words_of_launcher([os.fsdecode(word) for word in data.split(b"\0")[:-1]]):
            return words
    return None


def words_of_launcher(words: Sequence[str]) -> list[str]:
    """Return a launcher's words from its name on, without its Python; empty for other commands."""
    for place, word in enumerate(words[:4]):
        name = word.rpartition("/")[2]
        if name in _LAUNCHERS:
            return [name, *words[place + 1 :]]
    return []
