"""The preparation, from source files to a prepared dataset; reads from top to bottom."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diablo_ds.data.bad_rows import BadRows
from diablo_ds.data.corpora.chunking import split_chunks
from diablo_ds.data.corpora.encoding import RowEncoder
from diablo_ds.data.corpora.sources import (
    TEXT_FORMATS,
    SourceFile,
    choose_heldout,
    find_sources,
    format_of,
    name_sources,
)
from diablo_ds.data.length_limit import LengthLimit, warn_of_dropped
from diablo_ds.data.prepare.assembly import assemble, bad_row_lines
from diablo_ds.data.prepare.chunk_files import ChunkCounts
from diablo_ds.data.prepare.chunks import ChunkEncoder
from diablo_ds.data.prepare.decontamination import ExcludedQuestions, load_questions
from diablo_ds.data.prepare.manifest import (
    FILE_TIMES,
    FORMAT_VERSION,
    FileHashes,
    check_files,
    describe_files,
    differences,
    library_versions,
    load_manifest,
    without_paths,
)
from diablo_ds.data.prepare.options import PrepareOptions
from diablo_ds.data.prepare.selection import check_names
from diablo_ds.data.prepare.workers import encode_chunks, load_tokenizer
from diablo_ds.data.text import tokenization
from diablo_ds.errors import UserError
from diablo_ds.files import trees
from diablo_ds.files.layout import MANIFEST_FILE
from diablo_ds.files.work_folders import WorkFolder, open_work_folder
from diablo_ds.ranks.progress import BYTES, Progress


def say(text: str) -> None:
    """Print a line to stderr; stdout is for results."""
    print(text, file=sys.stderr)  # noqa: T201


def prepare(options: PrepareOptions, find_tokenizer: Callable[[str], Path]) -> dict[str, Any]:
    """Prepare a dataset, unless it has been prepared before.

    Args:
        options: sources, tokenizer, output and settings.
        find_tokenizer: returns the folder or file of a tokenizer's name.

    Returns:
        The manifest.

    Raises:
        UserError: if an option, a file or the tokenizer is wrong, too many rows are bad, or the
            output folder holds something else.
        OSError: if the disk is full or a worker process was killed; finished chunks are kept.
    """
    val_sources, val_skipped = find_sources(options.val_source)
    train_sources, skipped = find_sources(options.source)
    if not options.val_source and not options.val_share:
        heldout, skipped = choose_heldout(skipped)
        val_sources = name_sources(heldout)
        for file in heldout:
            say(f"Held-out part: {file}")
    check_names(options.amounts(), {source.name for source in train_sources})
    excluded = _find_excluded(options.exclude)
    tokenizer_path = find_tokenizer(options.tokenizer)
    for file in (*skipped, *val_skipped):
        say(f"Not read, as it looks like test data or notes: {file}")

    if os.path.lexists(options.output):
        trees.check_tree(options.output, "output", repair="choose another output")
    sha256 = FileHashes(options.output / FILE_TIMES)
    inputs = {
        "format_version": FORMAT_VERSION,
        "options": options.recorded(),
        "sources": describe_files(train_sources, sha256),
        "val_sources": describe_files(val_sources, sha256),
        "excluded": describe_files(excluded, sha256),
        "tokenizer": {
            "name": options.tokenizer,
            "fingerprint": tokenization.fingerprint(tokenizer_path),
        },
        "versions": library_versions(),
    }
    if options.output.exists():
        return _load_same(options.output, inputs)
    what = "output that is being prepared"
    with open_work_folder(options.output, without_paths(inputs), what) as work:
        if work.is_continued:
            say(f"Continuing an interrupted run: {work.path}")
        if options.output.exists():  # another process has just finished it
            return _load_same(options.output, inputs)
        # The held-out files come first: of two equal rows the held-out one is kept.
        sources = [*val_sources, *train_sources]
        num_heldout_files = len(val_sources)
        tokenizer = load_tokenizer(tokenizer_path)
        _encode_all(options, tokenizer, sources, excluded, num_heldout_files, work)
        work.owner.check()
        manifest = assemble(options, inputs, tokenizer, sources, num_heldout_files, work.path)
        sha256.save(options.output / FILE_TIMES)
    return manifest


def _find_excluded(texts: Sequence[str]) -> list[SourceFile]:
    """Find test files: in a folder those that look like tests or, if there are none, all."""
    files: list[SourceFile] = []
    for text in texts:
        found, skipped = find_sources([text], may_be_tests=True)
        tests = [path for path in skipped if format_of(path) not in TEXT_FORMATS]
        files += [SourceFile(path.stem, path) for path in tests] or found
    return files


def _load_same(output: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of an output folder that was prepared from the same inputs."""
    if not (output / MANIFEST_FILE).is_file():
        raise UserError(f"output must be a new folder; got output={str(output)!r}")
    manifest = load_manifest(output)
    made_from = {key: manifest.get(key) for key in inputs}
    found = differences(without_paths(made_from), without_paths(json.loads(json.dumps(inputs))))
    if found:
        raise UserError(
            "output must be new, or prepared from the same inputs; got "
            f"output={str(output)!r}, which differs: {'; '.join(found[:5])}"
        )
    check_files(output, manifest)
    say(f"Already prepared from the same inputs: {output}")
    return manifest


# --- raw rows to chunks --------------------------------------------------------------------------


def _encode_all(
    options: PrepareOptions,
    tokenizer: tokenization.Tokenizer,
    sources: Sequence[SourceFile],
    excluded: Sequence[SourceFile],
    num_heldout_files: int,
    work: WorkFolder,
) -> None:
    """Tokenise every chunk that has no file yet."""
    noted = {note["chunk"]: note["sha256"] for note in work.notes}
    work.remove_others(noted)
    limit = LengthLimit(options.max_length, options.overlong, tokenizer.start_ids)
    encoder = ChunkEncoder(
        RowEncoder.from_settings(options, tokenizer, family=options.family),
        limit,
        ExcludedQuestions(load_questions(source.path for source in excluded)),
        num_heldout_files,
        work.path,
        noted,
    )
    bad_rows, finished = BadRows(options.max_bad_rows), []
    total = sum(source.path.stat().st_size for source in sources)
    with Progress("Tokenising", total, BYTES) as progress:
        chunks = split_chunks(sources, num_heldout_files, options.limit, progress.advance)
        for name, digest, counts in encode_chunks(encoder, chunks, options.num_proc):
            if noted.get(name) != digest:
                work.note({"chunk": name, "sha256": digest})
            finished.append(counts)
            bad_rows.add(counts.num_rows, counts.num_rejected, bad_row_lines([counts], sources))
            _check_lengths(options, finished)
    if not finished:
        raise UserError(f"source must have at least one row; got none in {sources[-1].path}")
    for line in bad_rows.finish():
        say(line)
    num_kept = sum(counts.num_kept for counts in finished)
    dropped = [length for counts in finished for length in counts.too_long]
    if text := warn_of_dropped(num_kept, dropped, options.max_length):
        say(f"Warning: {text}")


def _check_lengths(options: PrepareOptions, finished: Sequence[ChunkCounts]) -> None:
    """Raise UserError if an example is too long where none may be."""
    if options.overlong == "error" and (too_long := finished[-1].too_long):
        num_rows = sum(counts.num_rows for counts in finished)
        raise UserError(
            f"each example must fit max_length; got {len(too_long)} longer than "
            f"max_length={options.max_length} among the first {num_rows} rows; raise it, or set "
            "overlong to drop, cut-prompt or cut-completion"
        )
