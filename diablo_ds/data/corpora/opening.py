"""Source files as byte streams: opened and decompressed, with damage told from disk errors."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from diablo_ds.errors import UserError
from diablo_ds.files.bounds import Growth
from diablo_ds.files.strict_json import foreign_encoding

_BUFFER_BYTES = 1 << 18
_MAX_XZ_BYTES = 1 << 28
"""Memory that an .xz file may ask for; `xz -9` needs 65 MiB to decompress."""


@contextmanager
def open_source(path: Path, on_bytes: Callable[[int], object]) -> Iterator[IO[bytes]]:
    """Open a text file for reading, decompressed.

    Args:
        path: plain or compressed.
        on_bytes: called with the number of bytes of each read, as stored on disk.

    Raises:
        UserError: if it cannot be opened, is damaged (also later, while it is read), or is not in
            UTF-8.
        OSError: if the disk fails.
    """
    try:
        raw = path.open("rb", buffering=0)
    except OSError as error:
        raise unopened(path, error) from None
    with io.BufferedReader(_Counting(raw, on_bytes), _BUFFER_BYTES) as packed:
        file = _decompressed(packed, path)
        if encoding := foreign_encoding(file.peek(4)[:4]):
            raise UserError(
                f"source file must be UTF-8; got {path}, which is {encoding}; convert it, with "
                "`iconv -t UTF-8` for example"
            )
        yield file


def unopened(path: Path, error: OSError) -> UserError:
    """Return the error for a source file that cannot be opened."""
    return UserError(f"source file must be readable; got {path}: {error.strerror or error}")


def not_utf8(path: Path, error: UnicodeDecodeError, line: int | None = None) -> UserError:
    """Return the error for a source file that is not UTF-8."""
    where = f", line {line}" if line else ""
    return UserError(f"source file must be UTF-8; got {path}{where}: {error.reason}")


def _decompressed(packed: Any, path: Path) -> Any:
    ending = path.suffix.lower()
    stream: Any
    if ending == ".gz":
        stream = gzip.GzipFile(fileobj=packed)
    elif ending == ".bz2":
        stream = bz2.BZ2File(packed)
    elif ending == ".xz":
        stream = _Xz(packed)
    elif ending == ".zst":
        import pyarrow as pa

        stream = pa.CompressedInputStream(packed, "zstd")
    else:
        return packed
    return io.BufferedReader(_Decompressed(stream, path), _BUFFER_BYTES)


class _Xz:
    """An .xz stream whose header cannot ask for any amount of memory, as `lzma.LZMAFile` allows."""

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed = packed
        self._decompressor = self._new()

    def _new(self) -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(memlimit=_MAX_XZ_BYTES)

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes; none at the end of the file."""
        while True:
            if self._decompressor.eof:  # another stream may follow, after zeros
                rest = self._decompressor.unused_data.lstrip(b"\0") or self._next_block()
                if not rest:
                    return b""
                self._decompressor = self._new()
                data = self._decompressor.decompress(rest, size)
            elif self._decompressor.needs_input:
                block = self._packed.read(_BUFFER_BYTES)
                if not block:
                    raise EOFError("compressed file ended before the end of its stream")
                data = self._decompressor.decompress(block, size)
            else:
                data = self._decompressor.decompress(b"", size)
            if data:
                return data

    def _next_block(self) -> bytes:
        while block := self._packed.read(_BUFFER_BYTES):
            if rest := block.lstrip(b"\0"):
                return rest
        return b""


class _Counting(io.RawIOBase):
    """A file that reports the number of bytes read from it."""

    def __init__(self, file: io.FileIO, on_bytes: Callable[[int], object]) -> None:
        self._file = file
        self._on_bytes = on_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        num_bytes = self._file.readinto(buffer)
        self._on_bytes(num_bytes)
        return num_bytes

    def close(self) -> None:
        self._file.close()
        super().close()


class _Decompressed(io.RawIOBase):
    """A decompressed stream; damage raises an error that names the file."""

    def __init__(self, stream: Any, path: Path) -> None:
        self._stream = stream
        self._path = path
        self._growth = Growth(path, path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # from the disk, not from the decompressor
            raise UserError(f"source file must be undamaged; got {self._path}: {error}") from None
        self._growth.add(len(data))
        buffer[: len(data)] = data
        return len(data)
