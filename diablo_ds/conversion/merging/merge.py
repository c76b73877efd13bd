"""Merging an adapter into its base: from files to files, without the model in memory."""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diablo_ds import __version__
from diablo_ds.conversion.merging.carried import carry_over, size_of_carried, write_index
from diablo_ds.conversion.merging.inputs import MergeInputs, find_inputs
from diablo_ds.conversion.merging.options import (
    FP32_IS_ROUNDED_TO_NEAREST,
    KEPT,
    MergeOptions,
)
from diablo_ds.conversion.merging.plan import PlannedShard, main_dtype, parse_size, plan_shards
from diablo_ds.conversion.merging.rounding import Rounding, describe, total
from diablo_ds.conversion.merging.shards import write_shard
from diablo_ds.conversion.merging.work_folder import WorkFolder, open_work_folder
from diablo_ds.conversion.neighbours import ROUNDED_DTYPES
from diablo_ds.conversion.output import check_new_folder
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import sha256_file, write_json
from diablo_ds.files.layout import MERGE_REPORT_FILE
from diablo_ds.model.architecture import DTYPES
from diablo_ds.ranks.progress import BYTES, Progress

logger = logging.getLogger("diablo_ds")

_RECORD_FORMAT = 1
_TORCH_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_SHORT_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Merged:
    """A merge that is done."""

    base: Path
    adapter: Path
    output: Path
    num_bytes: int
    """Of the new weight files, those of an earlier attempt included."""
    seconds: float
    """For writing, without what an earlier attempt took."""
    text: str
    """What rounding did, and what was taken from the adapter."""


def merge_adapter(options: MergeOptions) -> Merged:
    """Merge an adapter into its base and write a new model folder.

    Sums are in fp32 (fp64 for a base in fp64) and rounded once; all other bytes are copied. Memory
    is needed for a few megabytes of one tensor, whatever the model's size. An interrupted merge
    continues after the last complete file when it is started again.

    Raises:
        UserError: if the inputs do not belong together or are damaged, the disk has too little
            room, or the merge would change no byte; then nothing is left behind.
        OSError: if a file cannot be read or written; complete files are kept for another attempt.
    """
    with _single_threaded():
        return _merge(options)


def _merge(options: MergeOptions) -> Merged:
    inputs = find_inputs(options)
    dtype = None if options.dtype == KEPT else DTYPES[options.dtype]
    max_bytes = parse_size(options.max_shard_size) if options.max_shard_size else None
    kept = dtype or main_dtype(inputs.tensors.values())
    shards = plan_shards(inputs.tensors, inputs.layer_of, dtype=dtype, max_bytes=max_bytes)
    is_stochastic = options.rounding == "stochastic"
    _check_rounding(shards, is_stochastic=is_stochastic)
    start = time.perf_counter()
    with open_work_folder(options.output, _record(options, inputs)) as work:
        check_new_folder(options.output)  # another process may have just made it
        layers = _write_shards(shards, inputs, work, is_stochastic=is_stochastic)
        _check_changed(layers, inputs)
        work.check()
        torch_name = None if dtype is None else _TORCH_NAMES[options.dtype]
        notes = carry_over(inputs.base, inputs.adapter, work.path, torch_name)
        write_index(inputs.base, work.path, shards)
        name = _SHORT_NAMES.get(kept, str(kept).removeprefix("torch."))
        write_json(work.path / MERGE_REPORT_FILE, _report(options, inputs, layers, name))
        work.become(options.output)
    return Merged(
        inputs.base,
        inputs.adapter,
        options.output,
        sum(shard.num_bytes for shard in shards),
        time.perf_counter() - start,
        "\n".join([*notes, describe(layers, name, MERGE_REPORT_FILE, options.rounding)]),
    )


def _record(options: MergeOptions, inputs: MergeInputs) -> dict[str, Any]:
    """Return what tells one merge from another, so that only the same one is continued."""
    files = {tensor.file for tensor in inputs.tensors.values()}
    states = {file.name: file.stat() for file in sorted(files)}
    return {
        "format": _RECORD_FORMAT,
        "version": __version__,
        "base": {
            "fingerprint": inputs.fingerprint,
            "files": {name: [s.st_size, s.st_mtime_ns] for name, s in states.items()},
        },
        "adapter": sha256_file(inputs.deltas.file),
        "dtype": options.dtype,
        "rounding": options.rounding,
        "max_shard_size": options.max_shard_size,
    }


def _write_shards(
    shards: Sequence[PlannedShard],
    inputs: MergeInputs,
    work: WorkFolder,
    *,
    is_stochastic: bool,
) -> dict[str, Rounding]:
    """Write the files that are not complete yet; one is synced while the next is written."""
    layers: dict[str, Rounding] = {}
    missing = []
    for shard in shards:
        finished = work.finished(shard.name)
        if finished is None:
            missing.append(shard)
        layers |= finished or {}
    if len(missing) < len(shards):
        logger.info(
            f"Continuing an interrupted merge: {len(shards) - len(missing)} of {len(shards)} files "
            "are complete"
        )
    _check_room(missing, inputs, work.path)
    total_bytes = sum(shard.num_bytes for shard in shards)
    done_bytes = total_bytes - sum(shard.num_bytes for shard in missing)
    pending: Future[None] | None = None
    try:
        with (
            Progress("Merging", total_bytes, BYTES, done=done_bytes) as progress,
            ThreadPoolExecutor(1) as syncing,
        ):
            for shard in missing:
                found = write_shard(
                    shard,
                    work.unfinished(shard.name),
                    inputs.deltas,
                    progress.advance,
                    is_stochastic=is_stochastic,
                )
                layers |= found
                if pending is not None:
                    pending.result()
                pending = syncing.submit(work.finish, shard.name, found)
            if pending is not None:
                pending.result()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno,
            f"{error.strerror}: {work.num_finished} of {len(shards)} files are complete; make room "
            "and give the same command again",
        ) from None
    order = {layer: number for number, layer in enumerate(inputs.deltas.config.num_blocks)}
    return dict(sorted(layers.items(), key=lambda item: order[item[0]]))


def _check_room(missing: Sequence[PlannedShard], inputs: MergeInputs, folder: Path) -> None:
    needed = sum(shard.num_bytes for shard in missing)
    needed += size_of_carried(inputs.base, inputs.adapter)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the disk must have room for the merged model; got {free / 1e9:.3f} GB free in "
            f"{folder.parent} and {needed / 1e9:.3f} GB to write",
        )


def _check_rounding(shards: Sequence[PlannedShard], *, is_stochastic: bool) -> None:
    merged = {tensor.dtype for shard in shards for tensor in shard.tensors if tensor.layer}
    if is_stochastic and not merged <= set(ROUNDED_DTYPES):
        raise UserError(FP32_IS_ROUNDED_TO_NEAREST)


def _check_changed(layers: dict[str, Rounding], inputs: MergeInputs) -> None:
    everything = total(layers.values())
    if not everything.num_changed:
        raise UserError(
            "a merge must change the base; got none of "
            f"{everything.num_elements:,} elements that changes: the deltas of {inputs.adapter} "
            "are too small for the dtype of the weights; give --dtype fp32 or --rounding stochastic"
        )


def _report(
    options: MergeOptions, inputs: MergeInputs, layers: dict[str, Rounding], dtype: str
) -> dict[str, Any]:
    return {
        "adapter": str(inputs.adapter),
        "base": str(inputs.base),
        "base_fingerprint": inputs.fingerprint,
        "dtype": dtype,
        "rounding": options.rounding,
        "version": __version__,
        "torch": torch.__version__,
        "total": total(layers.values()).values(),
        "layers": {layer: rounding.values() for layer, rounding in layers.items()},
    }


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    """Let PyTorch use one thread: on the small parts of a merge, others are only waited for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
