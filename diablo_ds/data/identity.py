"""The identity of a run's data: a fingerprint of what is trained on, and where its passes began.

It is saved in each checkpoint, so that a resumed run notices data that were replaced, extended or
shortened, or that another tokenizer or template reads differently.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from diablo_ds.config.run import RunConfig
from diablo_ds.data.batch_source import BatchSource
from diablo_ds.data.corpora.encoding import Rejected
from diablo_ds.data.fingerprints import (
    describe_files,
    digest_examples,
    digest_stream,
    digest_table,
)
from diablo_ds.data.run_sources import data_files
from diablo_ds.data.streaming import ROWS_TO_CHECK, StreamSource
from diablo_ds.data.training_batches import TrainingBatches
from diablo_ds.errors import UserError


@dataclass(frozen=True)
class DataIdentity:
    """What identifies the data of a run, and the step from which the run trains on them."""

    train: Mapping[str, Any]
    """Fingerprint, counts and files of the training data."""
    heldout: Mapping[str, Any] | None
    start_step: int = 0
    """Step after which the first pass over these data began: 0, or that of a change."""
    passes: float = 0.0
    """Total passes that the run makes over these data; not used if `max_steps` is set."""
    num_epochs: float | None = None
    """Passes of the run that were asked for when this was written; None in an early version."""
    lag: int | None = None
    """Sequences by which the data are behind full global batches, see `TrainingBatches`; None in an
    early version."""

    def as_json(self) -> dict[str, Any]:
        """Return the fields in the form that a checkpoint saves."""
        return {
            "train": dict(self.train),
            "heldout": None if self.heldout is None else dict(self.heldout),
            "start_step": self.start_step,
            "passes": self.passes,
            "num_epochs": self.num_epochs,
            "lag": self.lag,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], step: int, source: Path) -> DataIdentity:
        """Read the fields from a checkpoint.

        Args:
            values: what `as_json` returned.
            step: of the checkpoint.
            source: the checkpoint, named in errors.

        Raises:
            UserError: if the values are not what `as_json` returns.
        """
        train, heldout = values.get("train"), values.get("heldout")
        start_step, passes = values.get("start_step"), values.get("passes")
        num_epochs, lag = values.get("num_epochs"), values.get("lag")
        good = (
            _is_part(train)
            and (heldout is None or _is_part(heldout))
            and type(start_step) is int
            and 0 <= start_step <= step
            and _is_count(passes)
            and (num_epochs is None or _is_count(num_epochs))
            and (lag is None or (type(lag) is int and lag >= 0))
        )
        if not good:
            raise UserError(
                f"data of a checkpoint must have train, heldout, start_step <= {step} and passes; "
                f"got {dict(values)!r:.120} in {source}"
            )
        assert isinstance(train, dict)
        assert isinstance(start_step, int)
        assert isinstance(passes, int | float)
        return cls(train, heldout, start_step, float(passes), num_epochs, lag)

    def with_lag(self, step: int, global_batch: int) -> DataIdentity:
        """Return the same with the lag that an early version did not write.

        Args:
            step: of the checkpoint, of a run whose steps come from its passes.
            global_batch: sequences per step.
        """
        if self.lag is not None or "sequences" not in self.train:
            return self
        total = max(1, round(self.passes * self.train["sequences"]))
        missing = (step - self.start_step) * global_batch - total
        return replace(self, lag=missing if 0 < missing < global_batch else 0)


def identify(
    run_config: RunConfig, train: TrainingBatches, heldout: BatchSource | None
) -> DataIdentity:
    """Fingerprint the data of a run that starts with them."""
    table_digests: dict[int, str] = {}
    described: dict[str, Any]
    if isinstance(train, StreamSource):
        described = _describe_stream(train)
    else:
        assert isinstance(train, BatchSource)
        described = _describe_examples(train, run_config, "train", table_digests)
    return DataIdentity(
        train=described,
        heldout=None
        if heldout is None
        else _describe_examples(heldout, run_config, "heldout", table_digests),
        passes=run_config.num_epochs,
        num_epochs=run_config.num_epochs,
        lag=0,
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
            "the files are the same, so the tokenizer, its template or the settings for reading "
            "them are different"
        )
    return f"{counts}; {files}" if counts else files


def reconcile(
    old: DataIdentity, new: DataIdentity, run_config: RunConfig, step: int
) -> tuple[DataIdentity, str]:
    """Compare a resumed run's data with those of its checkpoint, and decide how it continues.

    A new pass over changed training data starts at their beginning. Of the requested passes, full
    ones over the old data count as made, and at least one over the new data remains.

    Args:
        old: identity in the checkpoint.
        new: identity of the data that are there now.
        run_config: the config of the resumed run.
        step: of the checkpoint.

    Returns:
        The identity from now on, and a sentence on what changed, empty if nothing did.

    Raises:
        UserError: if something changed and ``run_config`` does not allow it.
    """
    lag, asked = old.lag or 0, old.num_epochs
    if asked is None:
        asked = run_config.num_epochs if old.start_step else old.passes
    passes = max(0.0, old.passes + run_config.num_epochs - asked)
    now = replace(new, start_step=old.start_step, passes=passes, lag=lag)
    old_heldout, new_heldout = old.heldout or {}, new.heldout or {}
    if old.train["fingerprint"] != new.train["fingerprint"]:
        made = 0.0
        if old.train.get("sequences"):
            seen = (step - old.start_step) * run_config.global_batch - lag
            made = seen / old.train["sequences"]
        left = passes - math.floor(made + 1e-9)
        passes = left if left > 0 else min(1.0, run_config.num_epochs)
        now = replace(new, start_step=step, passes=passes)
        named = ", ".join(run_config.data)
        change = f"training data, data={named}: {describe_change(old.train, new.train)}"
        consequence = f"which starts a new pass over the current data after step {step}"
    elif old_heldout.get("fingerprint") != new_heldout.get("fingerprint"):
        change = "held-out data: "
        if old_heldout and new_heldout:
            change += describe_change(old_heldout, new_heldout)
        else:
            change += "there are none now" if old_heldout else "there were none before"
        consequence = "with held-out losses that cannot be compared with earlier ones"
    else:
        return now, ""
    if not run_config.allow_changed_data:
        raise UserError(
            f"data must be those that the run was trained on so far; got changed {change}; put the "
            f"old data back, or give --allow-changed-data to accept the change, {consequence}"
        )
    return now, f"Continuing with changed {change}; {consequence}"


def _describe_examples(
    source: BatchSource, run_config: RunConfig, part: str, table_digests: dict[int, str]
) -> dict[str, Any]:
    examples = source.examples
    table = id(examples.table)  # shared by a training and a held-out part
    if table not in table_digests:
        table_digests[table] = digest_table(examples.table)
    return {
        "fingerprint": digest_examples(examples, table_digests[table]),
        "examples": len(examples),
        "tokens": int(examples.lengths.sum()),
        "sequences": len(source),
        "files": describe_files(data_files(run_config, part)),
    }


def _describe_stream(source: StreamSource) -> dict[str, Any]:
    rows = [row for _, row in islice(source.rows_in_order(), ROWS_TO_CHECK)]
    examples = [
        example
        for result in source.encode(rows)
        if not isinstance(result, Rejected)
        for example in result.examples
    ]
    fingerprint = digest_stream(source.files, examples)
    return {"fingerprint": fingerprint, "files": describe_files(source.files)}


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
            lines.append(f"{name} has different content")
    more = f" and {len(lines) - 5} more" if len(lines) > 5 else ""
    return ", ".join(lines[:5]) + more


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


def _is_part(value: Any) -> bool:
    """Return whether a value has the fields of `DataIdentity.train` that are used."""
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
