"""A run config as the words of a command line, and a command as a line for a shell."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence

from diablo_ds.config.run import RunConfig


def run_options(run: RunConfig) -> list[str]:
    """Return the options of `diablo-ds train` that give this run config."""
    words = []
    for field in dataclasses.fields(run):
        value = getattr(run, field.name)
        name = field.name.replace("_", "-")
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, tuple):
            for item in value:
                words += [f"--{name}", item]
        else:
            words += [f"--{name}", str(value)]
    return words


def shell_text(command: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """Return a command as a line for a shell, with variables before it."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in (env or {}).items()]
    return " ".join([*variables, shlex.join(command)])
