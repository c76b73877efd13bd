"""The identity of a run's data: a fingerprint of what is trained on, and where its passes began.

It is kept in each checkpoint, so that a run which goes on notices data that were replaced, grown or
cut, or that another tokenizer or template reads differently.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from diablo_ds.config.run import RunConfig
from diablo_ds.data.batches import BatchSource
from diablo_ds.data.corpora.encoding import Rejected
from diablo_ds.data.examples import data_files
from diablo_ds.data.streaming import ROWS_TO_CHECK, StreamSource
from diablo_ds.data.token_table import TokenTable
from diablo_ds.errors import UserError

WHOLE_BYTES = 1 << 28
"""Up to so much is read as a whole; of more, blocks at even distances that sum to `SAMPLED_BYTES`,
besides the length of every example: a fingerprint must not take minutes."""
SAMPLED_BYTES = 1 << 26
BLOCK_BYTES = 1 << 16
NAMING_BYTES = 1 << 20
"""Read of each raw file to tell which of several changed."""
MOST_NAMED_FILES = 100
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class DataIdentity:
    """What identifies the data of a run, and from which step on they are trained on."""

    train: Mapping[str, Any]
    """Fingerprint, counts and files of the training data."""
    heldout: Mapping[str, Any] | None
    start_step: int = 0
    """Step after which the first pass over these data began: 0, or that of a change."""
    passes: float = 0.0
    """Passes over these data that the run makes in all; without effect where `max_steps` is set."""

    def as_json(self) -> dict[str, Any]:
        """Return the fields as a checkpoint keeps them."""
        return {
            "train": dict(self.train),
            "heldout": None if self.heldout is None else dict(self.heldout),
            "start_step": self.start_step,
            "passes": self.passes,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], step: int, source: Path) -> DataIdentity:
        """Read the fields again.

        Args:
            values: as `as_json` returned them.
            step: of the checkpoint that holds them.
            source: named in errors.

        Raises:
            UserError: if they are not what `as_json` returns.
        """
        train, heldout = values.get("train"), values.get("heldout")
        start_step, passes = values.get("start_step"), values.get("passes")
        good = (
            _is_part(train)
            and (heldout is None or _is_part(heldout))
            and type(start_step) is int
            and 0 <= start_step <= step
            and isinstance(passes, int | float)
            and math.isfinite(passes)
            and passes >= 0
        )
        if not good:
            raise UserError(
                f"data of a checkpoint must have train, heldout, start_step <= {step} and passes; "
                f"got {dict(values)!r:.120} in {source}"
            )
        assert isinstance(train, dict)
        assert isinstance(start_step, int)
        assert isinstance(passes, int | float)
        return cls(train, heldout, start_step, float(passes))


def identify(
    config: RunConfig, train: BatchSource | StreamSource, heldout: BatchSource | None
) -> DataIdentity:
    """Fingerprint the data of a run that starts with them.

    Args:
        config: the run config.
        train: training data.
        heldout: held-out data, if any.
    """
    tables: dict[int, str] = {}
    described: dict[str, Any]
    if isinstance(train, StreamSource):
        described = _describe_stream(train)
    else:
        described = _describe_examples(train, config, "train", tables)
    return DataIdentity(
        train=described,
        heldout=None if heldout is None else _describe_examples(heldout, config, "heldout", tables),
        passes=config.num_epochs,
    )


def describe_change(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Say what changed between two fingerprints of training or of held-out data."""
    counts = "; ".join(
        f"{old[name]:,} {name}, now {new[name]:,}"
        for name in ("examples", "tokens")
        if name in old and name in new and old[name] != new[name]
    )
    files = _changed_files(old["files"], new["files"])
    if not files:
        files = (
            "the files are the same, so that the tokenizer, its template or the way in which they "
            "are read is another"
        )
    return f"{counts}; {files}" if counts else files


def goes_on(
    old: DataIdentity, new: DataIdentity, config: RunConfig, step: int
) -> tuple[DataIdentity, str]:
    """Decide how a run goes on with the data that it finds.

    A new pass over changed training data starts at its beginning. Of the passes that were asked
    for, whole ones over the old data count as made, and at least one over the new data is left.

    Args:
        old: of the checkpoint.
        new: of the data that are there now.
        config: the run config.
        step: of the checkpoint.

    Returns:
        The identity from now on, and a sentence on what changed, empty where nothing did.

    Raises:
        UserError: if something changed and the config does not allow it.
    """
    now = replace(new, start_step=old.start_step, passes=old.passes)
    old_heldout, new_heldout = old.heldout or {}, new.heldout or {}
    if old.train["fingerprint"] != new.train["fingerprint"]:
        made = 0.0
        if old.train.get("sequences"):
            made = (step - old.start_step) * config.global_batch / old.train["sequences"]
        left = old.passes - math.floor(made + 1e-9)
        passes = left if left > 0 else min(1.0, config.num_epochs)
        now = replace(new, start_step=step, passes=passes)
        change = f"training data, data={config.data!r}: {describe_change(old.train, new.train)}"
        consequence = f"which starts a new pass, over the data as they are now, after step {step}"
    elif old_heldout.get("fingerprint") != new_heldout.get("fingerprint"):
        change = "held-out data: "
        if old_heldout and new_heldout:
            change += describe_change(old_heldout, new_heldout)
        else:
            change += "there are none any more" if old_heldout else "there were none"
        consequence = "with held-out losses that cannot be compared with earlier ones"
    else:
        return now, ""
    if not config.allow_changed_data:
        raise UserError(
            f"data must be those that the run was trained on so far; got changed {change}; put the "
            f"old data back, or give --allow-changed-data to go on knowingly, {consequence}"
        )
    return now, f"Going on with changed {change}; {consequence}"


# --- fingerprints --------------------------------------------------------------------------------


def _describe_examples(
    source: BatchSource, config: RunConfig, part: str, tables: dict[int, str]
) -> dict[str, Any]:
    examples = source.examples
    if id(examples.table) not in tables:
        tables[id(examples.table)] = _digest_table(examples.table)
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    digest.update(tables[id(examples.table)].encode())
    digest.update(f"{examples.max_length} {examples.overlong} {examples.num_start}".encode())
    for array in (examples.indices, examples.lengths):
        digest.update(_buffer(array, np.int64))
    return {
        "fingerprint": digest.hexdigest(),
        "examples": len(examples),
        "tokens": int(examples.lengths.sum()),
        "sequences": len(source),
        "files": _describe_files(data_files(config, part)),
    }


def _describe_stream(source: StreamSource) -> dict[str, Any]:
    """Fingerprint the files of a stream, and how its first rows are read."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for path in source.files:
        digest.update(_digest_file(path, max(NAMING_BYTES, SAMPLED_BYTES // len(source.files))))
    rows = [row for _, row in islice(source.rows_in_order(), ROWS_TO_CHECK)]
    for result in source.encoder.encode(rows):
        if isinstance(result, Rejected):
            continue
        for fitted in result.examples:
            for values in fitted.example or ():
                digest.update(_buffer(values, np.int32))
    return {"fingerprint": digest.hexdigest(), "files": _describe_files(source.files)}


def _digest_table(table: TokenTable) -> str:
    """Return a digest of all tokens and labels, or of blocks of them; chunks do not matter."""
    lengths, chunks = table.lengths(), table.flat()
    total = int(lengths.sum())
    digests = [hashlib.blake2b(digest_size=_DIGEST_BYTES) for _ in range(2)]
    digests[0].update(_buffer(lengths, np.int64))
    block = BLOCK_BYTES // 4
    starts: Sequence[int] = [0]
    if 8 * total <= WHOLE_BYTES:
        block = max(1, total)
    else:
        starts = _spread(total - block, SAMPLED_BYTES // BLOCK_BYTES // 2)
    first = 0
    for ids, labels in chunks:
        for start in starts:
            low, high = max(start - first, 0), min(start + block - first, len(ids))
            if low < high:
                digests[0].update(_buffer(ids[low:high], np.int32))
                digests[1].update(_buffer(labels[low:high], np.int32))
        first += len(ids)
    return digests[0].hexdigest() + digests[1].hexdigest()


def _describe_files(files: Sequence[Path]) -> dict[str, list[Any]]:
    """Return size and digest of each file by its path; of many, of all together."""
    if len(files) > MOST_NAMED_FILES:
        digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        for path in files:
            digest.update(f"{path}\0{path.stat().st_size}\0".encode(errors="surrogateescape"))
        total = sum(path.stat().st_size for path in files)
        return {f"{len(files)} files": [total, digest.hexdigest()]}
    return {
        str(path): [path.stat().st_size, _digest_file(path, NAMING_BYTES).hex()] for path in files
    }


def _digest_file(path: Path, max_bytes: int) -> bytes:
    """Return a digest of a file's size and content; of a large one, of blocks at even distances."""
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=_DIGEST_BYTES)
    with path.open("rb", buffering=0) as file:
        if size <= max_bytes:
            digest.update(file.read())
        else:
            for start in _spread(size - BLOCK_BYTES, max_bytes // BLOCK_BYTES):
                file.seek(start)
                digest.update(file.read(BLOCK_BYTES))
    return digest.digest()


def _spread(last: int, count: int) -> list[int]:
    """Return so many whole numbers from 0 to ``last``, at even distances."""
    return [last * index // max(1, count - 1) for index in range(count)]


def _buffer(values: Any, dtype: type[np.signedinteger[Any]]) -> memoryview:
    return np.ascontiguousarray(values, dtype).data


def _changed_files(old: Mapping[str, Sequence[Any]], new: Mapping[str, Sequence[Any]]) -> str:
    lines = []
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            lines.append(f"{name} is gone")
        elif name not in old:
            lines.append(f"{name} is new")
        elif old[name][0] != new[name][0]:
            lines.append(f"{name} had {old[name][0]:,} bytes, now {new[name][0]:,}")
        elif old[name] != new[name]:
            lines.append(f"{name} has other content")
    more = f" and {len(lines) - 5} more" if len(lines) > 5 else ""
    return ", ".join(lines[:5]) + more


def _is_part(value: Any) -> bool:
    """Return whether a value has the form of `DataIdentity.train`, as far as it is looked at."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("fingerprint"), str)
        and isinstance(value.get("files"), dict)
        and all(
            isinstance(file, list) and len(file) == 2 and type(file[0]) is int
            for file in value["files"].values()
        )
        and all(
            type(value[name]) is int and value[name] >= 0
            for name in ("examples", "tokens", "sequences")
            if name in value
        )
    )
