"""Training directly from raw files, for corpora larger than memory or disk."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from diablo_ds.config.run import RunConfig
from diablo_ds.data.bad_rows import BadRows
from diablo_ds.data.batches import BatchRow, Dealer, MicroBatch
from diablo_ds.data.corpora.encoding import Encoded, Rejected, RowEncoder, count_notes, count_rows
from diablo_ds.data.corpora.raw_rows import RawRow
from diablo_ds.data.corpora.reading import read_rows
from diablo_ds.data.labels import Example
from diablo_ds.data.length_limit import LengthLimit, warn_of_dropped
from diablo_ds.data.loading import say_skipped, unknown_token
from diablo_ds.data.packing import pass_seed, permutation
from diablo_ds.data.run_sources import TRAIN, find_train_sources
from diablo_ds.data.text.tokenization import Tokenizer
from diablo_ds.errors import UserError

logger = logging.getLogger("diablo_ds")

WINDOW_ROWS = 8192
"""Rows that are shuffled together; they are held in memory, not yet parsed."""
WINDOW_CHARACTERS = 1 << 28
"""Text after which a window ends early, so that long rows do not fill the memory."""
ROWS_TO_CHECK = 100


@dataclass
class StreamSource:
    """The micro batches of one rank, from raw rows that are tokenised as they are needed.

    A step takes the next ``run_config.global_batch`` rows of the stream, whatever they contain: a
    row that does not fit its corpus or is too long becomes an empty batch row, without a target,
    and is counted. So every rank has the same number of micro batches, a step is the same set of
    rows at any world size, and a resumed run continues at the exact row. Each rank parses and
    tokenises only its own rows. After the last row the stream starts again, in another order.
    """

    files: Sequence[Path]
    run_config: RunConfig
    encoder: RowEncoder
    limit: LengthLimit
    dealer: Dealer
    vocab_size: int
    """Token ids that the model knows."""
    start_step: int = 0
    """Step of the run with which the stream begins."""
    num_skipped: int = 0
    """Rows of this rank that did not fit."""
    notes: Counter[str] = field(default_factory=Counter)
    """Rows of this rank by what was done with them."""
    ends: set[int] = field(default_factory=set)
    """Last labels of the first rows' examples."""
    _position: int = 0
    _rows: Iterator[tuple[Path, RawRow]] = field(default_factory=lambda: iter(()))

    def check(self) -> None:
        """Look at the first rows: raise UserError if too many do not fit, or are too long."""
        rows = [row for _, row in zip(range(ROWS_TO_CHECK), self.rows_in_order(), strict=False)]
        if not rows:
            raise UserError(f"data must have at least one row; got none in {self.files[0]}")
        results = self._known([row for _, row in rows])
        rejected = [
            f"{path}, line {result.line}: {result.reason}"
            for (path, _), result in zip(rows, results, strict=True)
            if isinstance(result, Rejected)
        ]
        bad_rows = BadRows(self.run_config.max_bad_rows)
        bad_rows.add(len(rows), len(rejected), rejected)
        bad_rows.finish()  # each rank names those that it skips, when it comes to them
        self._warn_of_dropped([row for _, row in rows])
        for note, number in count_notes(results).items():
            logger.info(f"Of the first {len(rows)} rows, {count_rows(number, note)}")
            self.notes[note] = 0
        examples = [example for result in results for example in _examples(result)]
        self.ends.update(int(example.labels[-1]) for example in examples)
        if not examples:
            raise UserError(
                f"data must have examples of at most {self.limit.max_length} tokens; got only "
                f"longer ones among the first {len(rows)} rows of {self.files[0]}"
            )

    def _warn_of_dropped(self, rows: Sequence[RawRow]) -> None:
        results = [r for r in self.encoder.encode(rows) if isinstance(r, Encoded)]
        examples = [example for result in results for example in result.examples]
        dropped = [len(e.input_ids) for e in examples if self.limit.fit(e) is None]
        num_kept = len(examples) - len(dropped)
        if text := warn_of_dropped(num_kept, dropped, self.limit.max_length):
            logger.warning(f"Of the first rows, {text}")

    def describe(self) -> str:
        """Return where the rows come from, as a line of text."""
        return f"a stream of {len(self.files)} raw files, {self.files[0]} first"

    @property
    def num_steps(self) -> int:
        """Optimizer steps after which a run on this stream ends, counted from its start."""
        return self.start_step + self.run_config.max_steps

    def starting_at(self, step: int, run_config: RunConfig, lag: int = 0) -> Self:
        """Return the same stream, beginning after ``step`` steps of the run."""
        assert not lag, "every step of a stream is a full global batch"
        return replace(self, run_config=run_config, start_step=step)

    def lag_after(self, step: int) -> int:
        """Return 0: every step of a stream is a full global batch."""
        return 0

    def examples_after(self, step: int) -> int:
        """Return the rows that the run has seen after a step, those that it skipped included."""
        return step * self.run_config.global_batch

    def epochs_after(self, step: int) -> float | None:
        """Return None: how many rows there are is not known."""
        return None

    def largest(self) -> MicroBatch:
        """Return a micro batch of filler that is as large as any of the run's on one rank."""
        return self.dealer.largest(self.run_config.max_length)

    def step(self, step: int) -> Iterator[MicroBatch]:
        """Yield this rank's micro batches of a step of the run, counted from 0."""
        first = (step - self.start_step) * self.run_config.global_batch
        if first < self._position or not self._position:
            self._rows, self._position = self._stream(), 0
        while self._position < first:
            next(self._rows)
            self._position += 1
        rows = [next(self._rows) for _ in range(self.run_config.global_batch)]
        self._position += len(rows)
        # The length in tokens is known to one rank only; that of the text serves as well.
        sizes = [1 + row.size() for _, row in rows]
        return self.dealer.deal(sizes, lambda index: self._load(*rows[index]))

    def encode(self, rows: Sequence[RawRow]) -> list[Encoded | Rejected]:
        """Tokenise rows; one whose example is too long keeps none."""
        return [
            result
            if isinstance(result, Rejected)
            else result._replace(
                examples=tuple(e for e in map(self.limit.fit, result.examples) if e is not None)
            )
            for result in self.encoder.encode(rows)
        ]

    def _known(self, rows: Sequence[RawRow]) -> list[Encoded | Rejected]:
        """Tokenise rows, and reject those with a token that the model does not know."""
        results: list[Encoded | Rejected] = []
        for result in self.encode(rows):
            largest = max((max(example.input_ids) for example in _examples(result)), default=0)
            if largest >= self.vocab_size:
                result = Rejected(result.line, unknown_token(largest, self.vocab_size))
            results.append(result)
        return results

    def _load(self, path: Path, row: RawRow) -> BatchRow:
        """Return a row's example; nothing if it is skipped, which is counted and logged."""
        (result,) = self._known([row])
        for note in [] if isinstance(result, Rejected) else result.notes:
            if note not in self.notes:
                logger.info(f"First on rank {self.dealer.rank}, {path}, line {row.line}: {note}")
            self.notes[note] += 1
        examples = _examples(result)
        if not examples:
            self.num_skipped += 1
            if self.num_skipped in (1, 10, 100) or self.num_skipped % 1000 == 0:
                reason = result.reason if isinstance(result, Rejected) else "longer than max_length"
                logger.warning(
                    f"{self.num_skipped} rows of the stream skipped so far on rank "
                    f"{self.dealer.rank}, the latest: {path}, line {row.line}: {reason}"
                )
        return examples

    def _stream(self) -> Iterator[tuple[Path, RawRow]]:
        """Yield all rows forever, shuffled within windows."""
        window: list[tuple[Path, RawRow]] = []
        size, number = 0, 0
        while True:
            for row in self.rows_in_order():
                window.append(row)
                size += row[1].size()
                if len(window) == WINDOW_ROWS or size >= WINDOW_CHARACTERS:
                    yield from self._shuffled(window, number)
                    window, size, number = [], 0, number + 1
            yield from self._shuffled(window, number)
            window, size, number = [], 0, number + 1

    def _shuffled(self, window: list[Any], number: int) -> Iterator[Any]:
        seed = pass_seed(self.run_config.seed, number, self.run_config.data_order)
        return (window[i] for i in permutation(len(window), seed))

    def rows_in_order(self) -> Iterator[tuple[Path, RawRow]]:
        """Yield all rows once, in the order of the files."""
        for path in self.files:
            for row in read_rows(path):
                yield path, row


def _examples(result: Encoded | Rejected) -> tuple[Example, ...]:
    """Return the one example of a row of a stream; none if the row is skipped."""
    return () if isinstance(result, Rejected) else result.examples


def open_stream(
    run_config: RunConfig, tokenizer: Tokenizer, dealer: Dealer, vocab_size: int
) -> StreamSource:
    """Open the raw files that the run config names, and check the first rows.

    Raises:
        UserError: if there is no such file, or most of the rows do not fit.
    """
    (source,) = find_train_sources(run_config)
    if source.prepared is not None:
        raise UserError(
            f"stream reads raw files; got the prepared dataset data={source.given!r}; leave "
            "--stream out"
        )
    encoder = RowEncoder.from_settings(
        run_config, tokenizer, family=run_config.corpus, in_stream=True
    )
    limit = LengthLimit(run_config.max_length, run_config.overlong, tokenizer.start_ids)
    say_skipped([source], has_heldout=not run_config.heldout_data)
    stream = StreamSource(source.files(TRAIN), run_config, encoder, limit, dealer, vocab_size)
    stream.check()
    return stream
