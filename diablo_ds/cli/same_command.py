"""The command that this process runs, as a line for a shell, so that it can be given again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

import click

from diablo_ds.ranks.environment import is_secret_name
from diablo_ds.ranks.masking import hide_secrets

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
    named = [_without_secret(word) for word in context.meta[_WORDS]]
    words = hide_secrets(named, os.environ)
    return f"{context.command_path} {shlex.join(words)}".rstrip()


def same_command(output: str) -> str:
    """Return the present command with its run folder, as `given_command` does.

    Args:
        output: the run folder, named where the command leaves it out.
    """
    has_output = bool(click.get_current_context().params.get("output"))
    return given_command() + ("" if has_output else f" {shlex.join(['--output', output])}")


def _without_secret(word: str) -> str:
    """Return ``NAME`` for ``NAME=VALUE`` with a secret's name, also behind ``--env=``."""
    option, equals, pair = word.partition("=") if word.startswith("--") else ("", "", word)
    name, assigns, _ = pair.partition("=")
    hides = assigns and name.isidentifier() and is_secret_name(name)
    return f"{option}{equals}{name}" if hides else word
