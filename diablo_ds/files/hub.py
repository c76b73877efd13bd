"""Files of the Hugging Face hub, downloaded once or found in its cache.

A repository is named as ``hf://owner/name`` or ``hf://owner/name@revision``, so that no path, and
no mistyped one, is ever looked up on the hub, where anybody may have registered that name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diablo_ds.errors import UserError
from diablo_ds.files import modes

SCHEME = "hf://"
_PART = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"(?:{_PART}/)?{_PART}", re.ASCII)
_REVISION = re.compile(rf"{_PART}(?:/{_PART})*", re.ASCII)
_used: dict[str, str] = {}
_kept: dict[str, str] = {}


class Repository(NamedTuple):
    """A model or dataset on the hub."""

    kind: str
    """ "model" or "dataset"."""
    name: str
    """ "owner/name"."""
    revision: str = ""
    """Branch, tag or commit; empty for the one that was kept, or else the main branch."""

    def __str__(self) -> str:
        return f"{SCHEME}{self.name}{f'@{self.revision}' if self.revision else ''}"

    @property
    def key(self) -> str:
        """What it is recorded by, such as "datasets/owner/name"."""
        return f"{self.kind}s/{self.name}"


def find_repository(text: str, kind: str) -> Repository | None:
    """Return the repository that a user named; None for a text that is no ``hf://...``.

    Args:
        text: what the user gave; ``hf://datasets/owner/name`` is a dataset's name too.
        kind: "model" or "dataset".

    Raises:
        UserError: if it begins with ``hf://`` and is none.
    """
    if not text.startswith(SCHEME):
        return None
    name, at, revision = text.removeprefix(SCHEME).removeprefix(f"{kind}s/").partition("@")
    if not is_repository(name, revision if at else "main"):
        raise UserError(
            f"a {kind} of the hub must be named hf://owner/name or hf://owner/name@revision; got "
            f"{text!r}"
        )
    return Repository(kind, name, revision)


def is_repository(name: str, revision: str) -> bool:
    """Return whether texts can be the name and the revision of a repository."""
    return bool(_REPOSITORY.fullmatch(name) and _REVISION.fullmatch(revision))


def hub_hint(text: str) -> str:
    """Return how a text that is no path would be named on the hub, for the end of an error."""
    could_be = _REPOSITORY.fullmatch(text) and text.count("/") == 1
    return f"; a repository of the hub is named {SCHEME}{text if could_be else 'owner/name'}"


def looks_like_hub_name(name: str) -> bool:
    """Return whether a recorded text could be "owner/name" or "name" on the hub, and not a path."""
    return not (Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1)


def is_same_source(old: Any, new: Any) -> bool:
    """Return whether two settings name the same, where at most one of them names a revision.

    Args:
        old: a text, such as a path, ``hf://...`` or NAME=one of them; or a tuple of texts; or
            any other value.
        new: the other one.
    """
    if isinstance(old, tuple) and isinstance(new, tuple):
        return len(old) == len(new) and all(map(is_same_source, old, new))
    if old == new or not (isinstance(old, str) and isinstance(new, str)):
        return bool(old == new)
    shorter, longer = sorted((old, new), key=len)
    return SCHEME in shorter and longer.startswith(f"{shorter}@")


def hub_folder(
    repository: Repository, patterns: Sequence[str], *, ignored: Sequence[str] = ()
) -> Path:
    """Return the local folder of a repository's files, and say on the screen what was taken.

    Args:
        repository: without a revision, the one that `keep_revisions` was given.
        patterns: file names to fetch, as shell patterns.
        ignored: file names not to fetch.

    Raises:
        UserError: if the repository cannot be had: offline, unknown or gated.
    """
    from huggingface_hub import snapshot_download

    revision = repository.revision or _kept.get(repository.key) or None
    if not is_repository(repository.name, revision or "main"):  # they become names of files
        raise UserError(f"{repository.kind} must be one of the hub; got {repository!s:.100}")
    try:
        with modes.users_umask():
            folder = snapshot_download(
                repository.name,
                repo_type=repository.kind,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(ignored),
            )
    except Exception as error:  # the hub client raises many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        at = f", revision {revision}" if revision else ""
        raise UserError(
            f"{repository.kind} must be one that the hub has and gives to you; got {repository}"
            f"{at}: {reason}"
        ) from None
    found = revision_of(Path(folder))
    if _used.get(repository.key) != found:
        _used[repository.key] = found
        # A warning, for it is shown by commands without a log too.
        logging.getLogger("diablo_ds").warning(
            f"From the hub: {repository.kind} {repository.name}, revision {found}, in {folder}"
        )
    return Path(folder)


def used_revisions() -> dict[str, str]:
    """Return the revision of each repository that this process took from the hub, by its key."""
    return dict(_used)


def keep_revisions(revisions: Mapping[str, str]) -> None:
    """Take these revisions where a repository is named without one.

    Args:
        revisions: by the repositories' keys.
    """
    _kept.clear()
    _kept.update(revisions)


def recorded_revisions(starts: Any) -> dict[str, str]:
    """Return the revisions that the starts of a run record, the last one's where they differ.

    Args:
        starts: entries of `run.json`, which may be anything.
    """
    entries = [entry.get("hub") for entry in starts if isinstance(entry, dict)] if starts else []
    pairs = [pair for entry in entries if isinstance(entry, dict) for pair in entry.items()]
    return {key: found for key, found in pairs if isinstance(found, str) and found}


def with_revision(text: str, kind: str, revisions: Mapping[str, str]) -> str:
    """Return a text with the revision that is recorded of it, where it names none.

    Args:
        text: what a user gave: a path, ``hf://...`` or NAME=one of them.
        kind: "model" or "dataset".
        revisions: by the repositories' keys.
    """
    start = text.find(SCHEME)
    if start < 0 or (start and text[start - 1] != "="):
        return text
    repository = find_repository(text[start:], kind)
    if repository is None or repository.revision or repository.key not in revisions:
        return text
    return f"{text}@{revisions[repository.key]}"


def cached_hub_file(name: str, file: str, revision: str | None = None) -> Path:
    """Return where a file of a hub's model is in the cache; a path to nothing where it is not.

    Args:
        name: "owner/name".
        file: its name.
        revision: of the repository; None for its main branch.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file, revision=revision)
    except HFValidationError:
        found = None
    return Path(found if isinstance(found, str) else f"not-cached/{file}")


def revision_of(folder: Path) -> str:
    """Return the revision of a snapshot in the hub's cache; empty for any other folder."""
    parts = folder.absolute().parts
    return parts[-1] if len(parts) > 1 and parts[-2] == "snapshots" else ""
