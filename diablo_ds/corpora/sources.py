"""Source files to raw rows, each with the place it came from; nothing is held in memory."""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from diablo_ds.hub import hub_folder, looks_like_hub_name

FORMATS = (".jsonl", ".json", ".csv", ".parquet")
COMPRESSIONS = (".gz", ".zst")
_PATTERNS = [f"*{form}{end}" for form in FORMATS for end in ("", *COMPRESSIONS)]
_HELD_BACK = ("test", "valid", "val", "dev", "eval", "heldout")
"""Names, or their first part, of files that a folder keeps for evaluation."""
_BLOCK_CHARACTERS = 1 << 20
_MAX_OBJECT_CHARACTERS = 1 << 26


class Source(NamedTuple):
    """One file of a source, and the name under which its rows are counted and mixed."""

    name: str
    path: Path


class RawRow(NamedTuple):
    """One row as its file holds it."""

    line: int
    """Line where it starts, counted from 1; in a parquet file, the row."""
    value: bytes | dict[str, Any] | Unreadable
    """A line of JSON, not parsed yet; the row's fields; or why it could not be read."""

    def size(self) -> int:
        """Return about how many characters the row has, without parsing it."""
        if isinstance(self.value, bytes):
            return len(self.value)
        values = self.value.values() if isinstance(self.value, dict) else ()
        return sum(len(value) for value in values if isinstance(value, str))


class Unreadable(NamedTuple):
    """Why a row could not be read."""

    reason: str


def find_sources(
    texts: Sequence[str], *, may_be_tests: bool = False
) -> tuple[list[Source], list[Path]]:
    """Find the files that source options name.

    Args:
        texts: each a file, folder, glob or hub name, or name=one of them. Without a name, a file is
            called after its task's folder if it is called train, or after itself.
        may_be_tests: whether a folder may hold nothing but test files.

    Returns:
        The files in a fixed order, and those of folders that were passed over: test files.

    Raises:
        ValueError: if one matches no file, or a file's form is not known.
    """
    sources: list[Source] = []
    passed_over: list[Path] = []
    for text in texts:
        name, equals, rest = text.partition("=")
        named = bool(equals) and "/" not in name and not Path(text).exists()
        files, held_back = _find_files(rest if named else text)
        if not files and not (held_back and may_be_tests):
            note = f"; {len(held_back)} files look like test data: name them, if you want them"
            raise ValueError(
                f"source must be an existing file, folder, glob or hub name; got source={text!r}"
                f"{note if held_back else ''}"
            )
        passed_over += held_back
        sources += [Source(name if named else _default_name(file), file) for file in files]
    if twice := sorted(
        {str(s.path) for s in sources if [t.path for t in sources].count(s.path) > 1}
    ):
        raise ValueError(f"each source file must be named once; got {twice[0]} twice")
    return sources, passed_over


def _find_files(text: str) -> tuple[list[Path], list[Path]]:
    path = Path(text).expanduser()
    held_back: list[Path] = []
    if path.is_file():
        files = [path]
    elif path.is_dir() or (not glob.has_magic(text) and looks_like_hub_name(text)):
        folder = path if path.is_dir() else hub_folder(text, "dataset", _PATTERNS)
        found = sorted({file for pattern in _PATTERNS for file in folder.rglob(pattern)})
        files = [file for file in found if not _is_held_back(file)]
        held_back = [file for file in found if _is_held_back(file)]
    else:
        files = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    for file in files:
        if _form(file) not in FORMATS:
            raise ValueError(
                f"source file must be one of {', '.join(FORMATS)}, plain or compressed as "
                f"{', '.join(COMPRESSIONS)}; got {file}"
            )
    return files, held_back


def _form(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def _is_held_back(path: Path) -> bool:
    words = _stem(path).lower().replace("-", "_").split("_")
    return any(word.startswith(_HELD_BACK) for word in words)


def _default_name(path: Path) -> str:
    stem = _stem(path)
    return path.parent.name if stem.startswith(("train", *_HELD_BACK)) else stem


def read_rows(path: Path, on_bytes: Callable[[int], object] = int) -> Iterator[RawRow]:
    """Yield the rows of one file, in its order, in bounded memory.

    JSON may be one object a line, an array of objects, or one object whose fields are lists.

    Args:
        path: the file.
        on_bytes: called with the bytes read each time, as they lie on disk.

    Raises:
        ValueError: if the file is damaged in a way that hides where rows begin.
        OSError: if it cannot be read.
    """
    form = _form(path)
    if form == ".parquet":
        yield from _read_parquet(path)
        on_bytes(path.stat().st_size)
        return
    with _open(path, on_bytes) as file:
        if form == ".csv":
            yield from _read_csv(file, path)
        elif form == ".jsonl":
            yield from _read_lines(file)
        else:
            yield from _read_json(file, path)


class _Counting(io.RawIOBase):
    """A file that tells how many bytes were read from it."""

    def __init__(self, path: Path, on_bytes: Callable[[int], object]) -> None:
        self._file = path.open("rb", buffering=0)
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


@contextmanager
def _open(path: Path, on_bytes: Callable[[int], object]) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressed."""
    try:
        with io.BufferedReader(_Counting(path, on_bytes), 1 << 18) as file:
            if path.suffix.lower() == ".gz":
                yield io.BufferedReader(gzip.GzipFile(fileobj=file), 1 << 18)
            elif path.suffix.lower() == ".zst":
                import pyarrow as pa

                yield io.BufferedReader(pa.CompressedInputStream(file, "zstd"), 1 << 18)
            else:
                yield file
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"source file must be whole; got {path}: {error}") from None


def _read_lines(file: IO[bytes], first: bytes = b"") -> Iterator[RawRow]:
    for number, line in enumerate(_chained(first, file), start=1):
        if line.strip():
            yield RawRow(number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)


def _chained(first: bytes, file: IO[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from file


def _read_json(file: IO[bytes], path: Path) -> Iterator[RawRow]:
    first = file.readline(_BLOCK_CHARACTERS)  # an array may be a single line of any length
    start = first.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"{") and _is_row(start):
        yield from _read_lines(file, first)
        return
    text = io.TextIOWrapper(io.BufferedReader(_Rewound(first, file)), encoding="utf-8-sig")
    try:
        if start.startswith(b"{"):
            yield from _read_lists(text, path)
        else:
            yield from _read_array(text, path)
    except UnicodeDecodeError as error:
        raise ValueError(f"source file must be UTF-8; got {path}: {error}") from None


def _is_row(line: bytes) -> bool:
    """Return whether a line is a row by itself, and not an object with a list for each field."""
    try:
        value = json.loads(line)
    except ValueError:
        return False
    return not all(
        isinstance(v, list) and all(isinstance(x, str) for x in v) for v in value.values()
    )


class _Rewound(io.RawIOBase):
    """A stream with its first bytes put back, for a file that cannot seek."""

    def __init__(self, first: bytes, rest: IO[bytes]) -> None:
        self._first = first
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._first[: len(buffer)] if self._first else self._rest.read(len(buffer))
        self._first = self._first[len(data) :] if self._first else b""
        buffer[: len(data)] = data
        return len(data)


def _read_array(text: IO[str], path: Path) -> Iterator[RawRow]:
    """Yield the objects of a JSON array, one at a time."""
    decoder = json.JSONDecoder()
    buffer, line, at_end = "", 1, False
    opened = False
    while True:
        buffer, line = _skip(buffer, line, " \t\r\n," if opened else " \t\r\n")
        if not buffer and not at_end:
            buffer = text.read(_BLOCK_CHARACTERS)
            at_end = not buffer
            continue
        if not opened:
            if not buffer:
                return  # an empty file
            if buffer[0] != "[":
                raise _bad_json(path, line, "an array or an object must come first")
            opened, buffer = True, buffer[1:]
            continue
        if buffer.startswith("]"):
            return
        try:
            value, end = decoder.raw_decode(buffer)
        except json.JSONDecodeError as error:
            may_go_on = error.msg.startswith("Unterminated") or error.pos > len(buffer) - 16
            more = ""
            if may_go_on and not at_end and len(buffer) < _MAX_OBJECT_CHARACTERS:
                more = text.read(max(_BLOCK_CHARACTERS, len(buffer)))
            if not more:
                bad_line = line + buffer.count("\n", 0, error.pos)
                raise _bad_json(path, bad_line, error.msg) from None
            buffer += more
            continue
        if end == len(buffer) and not at_end and not isinstance(value, dict):
            more = text.read(_BLOCK_CHARACTERS)  # a number may go on
            at_end = not more
            buffer += more
            continue
        yield RawRow(line, value if isinstance(value, dict) else _no_object(value))
        line += buffer.count("\n", 0, end)
        buffer = buffer[end:]


def _skip(buffer: str, line: int, characters: str) -> tuple[str, int]:
    rest = buffer.lstrip(characters)
    return rest, line + buffer.count("\n", 0, len(buffer) - len(rest))


def _read_lists(text: IO[str], path: Path) -> Iterator[RawRow]:
    """Yield the rows of one object whose fields are lists; fields of other lengths are left out."""
    try:
        columns = json.load(text)
    except json.JSONDecodeError as error:
        raise _bad_json(path, error.lineno, error.msg) from None
    lists = {key: value for key, value in columns.items() if isinstance(value, list)}
    if not lists:
        yield RawRow(1, columns)
        return
    num_rows = len(next(iter(lists.values())))
    kept = {key: value for key, value in lists.items() if len(value) == num_rows}
    for row in range(num_rows):
        yield RawRow(row + 1, {key: value[row] for key, value in kept.items()})


def _read_csv(file: IO[bytes], path: Path) -> Iterator[RawRow]:
    try:
        reader = csv.DictReader(
            io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True
        )
        line = 2
        for row in reader:
            if None in row or None in row.values():
                yield RawRow(line, Unreadable("a row must have as many fields as the header"))
            else:
                yield RawRow(line, dict(row))
            line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise ValueError(f"source file must be UTF-8; got {path}: {error}") from None
    except csv.Error as error:
        raise ValueError(
            f"source file must be valid CSV; got {path}, line {line}: {error}"
        ) from None


def _read_parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield RawRow(number, row)
    except pa.ArrowException as error:
        raise ValueError(f"source file must be valid parquet; got {path}: {error}") from None


def parse(value: bytes | dict[str, Any] | Unreadable) -> dict[str, Any] | Unreadable:
    """Return a raw row's fields, or why it has none."""
    if not isinstance(value, bytes):
        return value
    try:
        row = json.loads(value.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Unreadable(f"a row must be UTF-8: {error.reason}")
    except json.JSONDecodeError as error:
        return Unreadable(f"a row must be valid JSON: {error.msg}, column {error.colno}")
    except RecursionError:
        return Unreadable("a row must be valid JSON: nested too deep")
    return row if isinstance(row, dict) else _no_object(row)


def _no_object(value: Any) -> Unreadable:
    return Unreadable(f"a row must be a JSON object: {type(value).__name__}")


def _bad_json(path: Path, line: int, message: str) -> ValueError:
    return ValueError(f"source file must be valid JSON; got {path}, line {line}: {message}")
