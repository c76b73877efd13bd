"""Settings as a YAML file for a person: grouped, each with its help, its default and its range."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from diablo_ds.config.setting import AUTO, GROUPS, Setting

_WIDTH = 100
_PLAIN = re.compile(r"[A-Za-z][\w./-]*(?:://[\w./-]+)?", re.ASCII)
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})
"""Texts that YAML, or an earlier version of it, takes for other values."""
_HEAD = """# Settings of a run: diablo-ds train --config FILE, also launch and slurm.
# Options on the command line override them. What has no line without # is chosen at the start."""


def config_text(settings: Sequence[Setting], values: Mapping[str, Any]) -> str:
    """Return a YAML document that `diablo_ds.config.run_files.load_settings` reads back.

    A number that is open is `auto`, and any other open setting a comment.

    Args:
        settings: which the document explains.
        values: of the settings by name; those without one are comments.
    """
    parts = [_HEAD]
    for group in GROUPS:
        of_group = [setting for setting in settings if setting.group == group]
        if of_group:
            parts.append(f"# {f'--- {group} '.ljust(_WIDTH - 2, '-')}")
            parts += [_entry(setting, values.get(setting.name)) for setting in of_group]
    return "\n\n".join(parts) + "\n"


def _entry(setting: Setting, value: Any) -> str:
    name = setting.option.removeprefix("--")
    comment = _comment(setting.help) + _comment(_facts(setting))
    is_open = setting.is_open and value == setting.default
    if value is None or (is_open and not (setting.takes_auto or value == AUTO)):
        return "\n".join([*comment, f"# {name}:"])
    if is_open:
        return "\n".join([*comment, f"{name}: {AUTO}"])
    return "\n".join([*comment, f"{name}:{_written(value)}"])


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _facts(setting: Setting) -> str:
    """Return the default and what is allowed, as words; empty where there is nothing to say."""
    default = setting.default_text()
    allowed = ", ".join(filter(None, setting.choices)) or setting.range_text()
    if setting.kind is bool:
        allowed = "true, false"
        default = {"on": "true", "off": "false"}.get(default, default)
    facts = (("Default", default), ("Allowed", allowed))
    return ". ".join(f"{words}: {fact}" for words, fact in facts if fact)


def _written(value: Any) -> str:
    """Return a value as what follows a key and its colon."""
    if not isinstance(value, tuple):
        return f" {_scalar(value)}"
    items = list(map(_scalar, value))
    line = f" [{', '.join(items)}]"
    return line if len(line) <= _WIDTH else "".join(f"\n  - {item}" for item in items)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return repr(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=not value.isprintable())
