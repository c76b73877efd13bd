"""Chunks to a dataset: choose rows, write them, and record what was done."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diablo_ds.data.corpora.families import FAMILIES
from diablo_ds.data.corpora.sources import SourceFile
from diablo_ds.data.counts import sum_counts, templates_of
from diablo_ds.data.dataset_files import write_part_names
from diablo_ds.data.prepare import selection, writing
from diablo_ds.data.prepare.chunk_files import (
    ChunkCounts,
    digests,
    read_chunk,
    read_counts,
    row_numbers,
)
from diablo_ds.data.prepare.chunks import MAX_SHOWN, TOO_LONG
from diablo_ds.data.prepare.manifest import EXAMPLES_LEFT_OUT, FILES, digest_files
from diablo_ds.data.prepare.options import PrepareOptions
from diablo_ds.data.prepare.selection import Mask, RowNumbers
from diablo_ds.data.text.conversations import EACH_ANSWER
from diablo_ds.data.text.tokenization import Tokenizer
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import new_folder, write_json
from diablo_ds.files.layout import MANIFEST_FILE

TRAIN, HELDOUT = "train", "heldout"
ROWS, EXAMPLES = "rows", "examples"


def assemble(
    options: PrepareOptions,
    inputs: dict[str, Any],
    tokenizer: Tokenizer,
    sources: Sequence[SourceFile],
    num_heldout_files: int,
    work: Path,
) -> dict[str, Any]:
    """Choose rows of all chunks, write the dataset and its manifest, and return the manifest.

    Args:
        options: give the mix, the held-out share and the output folder.
        inputs: the record of the inputs.
        tokenizer: described in the manifest.
        sources: the source files, those of the held-out part first.
        num_heldout_files: number of files of the held-out part.
        work: folder of the chunk files.

    Raises:
        UserError: if a mix asks for more rows than there are, or a part would be empty.
    """
    files = sorted(work.glob("chunk-*.arrow"))
    counts = [read_counts(file) for file in files]
    names = ["" if count.file < num_heldout_files else sources[count.file].name for count in counts]
    rows = [row_numbers(read_chunk(file)) for file in files]
    parts, skipped = _choose(options, files, rows, names, has_heldout=num_heldout_files > 0)
    by_row = any(EACH_ANSWER in count.notes for count in counts)
    for part, masks in parts.items():
        if not selection.count(masks):
            raise UserError(
                f"the part {part} must have at least one row; got none of "
                f"{sum(count.num_rows for count in counts)} rows; see "
                f"max_length={options.max_length}, mix, exclude and val_share"
            )
    identity = json.dumps(inputs, sort_keys=True)
    with new_folder(options.output) as temporary:
        described = {
            part: writing.write_part(
                temporary / part,
                part,
                files,
                masks,
                max_length=options.max_length,
                identity=identity,
                by_row=by_row,
            )
            for part, masks in parts.items()
        }
        write_part_names(temporary, {part: selection.count(masks) for part, masks in parts.items()})
        manifest = {
            **_describe(options, inputs, tokenizer, sources, counts),
            "parts": described,
        }
        manifest["rows_left_out"].update(skipped[ROWS])
        if by_row:
            num_too_long = sum(len(count.too_long) for count in counts)
            manifest[EXAMPLES_LEFT_OUT] = {"too_long": num_too_long, **skipped[EXAMPLES]}
        manifest[FILES] = digest_files(temporary)
        write_json(temporary / MANIFEST_FILE, manifest)
    return manifest


def _choose(
    options: PrepareOptions,
    files: Sequence[Path],
    rows: Sequence[RowNumbers],
    names: Sequence[str],
    *,
    has_heldout: bool,
) -> tuple[dict[str, list[Mask]], dict[str, dict[str, int]]]:
    """Return the examples of each part, and the numbers of rows and examples that were skipped.

    Args:
        options: give the mix and the held-out share.
        files: chunk files.
        rows: for each chunk, the row that each of its examples comes from.
        names: the source name of each chunk; empty for one of the held-out part.
        has_heldout: whether there are files for the held-out part.
    """
    first = selection.first_occurrences([digests(read_chunk(file)) for file in files])
    heldout = [mask & (not name) for mask, name in zip(first, names, strict=True)]
    different = selection.without(first, heldout)
    train = selection.mix(different, rows, names, options.amounts(), options.seed)
    everything = [np.ones_like(mask) for mask in first]
    counters: dict[str, Callable[[Sequence[Mask]], int]] = {
        ROWS: lambda masks: selection.count_rows(masks, rows),
        EXAMPLES: selection.count,
    }
    skipped = {
        unit: {
            "duplicates": count(everything) - count(first),
            "not_in_mix": count(different) - count(train),
        }
        for unit, count in counters.items()
    }
    if options.val_share:
        num_rows = selection.count_rows(train, rows)
        num_heldout = min(max(1, round(options.val_share * num_rows)), num_rows)
        heldout = selection.take(train, rows, num_heldout, options.seed, HELDOUT)
        train = selection.without(train, heldout)
    parts = {TRAIN: train}
    if options.val_share or has_heldout:
        parts[HELDOUT] = heldout
    return parts, skipped


def _describe(
    options: PrepareOptions,
    inputs: dict[str, Any],
    tokenizer: Tokenizer,
    sources: Sequence[SourceFile],
    counts: Sequence[ChunkCounts],
) -> dict[str, Any]:
    seen = sum_counts(count.kinds for count in counts)
    kinds = [kind for kind in FAMILIES[options.family] if kind.name in seen]
    dropped = sum_counts(count.dropped for count in counts)
    rows_in = sum_counts({sources[count.file].name: count.num_rows} for count in counts)
    return {
        **inputs,
        "tokenizer": {
            **inputs["tokenizer"],
            "start_ids": list(tokenizer.start_ids),
            "end_id": tokenizer.end_id,
            "pad_id": tokenizer.pad_id,
            "turn_end": None if tokenizer.turn_end is None else tokenizer.turn_end.text,
            "probe": tokenizer.probe(),
        },
        "licences": [options.licence]
        if options.licence
        else sorted({kind.licence for kind in kinds}),
        "templates": templates_of(options.family, seen, options.template),
        "rows_in": rows_in,
        "rows_left_out": {
            "bad": sum(count.num_rejected for count in counts),
            "bad_reasons": sum_counts(count.reasons for count in counts),
            "too_long": dropped.pop(TOO_LONG, 0),
            "in_tests": dropped,
        },
        "notes": sum_counts(count.notes for count in counts),
        "bad_rows": bad_row_lines(counts, sources)[:MAX_SHOWN],
    }


def bad_row_lines(counts: Iterable[ChunkCounts], sources: Sequence[SourceFile]) -> list[str]:
    """Return file, line and reason of the first bad rows of each chunk."""
    return [
        f"{sources[file].path}, line {line}: {reason}"
        for count in counts
        for file, line, reason in count.shown
    ]
