"""A run config as the words of a command line, and a command as a line for a shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from diablo_ds.config.continuation import changes_ahead
from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import option_words, settings_of


def train_words(run_config: RunConfig, recorded: RunConfig | None = None) -> list[str]:
    """Return the options of `diablo-ds train` that give this run config.

    Args:
        run_config: the run config.
        recorded: that of the run which is continued. What is left out is as that run has it, so
            what changes is among the words although it is the default.
    """
    changes = [] if recorded is None else changes_ahead(recorded, run_config)
    changed = {change.field for change in changes}
    return [
        word
        for setting in settings_of(RunConfig)
        if (value := getattr(run_config, setting.name)) != setting.default
        or setting.name in changed
        for word in option_words(setting.name, value)
    ]


def shell_text(command: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """Return a command as a line for a shell, with variables before it."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in (env or {}).items()]
    return " ".join([*variables, shlex.join(command)])
