"""Counts of what was read and of what is trained on, as the same text in every command."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from diablo_ds.config.choices import AUTO
from diablo_ds.data.corpora.encoding import count_rows
from diablo_ds.data.corpora.families import FAMILIES

MAX_NAMES = 8
"""Source names that are listed with their rows."""


@dataclass(frozen=True)
class ReadCounts:
    """What came of the rows of one or several sources."""

    rows_in: Mapping[str, int] = field(default_factory=dict)
    """Rows read, by source name."""
    num_bad: int = 0
    """Those that did not fit and were skipped."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """Rows by what was done with them."""
    templates: Mapping[str, str] = field(default_factory=dict)
    """The template of each kind of rows that was found."""

    def __add__(self, other: ReadCounts) -> ReadCounts:
        """Return the counts of both."""
        return ReadCounts(
            sum_counts([self.rows_in, other.rows_in]),
            self.num_bad + other.num_bad,
            sum_counts([self.notes, other.notes]),
            {**self.templates, **other.templates},
        )


@dataclass(frozen=True)
class PartCounts:
    """What a part, training or held-out data, consists of."""

    examples: int
    rows: int
    """Rows that the examples come from."""
    cut: int
    """Examples that were longer than the limit."""
    tokens: int
    target_tokens: int | None
    """None where they were not counted."""
    longest: int

    def describe(self) -> str:
        """Return the counts as text."""
        rows = f" of {self.rows:,} rows" if self.rows < self.examples else ""
        cut = f", {self.cut:,} cut" if self.cut else ""
        targets = "" if self.target_tokens is None else f", {self.target_tokens:,} of them targets"
        return (
            f"{self.examples:,} examples{rows}{cut}, {self.tokens:,} tokens{targets}; longest "
            f"{self.longest:,}"
        )


def describe_read(read: ReadCounts, left_out: Mapping[str, int]) -> list[str]:
    """Return lines of text on the rows that were read, those left out by reason, and templates."""
    lines = []
    if read.rows_in:
        lines.append(f"{sum(read.rows_in.values()):,} rows read: {listed(read.rows_in)}")
    if shown := {name: number for name, number in left_out.items() if number}:
        lines.append(f"{sum(shown.values()):,} skipped: {listed(shown)}")
    lines += [count_rows(number, note) for note, number in read.notes.items()]
    if read.templates:
        lines.append(f"Template: {_templates(read.templates)}")
    return lines


def templates_of(family: str, kinds: Iterable[str], template: str) -> dict[str, str]:
    """Return the template of each kind of rows that was found.

    Args:
        family: one of `FAMILIES`.
        kinds: names of the kinds.
        template: as it was set; "auto" for that of the kind.
    """
    found = frozenset(kinds)
    return {
        kind.name: kind.template if template == AUTO else template
        for kind in FAMILIES[family]
        if kind.name in found
    }


def sum_counts(counters: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the sum of counts by name, the names in alphabetical order."""
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return dict(sorted(total.items()))


def listed(numbers: Mapping[str, int]) -> str:
    """Return numbers with their names as text; of many, the largest ones."""
    by_size = sorted(numbers.items(), key=lambda item: -item[1]) if len(numbers) > MAX_NAMES else []
    shown = by_size[:MAX_NAMES] or numbers.items()
    text = ", ".join(f"{number:,} {name}" for name, number in shown)
    rest = by_size[MAX_NAMES:]
    more = f", {sum(number for _, number in rest):,} of {len(rest):,} more sources" if rest else ""
    return f"{text}{more}"


def _templates(templates: Mapping[str, str]) -> str:
    names = sorted(set(templates.values()))
    if len(names) == 1:
        return names[0]
    by_name = {name: [k for k, used in templates.items() if used == name] for name in names}
    return ", ".join(f"{name} for {' and '.join(kinds)}" for name, kinds in by_name.items())
