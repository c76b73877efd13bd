"""Run config to examples: from prepared datasets, and from raw files tokenised in memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diablo_ds.config.run import RunConfig
from diablo_ds.data.bad_rows import BadRows
from diablo_ds.data.corpora.encoding import RowEncoder
from diablo_ds.data.corpora.sources import SourceFile
from diablo_ds.data.counts import ReadCounts
from diablo_ds.data.default_files import with_default_files
from diablo_ds.data.examples import Examples
from diablo_ds.data.length_limit import LengthLimit, warn_of_dropped
from diablo_ds.data.mixing import Spans, mix_sources
from diablo_ds.data.prepare.manifest import FILES, check_files, count_examples, load_manifest
from diablo_ds.data.raw_table import tokenise_files
from diablo_ds.data.run_sources import (
    HELDOUT,
    TRAIN,
    DataSource,
    find_heldout_sources,
    find_train_sources,
)
from diablo_ds.data.text.tokenization import Tokenizer
from diablo_ds.data.token_table import TokenTable
from diablo_ds.errors import UserError
from diablo_ds.files.layout import MANIFEST_FILE
from diablo_ds.ranks.distributed import is_main_process

logger = logging.getLogger("diablo_ds")

_EVALUATED_PARTS = ("heldout", "test", "validation")
"""Names of the parts of a dataset that a model is judged by, the first that there is."""


def load_data(
    run_config: RunConfig, tokenizer: Tokenizer, vocab_size: int
) -> tuple[Examples, Examples | None]:
    """Load the training examples and the held-out ones, as the run config names them.

    Sources are mixed first. Then a share is held out of those without a held-out part, unless
    held-out data are named.

    Args:
        run_config: names the data, and the template and limits for them.
        tokenizer: the model's tokenizer.
        vocab_size: number of token ids that the model knows.

    Raises:
        UserError: if a file is missing, empty or malformed, or no example remains.
    """
    reader = _Reader.of(run_config, tokenizer, vocab_size)
    sources = find_train_sources(run_config)
    say_skipped(sources, has_heldout=not reader.run_config.heldout_data)
    loaded = [reader.load(source, TRAIN) for source in sources]
    heldout = reader.load_heldout(sources)
    reader.say_bad_rows()
    mixed = mix_sources(loaded, run_config.amounts(), run_config.seed)
    dropped = [int(length) for examples, _ in loaded for length in examples.dropped]
    num_kept = sum(len(examples) for examples, _ in loaded)
    if text := warn_of_dropped(num_kept, dropped, run_config.max_length):
        logger.warning(text)
    both = list(zip(mixed, sources, strict=True))
    without = [examples for examples, source in both if not source.has_heldout]
    if without and run_config.heldout_share and not reader.run_config.heldout_data:
        rest, share = Examples.concatenated(without).split(
            run_config.heldout_share, run_config.seed
        )
        mixed = [rest, *(examples for examples, source in both if source.has_heldout)]
        heldout.append(share)
    train = Examples.concatenated(mixed)
    if not len(train):
        raise UserError(
            f"data must have at least one example; got none that mix={', '.join(run_config.mix)} "
            "takes"
        )
    return train, Examples.concatenated(heldout) if heldout else None


def load_heldout(run_config: RunConfig, tokenizer: Tokenizer, vocab_size: int) -> Examples | None:
    """Load the held-out examples that are stored apart, if there are any; see `load_data`."""
    reader = _Reader.of(run_config, tokenizer, vocab_size)
    heldout = reader.load_heldout(find_train_sources(run_config))
    reader.say_bad_rows()
    return Examples.concatenated(heldout) if heldout else None


def load_evaluated(
    run_config: RunConfig, files: Sequence[Path], tokenizer: Tokenizer, vocab_size: int
) -> Examples:
    """Load the examples that a model is judged by, from ``run_config.data``; each row must fit.

    Args:
        run_config: names the data, and the template and limits for them.
        files: the raw files of the data; of no use where they are a prepared dataset.
        tokenizer: the model's tokenizer.
        vocab_size: number of token ids that the model knows.

    Raises:
        UserError: if a file is missing, empty or malformed, or no example remains.
    """
    reader = replace(_Reader.of(run_config, tokenizer, vocab_size), bad_rows=BadRows(0.0))
    if files:
        named = tuple(SourceFile(path.stem, path) for path in files)
        source = DataSource("", ", ".join(map(str, files)), None, named)
        part = TRAIN
    else:
        (source,) = find_train_sources(run_config)
        folder = source.prepared or Path()
        part = next((name for name in _EVALUATED_PARTS if (folder / name).is_dir()), TRAIN)
    examples = reader.load(source, part).examples
    reader.say_bad_rows()
    return examples


def say_skipped(sources: Sequence[DataSource], *, has_heldout: bool) -> None:
    """Name the files of raw data that a run does not read.

    Args:
        sources: the training data.
        has_heldout: whether their own held-out parts are read.
    """
    for source in sources:
        unread = () if has_heldout else (file.path for file in source.heldout)
        for path in (*unread, *source.skipped):
            logger.info(f"Not read, as it looks like test data or notes: {path}")


class _Loaded(NamedTuple):
    examples: Examples
    spans: Spans


@dataclass(frozen=True)
class _Reader:
    """What all sources of a run are read with."""

    run_config: RunConfig
    tokenizer: Tokenizer
    vocab_size: int
    encoder: RowEncoder
    bad_rows: BadRows
    limit: LengthLimit

    @classmethod
    def of(cls, run_config: RunConfig, tokenizer: Tokenizer, vocab_size: int) -> _Reader:
        run_config = with_default_files(run_config)
        return cls(
            run_config,
            tokenizer,
            vocab_size,
            RowEncoder.from_settings(run_config, tokenizer, family=run_config.corpus),
            BadRows(run_config.max_bad_rows),
            LengthLimit(run_config.max_length, run_config.overlong, tokenizer.start_ids),
        )

    def load(self, source: DataSource, part: str) -> _Loaded:
        """Load a part of a source."""
        if source.prepared is not None:
            table, read, origin = self._load_prepared(source.prepared, part, source.name)
            rows = table.source_rows(np.arange(len(table)))
            spans: Spans = [(source.name, int(rows.max(initial=-1)) + 1)]
        else:
            files = source.heldout if part == HELDOUT else source.train
            table, read, spans = self._load_raw(files, source.given)
            origin = ", ".join(str(f.path) for f in files) if part == HELDOUT else source.given
        examples = Examples.from_table(table, self.limit, origin)
        return _Loaded(replace(examples, read=read), spans)

    def load_heldout(self, sources: Sequence[DataSource]) -> list[Examples]:
        """Load the held-out data that are named or, if none are, the sources' own."""
        if named := find_heldout_sources(self.run_config):
            parts = [
                (source, HELDOUT if source.prepared and source.has_heldout else TRAIN)
                for source in named
            ]
        else:
            parts = [(source, HELDOUT) for source in sources if source.has_heldout]
        return [self.load(source, part).examples for source, part in parts]

    def say_bad_rows(self) -> None:
        """Name skipped rows; raise UserError if there are too many."""
        for line in self.bad_rows.finish():
            logger.warning(line)

    def _load_raw(
        self, files: Sequence[SourceFile], given: str
    ) -> tuple[TokenTable, ReadCounts, Spans]:
        raw = tokenise_files(files, self.encoder, self.bad_rows)
        if not raw.examples:
            self.bad_rows.finish()  # bad rows are the reason, if there are any
            raise UserError(f"data must have at least one row; got none in {given}")
        table = TokenTable.from_examples(raw.examples, raw.rows)
        check_vocabulary(table.largest_id(), self.vocab_size, given)
        return table, raw.counts(self.encoder), raw.spans

    def _load_prepared(
        self, path: Path, part: str, name: str
    ) -> tuple[TokenTable, ReadCounts, str]:
        """Open a part of a prepared dataset."""
        manifest = load_manifest(path) if (path / MANIFEST_FILE).is_file() else None
        if manifest is not None and is_main_process():  # the others would read the same files
            if manifest[FILES]:
                check_files(path, manifest, part)
            else:
                logger.warning(f"{path} was prepared without digests: its files are not checked")
        table = TokenTable.load(path, part)
        templates = {}
        if manifest is None:  # of another program
            table.check_tokens(str(path))
            largest_id = table.largest_id()
        else:
            if not self.tokenizer.reads_as(manifest["tokenizer"]["probe"]):
                raise UserError(
                    "prepared dataset must be made with the model's tokenizer; got "
                    f"{manifest['tokenizer']['name']} in {path}, which splits text into other "
                    "tokens"
                )
            described = manifest["parts"].get(part, {"rows": 0, "tokens": 0, "largest_id": 0})
            found = {
                "rows": table.count_source_rows(np.arange(len(table))),
                "examples": len(table),
                "tokens": int(table.lengths().sum()),
            }
            recorded = {**described, "examples": count_examples(described)}
            recorded = {name: recorded[name] for name in found}
            if found != recorded:
                raise UserError(
                    f"prepared dataset must match its {MANIFEST_FILE}; got {found} instead of "
                    f"{recorded} in {path / part}; prepare it again"
                )
            largest_id = described["largest_id"]
            templates = manifest["templates"]
        check_vocabulary(largest_id, self.vocab_size, str(path))
        num_rows = table.count_source_rows(np.arange(len(table)))
        return table, ReadCounts({name: num_rows}, templates=templates), f"{path} ({part})"


def check_vocabulary(largest_id: int, vocab_size: int, origin: str) -> None:
    """Raise UserError if a token id is none that the model knows."""
    if largest_id >= vocab_size:
        raise UserError(
            f"{unknown_token(largest_id, vocab_size)} in {origin}; was it made for another "
            "tokenizer?"
        )


def unknown_token(token: int, vocab_size: int) -> str:
    """Return the message for a token id that the model does not know."""
    return (
        f"token ids must be below the model's vocabulary size; got {token}, vocab_size={vocab_size}"
    )
