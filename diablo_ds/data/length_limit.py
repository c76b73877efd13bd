"""The limit on the length of an example, and what happens to longer ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diablo_ds.data.labels import IGNORE_LABEL, Example, has_target

DROPPED_TO_WARN = 0.05
"""Share of examples that may be dropped as too long without a warning."""
SHARE_TO_KEEP = 0.99


@dataclass(frozen=True)
class LengthLimit:
    """The one rule by which training, streaming and preparation shorten or drop long examples.

    Args:
        max_length: longest example, in tokens.
        overlong: what to do with longer ones: "drop" them; "cut-prompt", which removes the first
            tokens of the prompt after the start tokens, so that the end of the prompt and the
            entire completion remain; "cut-completion", which removes the last tokens and with them
            the end token, as the text did not end there; or "error", where the caller raises one.
        start_ids: the tokenizer's start tokens (BOS), which "cut-prompt" keeps.
    """

    max_length: int = 1 << 31
    overlong: str = "drop"
    start_ids: tuple[int, ...] = ()

    def fit(self, example: Example) -> Example | None:
        """Return an example of at most ``max_length`` tokens.

        Args:
            example: prompt, without loss, then completion.

        Returns:
            The example itself if it fits, its shortened form, or None if it is dropped: by the
            policy, or because no target or nothing of the prompt would remain.
        """
        input_ids, labels = example
        num_excess = len(input_ids) - self.max_length
        if num_excess <= 0:
            return example
        if self.overlong == "cut-completion":
            kept = Example(input_ids[: self.max_length], labels[: self.max_length])
            return kept if has_target(kept.labels) else None
        if self.overlong == "cut-prompt":
            prompt_end = next((i for i, label in enumerate(labels) if label != IGNORE_LABEL), 0)
            start = self._num_start(example)
            end = start + num_excess
            if end < prompt_end:
                return Example(
                    [*input_ids[:start], *input_ids[end:]], [*labels[:start], *labels[end:]]
                )
        return None

    def _num_start(self, example: Example) -> int:
        """Return the number of start tokens: a chat template may write none."""
        count = len(self.start_ids)
        return count if tuple(example.input_ids[:count]) == self.start_ids else 0


def warn_of_dropped(num_kept: int, dropped: Sequence[int], max_length: int) -> str:
    """Return a warning if many examples are dropped as too long; empty if not.

    Args:
        num_kept: examples that are kept.
        dropped: tokens of each one that is dropped.
        max_length: the limit, in tokens.
    """
    total = num_kept + len(dropped)
    if len(dropped) <= DROPPED_TO_WARN * total:
        return ""
    rank = math.ceil(SHARE_TO_KEEP * total)  # of the length to keep, counted from 1
    longest = sorted(dropped)[max(rank - num_kept, 1) - 1]
    return (
        f"{len(dropped):,} of {total:,} examples ({len(dropped) / total:.1%}) are dropped, as they "
        f"are longer than max_length={max_length}; --max-length {longest} would keep "
        f"{SHARE_TO_KEEP:.0%} of them, --overlong cut-completion or cut-prompt would cut them"
    )
