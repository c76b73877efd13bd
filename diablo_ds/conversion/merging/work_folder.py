"""The folder in which a merge is made: hidden beside the output, kept if it is interrupted.

A record in it says what the merge is made from and which new files are complete, so that the same
command does not write them again. A file counts as complete only if the record says so: it was
synced before it was entered, and has the size and the time of change of then.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diablo_ds.conversion.merging.rounding import Rounding
from diablo_ds.errors import UserError
from diablo_ds.files import owned
from diablo_ds.files.atomic import read_json, sync_file, sync_folder, write_json
from diablo_ds.files.layout import MERGE_RECORD_FILE, OWNER_FOLDER
from diablo_ds.files.ownership import FolderOwner, claim

_UNFINISHED = ".unfinished"
_OUTPUT_MODE = 0o755
"""Others may load a merged model; the work folder is this user's alone."""


class WorkFolder:
    """A work folder that this process owns; see `open_work_folder`."""

    def __init__(self, path: Path, inputs: Mapping[str, Any], owner: FolderOwner) -> None:
        self.path = path
        self._inputs = json.loads(json.dumps(inputs))
        self._owner = owner
        self._shards: dict[str, dict[str, Any]] = self._read_record()

    def _read_record(self) -> dict[str, dict[str, Any]]:
        """Return what is known of complete files; remove all others."""
        file = self.path / MERGE_RECORD_FILE
        shards: dict[str, dict[str, Any]] = {}
        if file.is_file():
            with contextlib.suppress(UserError):
                record = read_json(file)
                if isinstance(record, dict) and record.get("inputs") == self._inputs:
                    shards = record["shards"]
        complete = {name: entry for name, entry in shards.items() if self._is_same(name, entry)}
        for path in self.path.iterdir():
            if path.name not in {*complete, MERGE_RECORD_FILE, OWNER_FOLDER}:
                _remove(path)
        return complete

    def _is_same(self, name: str, entry: Mapping[str, Any]) -> bool:
        path = self.path / name
        return path.is_file() and _state(path) == entry["file"]

    def finished(self, name: str) -> dict[str, Rounding] | None:
        """Return what rounding did to the layers of a complete file; None if it is not complete."""
        entry = self._shards.get(name)
        if entry is None:
            return None
        return {layer: Rounding(**values) for layer, values in entry["layers"].items()}

    @property
    def num_finished(self) -> int:
        """Files that are complete."""
        return len(self._shards)

    def unfinished(self, name: str) -> Path:
        """Return the path under which a file is written."""
        self._owner.check()
        return self.path / f"{name}{_UNFINISHED}"

    def finish(self, name: str, layers: Mapping[str, Rounding]) -> None:
        """Sync a file that was written as `unfinished`, name it, and enter it in the record."""
        unfinished, path = self.path / f"{name}{_UNFINISHED}", self.path / name
        sync_file(unfinished)
        self._owner.check()
        unfinished.rename(path)
        sync_folder(self.path)
        self._shards[name] = {
            "file": _state(path),
            "layers": {layer: asdict(rounding) for layer, rounding in layers.items()},
        }
        write_json(self.path / MERGE_RECORD_FILE, {"inputs": self._inputs, "shards": self._shards})

    def become(self, output: Path) -> None:
        """Sync what is not synced yet, and give the folder its name."""
        for path in self.path.iterdir():
            if path.name not in self._shards and path.is_file():
                sync_file(path)
        self._owner.check()
        (self.path / MERGE_RECORD_FILE).unlink()
        shutil.rmtree(self.path / OWNER_FOLDER)
        self.path.chmod(_OUTPUT_MODE)
        sync_folder(self.path)
        self.path.rename(output)
        sync_folder(output.parent)


@contextlib.contextmanager
def open_work_folder(output: Path, inputs: Mapping[str, Any]) -> Iterator[WorkFolder]:
    """Own the work folder of an output; what is in it from other inputs is removed.

    It is removed at the end, unless it became the output or, after an interruption, has a complete
    file to continue from.

    Args:
        output: the new folder, which does not exist.
        inputs: JSON values that tell what the merge is made from.

    Raises:
        UserError: if another process makes the same output, or others can change the folder.
        OSError: if it cannot be written.
    """
    path = work_folder_of(output)
    if path.is_symlink():  # an attacker's, to have another folder emptied
        raise UserError(f"the work folder must not be a link; got {path}; remove it")
    output.parent.mkdir(parents=True, exist_ok=True)
    owned.make_folder(path, "work folder", repair="remove it, or choose another output")
    owner = claim(path, "output that is being merged")
    try:
        work = WorkFolder(path, inputs, owner)
        try:
            yield work
        except BaseException as error:
            # After a user's mistake the same inputs would end in the same way.
            is_useless = isinstance(error, UserError) or not work.num_finished
            if is_useless and not owner.is_lost:
                _remove(path)
            raise
    finally:
        owner.release()


def work_folder_of(output: Path) -> Path:
    """Return the work folder of an output."""
    return output.with_name(f".{output.name}.partial")


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
