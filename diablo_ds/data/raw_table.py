"""Raw files to examples in memory, with counts of what came of their rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from diablo_ds.data.bad_rows import MAX_NAMED, BadRows
from diablo_ds.data.corpora.chunking import split_chunks
from diablo_ds.data.corpora.encoding import Encoded, Rejected, RowEncoder, count_notes
from diablo_ds.data.corpora.sources import SourceFile
from diablo_ds.data.counts import ReadCounts, sum_counts, templates_of
from diablo_ds.data.labels import Example


@dataclass
class RawExamples:
    """The examples of raw files."""

    examples: list[Example] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    """The row of each example; of sequences of joined texts, each is a row of its own."""
    spans: list[tuple[str, int]] = field(default_factory=list)
    """Source names of consecutive rows, each with the number of rows."""
    num_read: Counter[str] = field(default_factory=Counter)
    """Rows read, by source name."""
    num_bad: int = 0
    kinds: set[str] = field(default_factory=set)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, results: Sequence[Encoded | Rejected]) -> None:
        """Add the tokenised rows of a source."""
        first = number = sum(count for _, count in self.spans)
        for result in results:
            if isinstance(result, Rejected):
                self.num_bad += 1
                continue
            self.examples += result.examples
            self.kinds.add(result.kind)
            num_rows = len(result.examples) if result.is_joined else 1
            numbers = range(number, number + num_rows)
            self.rows += numbers if result.is_joined else [number] * len(result.examples)
            number += num_rows
        self.spans.append((name, number - first))
        self.num_read[name] += len(results)
        self.notes.update(count_notes(results))

    def counts(self, encoder: RowEncoder) -> ReadCounts:
        """Return the counts of the rows."""
        return ReadCounts(
            dict(self.num_read),
            self.num_bad,
            sum_counts([self.notes]),
            templates_of(encoder.family, self.kinds, encoder.template),
        )


def tokenise_files(
    files: Sequence[SourceFile], encoder: RowEncoder, bad_rows: BadRows
) -> RawExamples:
    """Read and tokenise raw files.

    Args:
        files: one source's.
        encoder: reads, renders and tokenises rows.
        bad_rows: counts those that do not fit.

    Raises:
        UserError: if a file cannot be read, or too many rows do not fit.
    """
    raw = RawExamples()
    for chunk in split_chunks(files):
        results = encoder.encode(chunk.rows)
        rejected = [
            f"{files[file].path}, line {result.line}: {result.reason}"
            for file, result in zip(chunk.files, results, strict=True)
            if isinstance(result, Rejected)
        ]
        bad_rows.add(len(results), len(rejected), rejected[:MAX_NAMED])
        raw.add(files[chunk.file].name, results)
    return raw
