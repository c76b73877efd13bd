"""Files of the Hugging Face hub, downloaded once or found in its cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diablo_ds.errors import UserError


def looks_like_hub_name(name: str) -> bool:
    """Return whether a text could be "owner/name" or "name" on the hub, and not a path."""
    return not (Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1)


def hub_folder(
    name: str, kind: str, patterns: Sequence[str], *, ignored: Sequence[str] = ()
) -> Path:
    """Return the local folder of a hub repository's files.

    Args:
        name: "owner/name".
        kind: "model" or "dataset".
        patterns: file names to fetch, as shell patterns.
        ignored: file names not to fetch.

    Raises:
        UserError: if the repository cannot be had: offline, unknown or gated.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name, repo_type=kind, allow_patterns=list(patterns), ignore_patterns=list(ignored)
        )
    except Exception as error:  # the hub client raises many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{kind} must be an existing path or a reachable hub name; got {name!r}: {reason}"
        ) from None
    return Path(folder)


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
