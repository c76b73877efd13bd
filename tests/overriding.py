"""Words of a command in which a test's own options replace those of a fixture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from diablo_ds.cli.main import main

_REPLACED = frozenset({"--data", "--heldout-data"})
"""Repeatable options of which a test's own, one after the other, replace those of a fixture."""


def with_last_options(words: Iterable[Any]) -> list[str]:
    """Return the words with the last of several values of each option that is not repeatable.

    The program takes each option once; tests give those of a fixture and change some.
    """
    texts = list(map(str, words))
    repeatable = _repeatable(texts)
    groups: list[list[str]] = []
    for word in texts:
        if word.startswith("--") or not groups or not groups[-1][0].startswith("--"):
            groups.append([word])
        else:
            groups[-1].append(word)
    names = [_name(group[0]) for group in groups]
    last = {name: number for number, name in enumerate(names)}
    for name in _REPLACED & last.keys():
        while last[name] and names[last[name] - 1] == name:
            last[name] -= 1
    return [
        word
        for number, group in enumerate(groups)
        for word in group
        if not group[0].startswith("--")
        or _name(group[0]) in repeatable - _REPLACED
        or last[_name(group[0])] == number
        or (_name(group[0]) in _REPLACED and last[_name(group[0])] < number)
    ]


def _name(word: str) -> str:
    name = word.split("=")[0].replace("_", "-")
    return f"--{name[5:]}" if name.startswith("--no-") else name


def _repeatable(words: list[str]) -> frozenset[str]:
    """Return the repeatable options of the command that the words name; without one, of train."""
    command: click.Command = main
    for word in words:
        if not isinstance(command, click.Group) or word not in command.commands:
            break
        command = command.commands[word]
    command = main.commands["train"] if command is main else command
    if isinstance(command, click.Group) and command.name == "prepare":
        command = command.commands["auto"]
    return frozenset(
        name
        for parameter in command.params
        if isinstance(parameter, click.Option) and parameter.multiple
        for name in parameter.opts
    )
