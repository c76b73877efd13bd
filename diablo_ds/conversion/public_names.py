"""Names on the hub for what a run knows by a path, and texts without private paths."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from diablo_ds.files.hub import SCHEME, is_repository, looks_like_hub_name

DEFAULT_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The model of which the default base is a conversion, by way of 4-bit weights."""
_CACHED = re.compile(r"(?:^|/)(?:models|datasets)--([^/]+?)--([^/]+)/snapshots/")
"""Folder of a repository in the cache of huggingface_hub."""

_NAMED_PATH = re.compile(r"([^/=~]+=)(.+)", re.DOTALL)


def hub_name(name: str) -> str:
    """Return the hub's name of what a user named; empty where it is not known.

    Args:
        name: a hub name, or a path, of which only one in the hub's cache has a name there. It may
            be anybody's text, as in an adapter's config; what is returned has a name's characters.
    """
    found = _find_name(name)
    return found if is_repository(found, "main") else ""


def _find_name(name: str) -> str:
    if name.startswith(SCHEME):
        name = name.removeprefix(SCHEME).removeprefix("models/").removeprefix("datasets/")
        return name.partition("@")[0]
    if cached := _CACHED.search(name):
        return f"{cached[1]}/{cached[2]}"
    is_path = not name or not looks_like_hub_name(name) or Path(name).expanduser().exists()
    return "" if is_path else name


def base_hub_name(base_model: str) -> str:
    """Return the hub's name of a base model as an adapter records it; empty if not known."""
    return DEFAULT_BASE if base_model == "default" else hub_name(base_model)


def without_folders(text: str) -> str:
    """Return a path's last part where it leads out of the working folder, and any other as is.

    A name before it, as in NAME=PATH, stays.
    """
    if named := _NAMED_PATH.fullmatch(text):
        return f"{named[1]}{without_folders(named[2])}"
    path = Path(text)
    is_private = path.is_absolute() or text.startswith("~") or ".." in path.parts
    return path.name if is_private else text


def public_words(words: Sequence[str]) -> list[str]:
    """Return a command's words without the folders of the machine that ran it."""
    return [without_folders(word) for word in words]
