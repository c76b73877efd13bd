"""Files that are small and valid, or nearly, and take all memory or time of a careless reader."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_MEGABYTE = 1_000_000

DEEP_JSON = [b"[" * 200_000, b'{"a":' * 100_000, b"[" * 90 + b"]" * 90, b'{"a":' * 200 + b"1"]
MANY_VALUES = [b"[" + b"[]," * 6_000_000 + b"[]]"]
JSON = [*DEEP_JSON, b"", b"null", b"[]", b"{}", b"1" * 5000, b'"' + b"a" * 2_000_000, b"1e999"]
YAML = [b"[" * 100_000, b"- " * 50_000 + b"a", b"? " * 5_000, b"&a [*a]", b"a: " * 50_000, b"!!x 1"]
YAML += [b"a: !!python/object/apply:os.system [id]", b"a: 1\n" * 50_000, b"%YAML 9.9\n---\na"]
LINES = [b"[" * 5000 + b"\n", b"a" * 3_000_000, b"\n" * 1_000_000, b"\0" * 1000, b"{}\n" * 100_000]
CSV = [
    b"," * 2_000_000,
    b'a,b\n"' + b"x" * 20_000_000,
    b"a,b\n" + b'"\n",' * 3_000_000 + b"x",
    b"a" * 17_000_000,
]


def lines_of_zeros(num_bytes: int = 160 * _MEGABYTE) -> bytes:
    """Return one endless line, compressed: 0.2 MB of .gz."""
    return _gzip(b"\0" * _MEGABYTE, num_bytes // _MEGABYTE)


def repeated_rows(num_bytes: int = 160 * _MEGABYTE) -> bytes:
    """Return good rows, far more than their compressed size can hold."""
    row = b'{"prompt": "a", "completion": "b"}\n'
    return _gzip(row * (_MEGABYTE // len(row)), num_bytes // _MEGABYTE)


def _gzip(block: bytes, count: int) -> bytes:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9, mtime=0) as file:
        for _ in range(count):
            file.write(block)
    return packed.getvalue()


def bzipped() -> bytes:
    """Return 160 MB of zeros in some hundred bytes."""
    return bz2.compress(b"\0" * 160 * _MEGABYTE)


def xz_with_large_dictionary() -> bytes:
    """Return a small stream whose header asks for 1.5 GiB to decompress it."""
    packed = bytearray(lzma.compress(b'{"prompt": "a", "completion": "b"}\n', lzma.FORMAT_ALONE))
    packed[1:5] = struct.pack("<I", 3 << 29)
    return bytes(packed)


def zstd_zeros() -> bytes:
    """Return 160 MB of zeros in some kilobytes."""
    return bytes(pa.Codec("zstd").compress(b"\0" * 160 * _MEGABYTE, asbytes=True))


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    """Return a parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd", **options)
    return bytes(sink.getvalue().to_pybytes())


def parquet_files() -> list[bytes]:
    """Return a text that many rows repeat, one huge text, a huge list, and rows of nothing."""
    long = _repeated("a" * _MEGABYTE, 5000)
    many = pa.ListArray.from_arrays(
        pa.array([0, 5_000_000], pa.int32()), _repeated("b" * 1000, 5_000_000)
    )
    short = pa.array(["b"])
    return [
        parquet({"prompt": long, "completion": _repeated("b", 5000)}, store_schema=False),
        parquet({"prompt": ["a" * 160 * _MEGABYTE], "completion": short}, use_dictionary=False),
        parquet({"prompt": many, "completion": short}, store_schema=False),
        parquet({"prompt": pa.nulls(5_000_000), "completion": pa.nulls(5_000_000)}),
    ]


def _repeated(text: str, count: int) -> Any:
    indices = pa.array(np.zeros(count, np.int32))
    return pa.DictionaryArray.from_arrays(indices, pa.array([text]))


def arrow(table: Any, *, compressed: bool = False, is_file: bool = False) -> bytes:
    """Return a table as an Arrow stream or file."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd" if compressed else None)
    new = pa.ipc.new_file if is_file else pa.ipc.new_stream
    with new(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def arrow_files() -> list[bytes]:
    """Return compressed zeros, and one run of 40 million rows."""
    zeros = pa.table({"prompt": ["a" * 160 * _MEGABYTE], "completion": ["b"]})
    ends, values = pa.array([40_000_000], pa.int32()), pa.array(["a"])
    run = pa.RunEndEncodedArray.from_arrays(ends, values)
    return [
        arrow(zeros, compressed=True),
        arrow(pa.table({"prompt": run, "completion": run})),
    ]


def arrow_with_wild_offsets() -> list[bytes]:
    """Return texts whose offsets lead out of their file."""
    texts = pa.table({"prompt": ["a", "b"], "completion": ["c", "d"]})
    good, wild = (struct.pack("<3i", 0, *ends) for ends in ((1, 2), (2**31 - 2, 2**31 - 1)))
    return [
        *(arrow(texts, is_file=is_file).replace(good, wild) for is_file in (False, True)),
    ]


def safetensors(header: object, data: bytes = b"") -> bytes:
    """Return a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def safetensors_files() -> list[bytes]:
    """Return headers that are too long, too deep, or lead out of the file."""
    good = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

    def one(**changes: object) -> bytes:
        return safetensors({"a": {**good, **changes}}, b"\0" * 8)

    return [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**40) + b"{}",
        safetensors(b"[" * 100_000),
        safetensors(b'{"a":' * 100_000),
        safetensors([1]),
        safetensors({"a": None}),
        one(data_offsets=[8]),
        one(data_offsets=["0", "8"]),
        one(data_offsets=[-8, 0]),
        one(data_offsets=[8, 0]),
        one(data_offsets=[0, 2**64]),
        one(data_offsets=None),
        one(shape=[-1, -2]),
        one(shape=[2**40, 2**40]),
        one(shape=["2"]),
        one(shape=[0] * 100_000),
        one(dtype=["F32"]),
        one(dtype="F4"),
        safetensors({"a": good, "b": good}, b"\0" * 8),
        safetensors(b'{"a": 1, "a": 2}'),
        safetensors(
            {f"{n}": {**good, "shape": [0], "data_offsets": [0, 0]} for n in range(50_000)}
        ),
    ]
