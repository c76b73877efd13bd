"""Output that never stops a run, and that no terminal obeys, whatever it is made of.

Only the standard library is used here: a guard lives beside every rank and has to stay small.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any, TextIO

from diablo_ds.files.shown_text import shown_line, shown_output
from diablo_ds.ranks.live_line import live_line

BUFFER_BYTES = 4 << 20
"""What waits for a reader; beyond it, output is dropped."""


class ShownStream(io.TextIOWrapper):
    """A stream to a person: control characters, but for lines and progress bars, are written out.

    So are characters that its encoding lacks, such as `\\u6587`. The live line stays below.
    """

    def write(self, text: str, /) -> int:
        """Write text; return its length."""
        with live_line.aside(self, text):
            super().write(shown_output(text))
        return len(text)

    def write_line(self, line: str) -> None:
        """Write a line of another process of this run, with the bars that it draws."""
        super().write(shown_line(line))

    def write_as_is(self, text: str) -> None:
        """Write a result to another program, character by character."""
        super().write(text)


def make_safe() -> None:
    """Have stdout and stderr take any character, and show control characters; see `ShownStream`.

    A stream that this process was started without leads nowhere: a file that is opened later must
    not take its place.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif type(stream) is io.TextIOWrapper:
            encoding, is_by_line = stream.encoding, stream.line_buffering
            new = ShownStream(
                stream.detach(),
                encoding=encoding,
                errors="backslashreplace",
                line_buffering=is_by_line,
            )
            setattr(sys, name, new)
            setattr(sys, f"__{name}__", new)


def lost_reader() -> list[int]:
    """Return which of stdout and stderr are pipes that nobody reads any more."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)  # errors are always reported
    return [descriptor for descriptor, event in poll.poll(0) if event & select.POLLERR]


def discard_output() -> None:
    """Let what is still written to a pipe without a reader lead nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in lost_reader():
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


class Outlet:
    """Writes from a thread of its own, so that neither a slow reader nor an error holds up a run.

    What does not fit into the buffer, or cannot be written, is dropped; a line says how much.

    Args:
        remark: what that line adds, such as where all of the output is.
        buffer_bytes: what may wait to be written.
    """

    def __init__(self, remark: str = "", *, buffer_bytes: int = BUFFER_BYTES) -> None:
        self.remark = remark
        self._buffer_bytes = buffer_bytes
        self._chunks: deque[tuple[int, bytes]] = deque()
        self._num_waiting = self._num_lost = 0
        self._changed = threading.Condition()
        self._process = os.getpid()
        self._thread: threading.Thread | None = None

    def write(self, data: bytes, descriptor: int) -> None:
        """Have bytes written, after those that came before; returns at once."""
        if os.getpid() != self._process:  # a fork has no such thread
            write_all(descriptor, data)
            return
        with self._changed:
            # Once some was dropped, half of the buffer must be free again: few, large gaps.
            limit = self._buffer_bytes // 2 if self._num_lost else self._buffer_bytes
            if self._num_waiting + len(data) > limit:
                self._num_lost += len(data)
                return
            self._append_remark(descriptor)
            self._append(data, descriptor)

    def drain(self, timeout_s: float | None = None) -> bool:
        """Wait until all was written; return whether it was, in that time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._num_waiting, timeout_s)

    def _append_remark(self, descriptor: int) -> None:
        if self._num_lost:
            remark = f"; {self.remark}" if self.remark else ""
            text = f"\n[{self._num_lost:,} bytes of output are missing here{remark}]\n"
            self._num_lost = 0
            self._append(text.encode(errors="replace"), descriptor)

    def _append(self, data: bytes, descriptor: int) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        self._chunks.append((descriptor, data))
        self._num_waiting += len(data)
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._chunks)
                descriptor, data = self._chunks.popleft()
            num_left = write_all(descriptor, data)
            with self._changed:
                self._num_lost += num_left
                self._num_waiting -= len(data)
                self._changed.notify_all()


def write_all(descriptor: int, data: bytes) -> int:
    """Write bytes, and wait where nobody takes them; return how many could not be written."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # another process that has the same file made it so
            poller = select.poll()
            poller.register(descriptor, select.POLLOUT)
            poller.poll()
        except OSError:  # nobody reads it any more, or the disk is full
            break
    return len(view)


class _Raw(io.RawIOBase):
    """The binary stream on top of an outlet."""

    def __init__(self, outlet: Outlet, descriptor: int) -> None:
        super().__init__()
        self._outlet, self._descriptor = outlet, descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any, /) -> int:
        copy = bytes(data)
        self._outlet.write(copy, self._descriptor)
        return len(copy)


@contextlib.contextmanager
def unblocked(remark: str = "") -> Iterator[None]:
    """Replace stdout and stderr inside the block by streams that neither block nor fail.

    At its end it waits until all was written: nothing is held up by that any more.

    Args:
        remark: where else the output is, for the line that says that some is missing.
    """
    old: dict[str, TextIO] = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    outlets: dict[Any, Outlet] = {}
    streams = []
    for name, stream in old.items():
        try:
            descriptor = stream.fileno()
            stream.flush()
            found = os.fstat(descriptor)
        except (OSError, ValueError, AttributeError):  # not a file, as in tests
            continue
        # Two streams of one terminal stay in order.
        outlet = outlets.setdefault((found.st_dev, found.st_ino), Outlet(remark))
        raw: Any = _Raw(outlet, descriptor)
        new = ShownStream(
            raw,
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=True,  # a line with its end at once, or another's comes in between
        )
        streams.append(new)
        setattr(sys, name, new)
    try:
        yield
    finally:
        for name, stream in old.items():
            setattr(sys, name, stream)
        for stream in streams:
            stream.flush()
        for outlet in outlets.values():
            outlet.drain()
