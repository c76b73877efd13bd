"""TensorBoard's event files: written record by record, and cut where a run continues."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diablo_ds.files import owned
from diablo_ds.files.atomic import new_file

_PATTERN = "events.out.tfevents.*"
_LARGEST_RECORD = 1 << 28
"""Bytes; a longer record is taken for damage."""
_numbers = itertools.count()


class EventFile:
    """A new event file in a folder; each event is in it when the call returns.

    TensorBoard's own writer keeps events in a thread for up to two minutes: a run that is killed
    would leave a gap before the step that it continues from.

    Raises:
        OSError: if it cannot be written.
        UserError: if the folder is not this user's.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event: Any = Event
        owned.make_folder(folder, "TensorBoard folder")
        # TensorBoard reads a folder's files in the order of their names.
        written = f"{int(time.time()):010d}.{next(_numbers):06d}"
        name = f"{written}.{socket.gethostname()}.{os.getpid()}"
        self._file = owned.open_owned(folder / _PATTERN.replace("*", name), "xb")
        self._writer: Any = RecordWriter(self._file)
        self.write(file_version="brain.Event:2")

    def write(self, **fields: Any) -> None:
        """Write an event with the fields of TensorBoard's `Event`, now."""
        event = self._event(wall_time=time.time(), **fields)
        self._writer.write(event.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def cut_event_files(folder: Path, last_step: int, is_kept: Callable[[str], bool]) -> None:
    """Remove what event files hold of later steps, and records that were not written to their end.

    Readers differ in what they make of a step that comes twice, so the files themselves hold each
    step once.

    Args:
        folder: of the files; those in folders below it are left.
        last_step: whose events are kept, and those before.
        is_kept: tells of a tag whether its values are kept.
    """
    for path in folder.glob(f".{_PATTERN}.tmp"):  # what was left where a cut was killed
        path.unlink()
    for path in sorted(folder.glob(_PATTERN)):
        with (
            owned.open_owned(path) as file,
            new_file(path) as temporary,
            owned.open_owned(temporary, "wb") as cut,
        ):
            for record, event in _records(file):
                tags = [value.tag for value in event.summary.value]
                if event.step <= last_step and all(map(is_kept, tags)):
                    cut.write(record)


def _records(file: Any) -> Iterator[tuple[bytes, Any]]:
    """Yield each whole record and the event in it, up to the first one that is damaged."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    while len(header := file.read(12)) == 12:
        length, crc = struct.unpack("<QI", header)
        if crc != masked_crc32c(header[:8]) or length > _LARGEST_RECORD:
            return
        rest = file.read(length + 4)
        if len(rest) < length + 4:
            return
        try:
            yield header + rest, Event.FromString(rest[:-4])
        except DecodeError:
            return
