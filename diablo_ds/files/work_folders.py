"""Work folders: where a long command makes its output, and finds what an interrupted one has made.

A work folder lies beside the output, under a name that cannot be known before. The command finds
the one of an interrupted command through a record in the user's own cache folder, which also says
what it was made from and what is finished. So nothing that others put beside the output is taken
for it, and what is removed was made here: a file in the folder holds the record's token in its
name.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diablo_ds.errors import UserError
from diablo_ds.files import owned
from diablo_ds.files.cache import cache_folder
from diablo_ds.files.layout import OWNER_FOLDER
from diablo_ds.files.ownership import FolderOwner, claim

logger = logging.getLogger("diablo_ds")

RECORDS_FOLDER = "work"
"""In the cache folder: a record for each work folder there is."""
_LOCK_FILE = ".lock"
_TOKEN = ".token-"
_REPAIR = "remove it"


@dataclass(frozen=True)
class _Record:
    """What the first line of a record says; further lines are notes."""

    output: str
    work: str
    token: str
    inputs: Any

    @property
    def token_file(self) -> Path:
        return Path(self.work, f"{_TOKEN}{self.token}")


class WorkFolder:
    """A work folder that this process owns; see `open_work_folder`.

    Args:
        record: what its record says.
        file: the record; None where none can be kept, and nothing can be continued.
        owner: keeps other processes out.
        notes: what was noted by an interrupted command with the same inputs.
    """

    def __init__(
        self, record: _Record, file: Path | None, owner: FolderOwner, notes: list[Any]
    ) -> None:
        self.path = Path(record.work)
        self.owner = owner
        self.notes = notes
        self.is_continued = bool(notes)
        self._record, self._file = record, file
        self._made = self.path.lstat()
        self._check_place()

    @property
    def has_finished_work(self) -> bool:
        """Whether something was noted, by this command or the interrupted one."""
        return bool(self.notes)

    def note(self, value: Any) -> None:
        """Write down that something is finished, as a JSON value."""
        self.notes.append(value)
        if self._file is not None:
            with contextlib.suppress(OSError), owned.open_owned(self._file, "ab") as file:
                file.write(f"{json.dumps(value)}\n".encode())

    def remove_others(self, names: Collection[str] = ()) -> None:
        """Remove all that is in the folder, but for what has one of these names and manages it."""
        self._check_place()
        keep = (OWNER_FOLDER, self._record.token_file.name, *names)
        owned.remove_own(self.path, made=self._made, keep=keep)

    def become(self, output: Path) -> None:
        """Give the folder the output's name, without what manages it."""
        owned.remove_own(self._record.token_file)
        owned.remove_own(self.path / OWNER_FOLDER)
        self.path.rename(output)
        if not os.path.samestat(output.lstat(), self._made):
            raise OSError(f"{output} must be what was made; got another folder in its place")
        self.forget()

    def remove(self) -> None:
        """Remove the folder and its record."""
        with contextlib.suppress(OSError):
            self._check_place()
            owned.remove_own(self.path, made=self._made)
        self.forget()

    def _check_place(self) -> None:
        """Raise OSError if another folder has got the name."""
        self._record.token_file.lstat()

    def forget(self) -> None:
        """Remove the record."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                owned.remove_own(self._file)


@contextlib.contextmanager
def open_work_folder(
    output: Path, inputs: Any, what: str, *, keep_after_mistake: bool = True
) -> Iterator[WorkFolder]:
    """Own the work folder of an output; what is in it from other inputs is removed.

    It is removed at the end, unless it became the output or, after an interruption, holds finished
    work. Only one process of this user at a time may use it.

    Args:
        output: the new folder, which does not exist.
        inputs: JSON values that tell what the output is made from.
        what: the output, for the error where another process makes it.
        keep_after_mistake: whether finished work is kept after a `UserError` too, which the same
            inputs do not always end in.

    Raises:
        UserError: if another process makes the same output.
        OSError: if it cannot be written.
    """
    work = _own(output, json.loads(json.dumps(inputs)), what)
    try:
        try:
            yield work
        except BaseException as error:
            is_useful = keep_after_mistake or not isinstance(error, UserError)
            if not (work.has_finished_work and is_useful) and not work.owner.is_lost:
                work.remove()
            raise
        work.remove()
    finally:
        work.owner.release()


def find_work_folder(output: Path) -> tuple[Path, list[Any]] | None:
    """Return the work folder of an output that is being made, or whose making was interrupted.

    Returns:
        The folder and what was noted as finished; None where there is none.
    """
    found = _read(_record_file(output), output)
    return None if found is None else (Path(found[0].work), found[1])


def _own(output: Path, inputs: Any, what: str) -> WorkFolder:
    owned.make_parents(output)
    file: Path | None = _record_file(output)
    assert file is not None
    try:
        owned.make_folder(file.parent, "folder of work records", repair=_REPAIR)
    except OSError as error:
        logger.warning(f"An interruption will lose what is finished, as no record is kept: {error}")
        file = None
    while True:
        with _locked(file):
            found = None if file is None else _read(file, output)
            record = found[0] if found else _make(output, inputs, file)
        owner = claim(Path(record.work), what)
        try:
            found = _read(file, output) if file is not None else (record, [])
            if found is not None and found[0] == record:
                return _emptied_of_others(record, file, owner, found[1], inputs)
        except BaseException:
            owner.release()
            raise
        # It was finished meanwhile, by the process that owned it.
        owner.release()
        with contextlib.suppress(OSError):
            owned.remove_own(Path(record.work, OWNER_FOLDER))
            Path(record.work).rmdir()


def _emptied_of_others(
    record: _Record, file: Path | None, owner: FolderOwner, notes: list[Any], inputs: Any
) -> WorkFolder:
    """Return the work folder, without the work from other inputs."""
    if record.inputs != inputs:
        WorkFolder(record, file, owner, []).remove_others()
        record, notes = _Record(record.output, record.work, record.token, inputs), []
        if file is not None:
            _write(file, record)
    return WorkFolder(record, file, owner, notes)


def _make(output: Path, inputs: Any, file: Path | None) -> _Record:
    """Make a work folder and its record."""
    work = output.with_name(f".{output.name}.{secrets.token_hex(8)}.partial").absolute()
    record = _Record(_key(output), str(work), secrets.token_hex(16), inputs)
    if not owned.new_folder(work):
        raise FileExistsError(f"a work folder must be new; got {work}")
    owned.write_new_file(record.token_file, b"")
    if file is not None:
        _write(file, record)
    return record


def _write(file: Path, record: _Record) -> None:
    owned.remove_own(file)
    owned.write_new_file(file, f"{json.dumps(vars(record))}\n".encode())


def _read(file: Path, output: Path) -> tuple[_Record, list[Any]] | None:
    """Return a record and its notes; None where there is no work folder that it fits.

    A last line that was cut off by an interruption is left out.
    """
    try:
        with owned.open_owned(file) as opened:
            first, *lines = opened.read().split(b"\n")[:-1]
        record = _Record(**json.loads(first))
        work = Path(record.work)
        if record.output != _key(output) or not record.token_file.is_file() or work.is_symlink():
            return None
        owned.check_folder(work, "work folder")
        return record, [note for line in lines if (note := _note(line)) is not None]
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _note(line: bytes) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(line)
    return None


def _key(output: Path) -> str:
    return str(output.parent.resolve() / output.name)


def _record_file(output: Path) -> Path:
    digest = hashlib.sha256(_key(output).encode(errors="surrogateescape")).hexdigest()
    return cache_folder() / RECORDS_FOLDER / f"{digest[:32]}.jsonl"


@contextlib.contextmanager
def _locked(file: Path | None) -> Iterator[None]:
    """Keep other processes from making a work folder meanwhile, where a lock can be had."""
    if file is None:
        yield
        return
    descriptor = owned.open_own_file(file.parent / _LOCK_FILE, os.O_RDWR | os.O_CREAT)
    try:
        with contextlib.suppress(OSError):  # as on some network file systems
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
