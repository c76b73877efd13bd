"""Datasets on disk in the layout of Hugging Face `datasets`: the writer and the reader.

Shards are Arrow streams, written directly, as the library would make Python objects of all rows.
Beside them are the JSON files that `datasets.load_from_disk` expects. They, and the private
attribute that the reader needs, were tested with the versions in `TESTED_MAJORS`. With any other
version, a written dataset is opened by the library before it is kept, and the reader reports what
is missing.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from diablo_ds.data.arrow_bounds import arrow_damages, check_batch, check_messages
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_json, write_json
from diablo_ds.files.named_files import check_no_pipes
from diablo_ds.files.strict_json import key_list

TESTED_MAJORS = (4, 5)
"""Tested with datasets 4.0.0 and 5.2.0; before 4 the type of a list had another name."""
COLUMNS = ("input_ids", "labels")
ROW_COLUMN = "source_row"
"""The source row of each example, if rows gave several examples: conversations."""
TOKENS = pa.list_(pa.int32())
_DICT_FILE, _STATE_FILE, _INFO_FILE = "dataset_dict.json", "state.json", "dataset_info.json"


def is_dataset(path: Path) -> bool:
    """Return whether a folder holds a dataset, of one part or several.

    Raises:
        UserError: if it does, and another user's pipe stands for a file of it.
    """
    found = any((path / name).is_file() for name in (_DICT_FILE, _STATE_FILE))
    if found:
        check_no_pipes(path)
    return found


def is_tokenised(path: Path) -> bool:
    """Return whether a folder holds a dataset whose rows are tokens, and not raw rows.

    One that cannot be read counts as such, so that `read_columns` says what is wrong with it.
    """
    if not is_dataset(path):
        return False
    part = next((info.parent for info in sorted(path.glob(f"*/{_INFO_FILE}"))), path)
    shards = sorted(part.glob("data-*.arrow")) or sorted(part.glob("*.arrow"))
    if not (part / _INFO_FILE).is_file() or not shards:
        return True
    try:
        with pa.memory_map(str(shards[0])) as file, pa.ipc.open_stream(file) as reader:
            return COLUMNS[0] in reader.schema.names
    except arrow_damages():
        return True


# --- writing -------------------------------------------------------------------------------------


def schema(*, by_row: bool) -> pa.Schema:
    """Return the columns of a dataset, with `ROW_COLUMN` if it is ``by_row``."""
    fields = dict.fromkeys(COLUMNS, TOKENS)
    return pa.schema({**fields, ROW_COLUMN: pa.int64()} if by_row else fields)


def shard_name(number: int, num_shards: int) -> str:
    """Return the file name of a shard, numbered from 0."""
    return f"data-{number:05d}-of-{num_shards:05d}.arrow"


@contextmanager
def open_shard(path: Path, *, by_row: bool) -> Iterator[Any]:
    """Yield an Arrow writer for the tables of a new shard."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema(by_row=by_row)) as out:
        yield out


def write_part_files(
    folder: Path, part: str, shards: Sequence[str], *, by_row: bool, identity: str
) -> None:
    """Write the files that describe a part, beside its shards.

    Args:
        folder: the part's folder.
        part: its name.
        shards: file names, in order.
        by_row: whether the part has `ROW_COLUMN`.
        identity: text that distinguishes this dataset from others, for the library's caches.
    """
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in shards],
        "_fingerprint": hashlib.sha256(f"{identity} {part}".encode()).hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": part,
    }
    write_json(folder / _STATE_FILE, state)
    feature = {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "List"}
    features: dict[str, Any] = dict.fromkeys(COLUMNS, feature)
    if by_row:
        features[ROW_COLUMN] = {"dtype": "int64", "_type": "Value"}
    info = {"citation": "", "description": "", "features": features}
    write_json(folder / _INFO_FILE, {**info, "homepage": "", "license": ""})


def write_part_names(folder: Path, parts: Mapping[str, int]) -> None:
    """Complete a dataset by the names of its parts, each in a folder of that name.

    Args:
        folder: the dataset's folder, with all its parts.
        parts: number of examples by name.

    Raises:
        UserError: if the installed version of `datasets` is not a tested one and cannot read it.
    """
    write_json(folder / _DICT_FILE, {"splits": list(parts)})
    version = importlib.metadata.version("datasets")
    if int(version.split(".")[0]) in TESTED_MAJORS:
        return
    try:
        found = {part: read_columns(folder, part).num_rows for part in parts}
    except UserError as error:
        raise _untested(version, str(error)) from None
    if found != dict(parts):
        raise _untested(version, f"{found} examples instead of {dict(parts)}")


def _untested(version: str, reason: str) -> UserError:
    majors = " or ".join(map(str, TESTED_MAJORS))
    return UserError(
        f"package datasets must be version {majors}; got {version}, which reads a written dataset "
        f"differently: {reason}; install 'datasets>={TESTED_MAJORS[0]},<{TESTED_MAJORS[-1] + 1}'"
    )


# --- reading -------------------------------------------------------------------------------------


def read_columns(path: Path, part: str) -> Any:
    """Open a part of a dataset, memory-mapped, and return its Arrow table.

    Raises:
        UserError: if there is no such part, it is damaged, or it lacks a column of `COLUMNS`.
    """
    import datasets

    try:
        for file in _described_files(path):
            with pa.memory_map(str(file)) as mapped:
                check_messages(mapped, file)
        rows = datasets.load_from_disk(str(path))
    except Exception as error:  # datasets and pyarrow raise many kinds for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"data folder must be a prepared dataset; got {path}: {reason}") from None
    if isinstance(rows, datasets.DatasetDict):
        if part not in rows:
            raise UserError(
                f"prepared dataset must have a part {part!r}; got {key_list(rows)} in {path}"
            )
        rows = rows[part]
    if not set(COLUMNS) <= set(rows.column_names):
        raise UserError(
            "prepared dataset must have columns input_ids and labels; got "
            f"{key_list(rows.column_names)} in {path}; make it with diablo-ds prepare"
        )
    if not hasattr(rows, "_indices"):
        raise _untested(datasets.__version__, "without an indices mapping")
    if rows._indices is None:
        return rows.data
    # Rows may be selected or reordered by an indices mapping; no public attribute tells.
    _check_indices(rows, path)
    return rows.flatten_indices().data


def _described_files(path: Path) -> list[Path]:
    """Return the Arrow files of all parts of a dataset, as its `state.json` files name them."""
    found = []
    for state in sorted({*path.glob(_STATE_FILE), *path.glob(f"*/{_STATE_FILE}")}):
        values = read_json(state)
        values = values if isinstance(values, dict) else {}
        lists = [values.get(name) or [] for name in ("_data_files", "_indices_data_files")]
        entries = [entry for files in lists if isinstance(files, list) for entry in files]
        for entry in entries:
            name = entry.get("filename") if isinstance(entry, dict) else None
            if not isinstance(name, str) or name != Path(name).name or name in ("", ".."):
                raise UserError(
                    f"prepared dataset must name files of its own folder; got {name!a:.80} in "
                    f"{state}"
                )
            found.append(state.parent / name)
    return found


def _check_indices(rows: Any, path: Path) -> None:
    """Raise UserError unless an indices mapping and the rows that it leads to can be followed."""
    import pyarrow.compute as pc

    try:
        check_batch(rows.data)
        check_batch(rows._indices)
        ends = pc.min_max(rows._indices.column(0)).as_py()
    except arrow_damages() as error:
        raise UserError(f"data folder must be a prepared dataset; got {path}: {error}") from None
    low, high = ends["min"], ends["max"]
    if low is not None and not 0 <= low <= high < rows.data.num_rows:
        raise UserError(
            f"an indices mapping must lead to rows of the dataset; got {low} to {high} of "
            f"{rows.data.num_rows} in {path}"
        )
