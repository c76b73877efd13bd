"""The command that this process runs, as a line for a shell, so that it can be given again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

import click

from diablo_ds.ranks.masking import runnable_words

_WORDS = "diablo_ds.words"


def keep_words(context: click.Context, words: Sequence[str]) -> None:
    """Remember the words of a command line for `same_command`."""
    context.meta[_WORDS] = tuple(words)


def given_command() -> str:
    """Return the present command, quoted for a shell.

    A secret that the command line holds is left out: ``--env HF_TOKEN`` takes it from the shell.
    Any other form of a secret is masked.
    """
    context = click.get_current_context()
    words = runnable_words(context.meta[_WORDS], os.environ)
    return f"{context.command_path} {shlex.join(words)}".rstrip()


def same_command(output: str) -> str:
    """Return the present command with its run folder, as `given_command` does.

    Args:
        output: the run folder, named where the command leaves it out.
    """
    has_output = bool(click.get_current_context().params.get("output"))
    return given_command() + ("" if has_output else f" {shlex.join(['--output', output])}")
