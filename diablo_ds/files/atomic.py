"""Files that are either complete or absent: write, sync, rename; and checksums."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diablo_ds.errors import UserError
from diablo_ds.files import modes, owned, strict_json
from diablo_ds.files.named_files import open_named

MAX_SETTINGS_BYTES = 1 << 28


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Flush a file's content to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file that becomes ``path`` when the block ends without an error.

    It is empty, and its mode is the one that all files have, also where the block replaces it. An
    old file stays intact until the new one is complete. On an error nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        owned.write_new_file(temporary, b"")
        yield temporary
        modes.set_mode(temporary)
        sync_file(temporary)
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically.

    Halves of surrogate pairs, which names of files may hold and UTF-8 does not, are written out.
    """
    with (
        new_file(path) as temporary,
        owned.open_owned(temporary, "w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented and with a final newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file, strictly; see `strict_json`.

    Raises:
        UserError: if the file is missing or is not JSON; names the file, line and column.
    """
    try:
        return strict_json.loads(read_bytes(path))
    except json.JSONDecodeError as error:
        raise UserError(
            f"file must be valid JSON; got {path}, line {error.lineno}, "
            f"column {error.colno}: {error.msg}"
        ) from None


def read_bytes(path: Path) -> bytes:
    """Read all of a settings file or a record.

    Raises:
        UserError: if it cannot be read or is far too large to be one.
    """
    try:
        with open_named(path) as file:
            data = file.read(MAX_SETTINGS_BYTES + 1)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"file must be readable; got {path}: {reason}") from None
    if len(data) > MAX_SETTINGS_BYTES:
        raise UserError(f"file must have at most {MAX_SETTINGS_BYTES:,} bytes; got more in {path}")
    return data


@contextmanager
def new_folder(folder: Path, *, keep_first: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``folder`` when the block ends without an error.

    Every file in it is synced before the rename, and gets the mode that all files have. On an error
    nothing is left behind, and ``folder`` is as it was.

    Args:
        folder: the new folder; one that exists is replaced.
        keep_first: whether one that another process has made meanwhile stays instead, since it may
            be in use.

    Raises:
        UserError: if there is one that belongs to somebody else.
    """
    owned.make_parents(folder)
    if os.path.lexists(folder):
        owned.check_folder(folder, "a folder that is replaced")
    tag = uuid.uuid4().hex[:8]
    temporary = folder.with_name(f".{folder.name}.{tag}.tmp")
    old = folder.with_name(f".{folder.name}.{tag}.old")
    owned.new_folder(temporary)
    made, replaced = os.lstat(temporary), None
    try:
        yield temporary
        for path in temporary.rglob("*"):
            modes.set_mode(path)
            if path.is_file():
                sync_file(path)
        sync_folder(temporary)
        if keep_first:
            if not _rename_unless_there(temporary, folder):
                _remove(temporary, made)
                return
        else:
            if folder.exists():
                replaced = os.stat(folder)
                folder.rename(old)
            temporary.rename(folder)
        sync_folder(folder.parent)
    except BaseException:
        _remove(temporary, made)
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    _remove(old, replaced)


def _remove(folder: Path, made: os.stat_result | None) -> None:
    with contextlib.suppress(OSError):
        owned.remove_own(folder, made=made)


def _rename_unless_there(folder: Path, name: Path) -> bool:
    """Rename a folder; return False where there is one of that name that holds something."""
    try:
        folder.rename(name)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal. Raises as `open_named` does."""
    with open_named(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
