"""Messages between the process of a program and that of its tests: plain values, nothing else.

What is not plain stays where it is and travels as a number. The tests' process unpickles with a
short list of classes, none of which runs code of the sender.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import io
import os
import pickle
import struct
from collections.abc import Callable
from typing import Any

_MAX_BYTES = 32 << 20
_LENGTH = struct.Struct("<I")
_CLASSES: tuple[type, ...] = (
    set,
    frozenset,
    complex,
    bytearray,
    range,
    slice,
    collections.Counter,
    collections.OrderedDict,
    collections.deque,
    collections.defaultdict,
    datetime.date,
    datetime.datetime,
    datetime.time,
    datetime.timedelta,
    datetime.timezone,
    decimal.Decimal,
    fractions.Fraction,
)
_PLAIN = {*_CLASSES, type(None), bool, int, float, str, bytes, list, tuple, dict}
_BY_NAME = {(c.__module__, c.__qualname__): c for c in (*_CLASSES, int, float, str, list, dict)}
_BY_NAME["_decimal", "Decimal"] = _BY_NAME["decimal", "Decimal"] = decimal.Decimal


class Channel:
    """One end of the exchange, over two pipes."""

    def __init__(
        self,
        receiving_fd: int,
        sending_fd: int,
        *,
        keep: Callable[[Any], Any],
        find: Callable[[Any], Any],
    ) -> None:
        """Open it.

        Args:
            receiving_fd: pipe to read from.
            sending_fd: pipe to write to.
            keep: returns a number for a value that is not plain; may raise.
            find: returns the value of such a number, as this side knows it.
        """
        self._in, self._out = receiving_fd, sending_fd
        self._keep, self._find = keep, find

    def send(self, message: Any) -> None:
        """Send a message.

        Raises:
            OSError: if the other side has ended.
        """
        buffer = io.BytesIO()
        _Pickler(buffer, self._keep).dump(message)
        data = buffer.getvalue()
        data = _LENGTH.pack(len(data)) + data
        while data:
            data = data[os.write(self._out, data) :]

    def receive(self) -> Any:
        """Return the next message.

        Raises:
            EOFError: if the other side has ended.
            pickle.UnpicklingError: if it is too large, or holds what no message holds.
        """
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        if length > _MAX_BYTES:
            raise pickle.UnpicklingError(f"a message of {length} bytes")
        return _Unpickler(io.BytesIO(self._read(length)), self._find).load()

    def _read(self, length: int) -> bytes:
        parts = []
        while length:
            part = os.read(self._in, min(length, 1 << 20))
            if not part:
                raise EOFError("the other side has ended")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, keep: Callable[[Any], Any]) -> None:
        super().__init__(file, protocol=4)
        self._keep = keep

    def persistent_id(self, value: Any) -> Any:
        if type(value) in _PLAIN:
            return None
        if (
            isinstance(value, type)
            and _BY_NAME.get((value.__module__, value.__qualname__)) is value
        ):
            return None
        return self._keep(value)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, find: Callable[[Any], Any]) -> None:
        super().__init__(file)
        self._find = find

    def persistent_load(self, number: Any) -> Any:
        return self._find(number)

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _BY_NAME[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"a value of {module}.{name}") from None
