"""Commands as they can be written down: without the secrets that a word may hold."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence

from diablo_ds.ranks.environment import MASK, is_secret_name

COMMAND = "DIABLO_COMMAND"
"""Variable by which a launcher tells its ranks the command that a person gave, without secrets."""
_ASSIGNMENT = re.compile(r"(?<![\w-])([A-Za-z_]\w*)=(\"[^\"]*\"|'[^']*'|\S+)")
_OPTION_WITH_VALUE = re.compile(r"(--?[A-Za-z][\w-]*=)(.*)", re.DOTALL)
_KNOWN_FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[a-z]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|sk-[\w-]{16,})"
)
"""Tokens of the Hugging Face hub, GitHub and others, by how they begin."""
_PASSWORD_IN_URL = re.compile(r"(://[^\s/:@]*:)[^\s/@]+(?=@)")
_SHORTEST_SECRET = 8
"""Shorter values of secret variables would be found in words that have nothing to do with them."""


def given_command() -> str:
    """Return this process's command as a line for a shell, without secrets."""
    program = os.path.basename(sys.argv[0])
    words = ["diablo-ds"] if program == "__main__.py" else [program]
    return shlex.join([*words, *hide_secrets(sys.argv[1:], os.environ)])


def hide_secrets(words: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Return a command's words with `***` in place of secrets.

    Secrets are values that are given to variables with a secret's name, as in HF_TOKEN=..., values
    that such variables have here, passwords in URLs, and what has the form of a hub's token.

    Args:
        words: the words.
        environment: variables of the process that the command started.
    """
    values = [
        value
        for name, value in environment.items()
        if is_secret_name(name) and len(value) >= _SHORTEST_SECRET
    ]
    return [_hide(word, sorted(values, key=len, reverse=True)) for word in words]


def runnable_words(words: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Return a command's words without secrets, so that it can be given again.

    Of an assignment such as ``--env HF_TOKEN=...`` the name is left, which takes the value from the
    shell; other secrets are hidden as `hide_secrets` does.

    Args:
        words: the words.
        environment: variables of the process that the command started.
    """
    return hide_secrets(list(map(_without_value, words)), environment)


def _without_value(word: str) -> str:
    """Return ``NAME`` for ``NAME=VALUE`` with a secret's name, also behind ``--env=``."""
    option, equals, pair = word.partition("=") if word.startswith("--") else ("", "", word)
    name, assigns, _ = pair.partition("=")
    hides = assigns and name.isidentifier() and is_secret_name(name)
    return f"{option}{equals}{name}" if hides else word


def _hide(word: str, values: Sequence[str]) -> str:
    for value in values:
        word = word.replace(value, MASK)
    option = _OPTION_WITH_VALUE.fullmatch(word)
    start, rest = (option[1], option[2]) if option else ("", word)
    rest = _ASSIGNMENT.sub(_masked_assignment, rest)
    rest = _PASSWORD_IN_URL.sub(rf"\1{MASK}", _KNOWN_FORMS.sub(MASK, rest))
    return start + rest


def _masked_assignment(match: re.Match[str]) -> str:
    return f"{match[1]}={MASK}" if is_secret_name(match[1]) else match[0]
