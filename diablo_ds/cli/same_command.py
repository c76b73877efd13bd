"""The command that this process runs, as a line for a shell, so that it can be given again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import click

from diablo_ds.ranks.environment import is_secret_name

_WORDS = "diablo_ds.words"


def keep_words(context: click.Context, words: Sequence[str]) -> None:
    """Remember the words of a command line for `same_command`."""
    context.meta[_WORDS] = tuple(words)


def same_command(output: str) -> str:
    """Return the present command with its run folder, quoted for a shell.

    Args:
        output: the run folder, named where the command leaves it out. A secret that the command
            line holds is left out of the result: ``--env HF_TOKEN`` takes it from the shell.
    """
    context = click.get_current_context()
    words = list(map(_without_secret, context.meta[_WORDS]))
    if not context.params.get("output"):
        words += ["--output", output]
    return f"{context.command_path} {shlex.join(words)}".rstrip()


def _without_secret(word: str) -> str:
    """Return ``NAME`` for ``NAME=VALUE`` with a secret's name, also behind ``--env=``."""
    option, equals, pair = word.partition("=") if word.startswith("--") else ("", "", word)
    name, assigns, _ = pair.partition("=")
    hides = assigns and name.isidentifier() and is_secret_name(name)
    return f"{option}{equals}{name}" if hides else word
