"""A run config as the words of a command line, and a command as a line for a shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import option_words, settings_of


def train_words(run_config: RunConfig) -> list[str]:
    """Return the options of `diablo-ds train` that give this run config."""
    return [
        word
        for setting in settings_of(RunConfig)
        if (value := getattr(run_config, setting.name)) != setting.default
        for word in option_words(setting.name, value)
    ]


def shell_text(command: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """Return a command as a line for a shell, with variables before it."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in (env or {}).items()]
    return " ".join([*variables, shlex.join(command)])
