"""Whether Python code that a model's folder brings may run: only where the user's command says so.

A run config, an adapter or a model may come from anybody, so none of them can say it. The choice
holds for a process and all that it starts, by an environment variable.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

from diablo_ds.config.setting import check_settings, option_words, setting

VARIABLE = "DIABLO_TRUST_REMOTE_CODE"
"""Environment variable of the choice, for processes that this one starts."""
NAME = "trust_remote_code"
HELP = (
    "Run the Python code that the model's folder or repository brings, with all of your rights; "
    "no file can give this setting."
)


@dataclass(frozen=True, kw_only=True)
class RemoteCode:
    """The choice, as an option of each command that loads a model or a tokenizer.

    Raises:
        UserError: if the value is illegal.
    """

    trust_remote_code: bool = setting(False, HELP, "model")

    def __post_init__(self) -> None:
        check_settings(self)


class _HasChoice(Protocol):
    @property
    def trust_remote_code(self) -> bool: ...


def trust_code(chosen: _HasChoice) -> None:
    """Obey the choice, in this process and those that it starts."""
    os.environ.pop(VARIABLE, None)
    if chosen.trust_remote_code:
        os.environ[VARIABLE] = "1"


def trusts_code() -> bool:
    """Return whether code that a model brings may run."""
    return os.environ.get(VARIABLE) == "1"


def trust_words() -> list[str]:
    """Return the choice as words of a command line, for commands that are shown."""
    return option_words(NAME, True) if trusts_code() else []
