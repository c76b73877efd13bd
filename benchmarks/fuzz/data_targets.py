"""Files of rows and prepared datasets: what is read from data of other people."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.fuzz import hostile
from benchmarks.fuzz.target import Target, files_below
from benchmarks.fuzz.valid import MANIFEST

ROWS: list[dict[str, Any]] = [
    {"prompt": "a\u00e9", "completion": "b\U0001f98a", "n": 1.5},
    {"prompt": "c", "completion": "d", "n": -7},
    {"messages": [{"role": "user", "content": "e"}, {"role": "assistant", "content": "f"}]},
]
_ENCODED = 1000
"""Rows of a file that are tokenised; hostile files have millions."""
_LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
_COLUMNS = {key: [row[key] for row in ROWS[:2]] for key in ROWS[0]}
_CSV = b'prompt,completion,n\n"a\n""b""",c,1\nd,e,2\n'


_MANY_ROWS = b"[" + b"[]," * 500_000 + b"[]]"


def data_targets(folder: Path, *, large: bool) -> list[Target]:
    """Return the readers of data.

    Args:
        folder: to make valid files in.
        large: also read files that would take much memory, each of which takes a second.
    """
    from diablo_ds.data.corpora.encoding import RowEncoder
    from diablo_ds.data.corpora.reading import read_rows
    from tests.tiny import tiny_tokenizer

    encoder = RowEncoder("auto", "auto", tiny_tokenizer())

    def read(name: str) -> Any:
        def rows_of(place: Path) -> None:
            rows: list[Any] = []
            for row in read_rows(place / name):
                if len(rows) < _ENCODED:
                    rows.append(row)
            for result in encoder.encode(rows):
                getattr(result, "reason", "").encode()

        return rows_of

    made = hostile_rows() if large else {}
    targets = []
    for name, contents in valid_rows().items():
        for number, content in enumerate(contents):
            targets.append(
                Target(
                    f"rows in {name}" + (f", {number + 1}" if len(contents) > 1 else ""),
                    {name: content},
                    [name],
                    read(name),
                    {name: made.get(name, ())} if not number else {},
                )
            )
    return [*targets, *_prepared(folder)]


def valid_rows() -> dict[str, list[bytes]]:
    """Return valid files of rows by name, in every format and compression."""
    nested = [{"x": [1, None]}, {"x": []}]
    table = pa.table({"prompt": ["a", "b"], "completion": ["c", "d"], "n": nested})
    words = pa.array(["a", "b", "a"]).dictionary_encode()
    encoded = pa.table({"prompt": words, "completion": pa.array(["c", None, "\u00e9"])})
    columns = table.to_pydict()
    return {
        "a.jsonl": [_LINES],
        "a.json": [_LINES, json.dumps(ROWS).encode(), json.dumps(_COLUMNS, indent=1).encode()],
        "a.csv": [_CSV],
        "a.tsv": [b"prompt\tcompletion\na\tb\n"],
        "a.txt": [b"one\n\ntwo\xc3\xa9 three\n" * 5],
        "a.parquet": [
            hostile.parquet(columns),
            hostile.parquet(columns, use_dictionary=False, data_page_version="2.0"),
            hostile.parquet(encoded.to_pydict(), store_schema=False),
        ],
        "a.arrow": [
            hostile.arrow(table),
            hostile.arrow(encoded, is_file=True),
            hostile.arrow(encoded, compressed=True),
        ],
        "a.jsonl.gz": [gzip.compress(_LINES, mtime=0)],
        "a.json.xz": [lzma.compress(json.dumps(ROWS).encode())],
        "a.csv.zst": [bytes(pa.Codec("zstd").compress(_CSV, asbytes=True))],
        "a.jsonl.bz2": [bz2.compress(_LINES)],
    }


def hostile_rows() -> dict[str, list[bytes]]:
    """Return files of rows made by hand, by name."""
    return {
        "a.jsonl": [*hostile.DEEP_JSON, *hostile.LINES],
        "a.json": [*hostile.JSON, _MANY_ROWS, b'{"a": ' + hostile.MANY_VALUES[0] + b"}"],
        "a.csv": hostile.CSV,
        "a.txt": [b"a" * 3_000_000, b" " * 3_000_000, b"\xff\xfea\0"],
        "a.parquet": hostile.parquet_files(),
        "a.arrow": [*hostile.arrow_files(), *hostile.arrow_with_wild_offsets()],
        "a.jsonl.gz": [hostile.lines_of_zeros(), hostile.repeated_rows()],
        "a.json.xz": [hostile.xz_with_large_dictionary(), lzma.compress(b"[" * 1_000_000)],
        "a.csv.zst": [hostile.zstd_zeros()],
        "a.jsonl.bz2": [hostile.bzipped()],
    }


def _prepared(folder: Path) -> list[Target]:
    from diablo_ds.data import dataset_files
    from diablo_ds.data.prepare.manifest import load_manifest
    from diablo_ds.data.token_table import TokenTable
    from diablo_ds.files.layout import kind_of

    dataset = folder / "dataset"
    (dataset / "train").mkdir(parents=True)
    name = dataset_files.shard_name(0, 1)
    lists = pa.array([[1, 2, 3], [4], [5, 6]], dataset_files.TOKENS)
    table = pa.table(dict.fromkeys(dataset_files.COLUMNS, lists))
    table = table.append_column(dataset_files.ROW_COLUMN, pa.array([0, 0, 1]))
    with dataset_files.open_shard(dataset / "train" / name, by_row=True) as shard:
        shard.write_table(table)
    dataset_files.write_part_files(dataset / "train", "train", [name], by_row=True, identity="x")
    dataset_files.write_part_names(dataset, {"train": 3})
    (dataset / "manifest.json").write_text(json.dumps(MANIFEST))

    def load(place: Path) -> None:
        kind_of(place)
        dataset_files.is_tokenised(place)
        loaded = TokenTable.load(place, "train")
        loaded.check_tokens("x")
        for index in range(len(loaded)):
            loaded[index].input_ids.sum()
        loaded.largest_id()
        loaded.num_targets()
        loaded.count_source_rows(loaded.lengths().cumsum() * 0)

    files = files_below(dataset)
    shards = [path for path in files if path.endswith(".arrow")]
    described = [path for path in files if path.startswith("train/") and path.endswith(".json")]
    data = next(content for path, content in files.items() if path in shards)
    wild = hostile.arrow_with_wild_offsets()
    negative = pa.array([[-5, 2**31 - 1], []], dataset_files.TOKENS)
    tokens = hostile.arrow(pa.table(dict.fromkeys(dataset_files.COLUMNS, negative)))
    outside = files[described[-1]].replace(name.encode(), b"../../../../etc/passwd")
    return [
        Target(
            "prepared dataset",
            files,
            [*shards, *shards, *described, "dataset_dict.json"],
            load,
            {
                shards[0]: [*wild, tokens, data[: len(data) // 2]],
                described[-1]: [outside, *hostile.JSON],
            },
        ),
        Target(
            "manifest.json",
            files,
            ["manifest.json"],
            load_manifest,
            {"manifest.json": hostile.JSON},
        ),
    ]
