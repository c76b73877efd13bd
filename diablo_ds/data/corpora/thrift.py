"""Structs of Thrift's compact protocol, in which parquet files describe themselves.

The protocol: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from typing import IO, Any, NamedTuple

_MAX_BYTES = 1 << 24
_MAX_VALUES = 1 << 22
"""Of one struct, inner ones included: an empty one takes a byte of the file and 64 in memory."""
_BOOLEANS, _BYTE, _INTEGERS, _DOUBLE, _BINARY = (1, 2), 3, (4, 5, 6), 7, 8
_LISTS, _MAP, _STRUCT = (9, 10), 11, 12
_MAX_DEPTH = 16


class Struct(NamedTuple):
    """What a struct holds."""

    fields: dict[int, Any]
    """By number: integers, texts as bytes, lists and structs; None for anything else."""
    length: int
    """Bytes in the file."""


def read_struct(file: IO[bytes], place: int) -> Struct:
    """Read the struct that begins at a place of a file.

    Raises:
        IndexError: if the file ends within it.
        ValueError: if it is no struct, or nested too deeply.
    """
    reader = _Reader(file, place)
    return Struct(reader.struct(), reader.place)


class _Reader:
    """Reads a struct of Thrift's compact protocol from a place in a file."""

    def __init__(self, file: IO[bytes], place: int) -> None:
        file.seek(place)
        self._file = file
        self._data = file.read(256)
        self.place = 0
        """Bytes that were read."""
        self._num_values = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Return the fields of a struct.

        Raises:
            IndexError: if the file ends.
            ValueError: if it is no struct.
        """
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            delta, kind = divmod(head, 16)
            number = number + delta if delta else self._signed()
            fields[number] = self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        self._num_values += 1
        if depth > _MAX_DEPTH or self._num_values > _MAX_VALUES:
            raise ValueError("it is nested too deeply, or has too many values")
        if kind in _BOOLEANS:
            return None
        if kind in _INTEGERS:
            return self._signed()
        if kind == _BINARY:
            return self._bytes(self._unsigned())
        if kind in (_BYTE, _DOUBLE):
            self._bytes(1 if kind == _BYTE else 8)
            return None
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in _LISTS:
            count, inner = divmod(self._byte(), 16)
            count = self._unsigned() if count == 15 else count
            return [self._element(inner, depth) for _ in range(count)]
        if kind == _MAP:
            count = self._unsigned()
            kinds = divmod(self._byte(), 16) if count else (0, 0)
            for _ in range(count):
                for inner in kinds:
                    self._element(inner, depth)
            return None
        raise ValueError(f"it has a field of kind {kind}")

    def _element(self, kind: int, depth: int) -> Any:
        # In a list, a boolean has a byte of its own.
        return self._value(_BYTE if kind in _BOOLEANS else kind, depth + 1)

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _bytes(self, count: int) -> bytes:
        start, self.place = self.place, self.place + count
        while self.place > len(self._data):
            more = self._file.read(len(self._data))
            if not more or len(self._data) > _MAX_BYTES:
                raise IndexError("it has no end")
            self._data += more
        return self._data[start : self.place]

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number has no end")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
