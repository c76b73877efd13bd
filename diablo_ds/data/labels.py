"""Which tokens carry loss, and how an example that is too long is cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

IGNORE_LABEL = -100
"""Label of a position that carries no loss, e.g. a prompt token or padding."""


class Example(NamedTuple):
    """One tokenised example; both fields have the same length, and are lists or int32 arrays."""

    input_ids: Any
    labels: Any
    """The token at each position, or `IGNORE_LABEL` where it carries no loss."""


def shorten(
    example: Example, max_length: int, overlong: str, *, num_start: int = 0
) -> Example | None:
    """Fit an example into ``max_length`` tokens.

    "cut-prompt" removes the prompt's first tokens but keeps the start tokens, so that the end of
    the prompt and the whole completion stay. "cut-completion" removes the last tokens, and the end
    token with them: the text did not end there.

    Args:
        example: prompt, without loss, then completion.
        max_length: tokens to keep.
        overlong: "drop", "cut-prompt" or "cut-completion".
        num_start: start tokens (BOS) before the prompt.

    Returns:
        The example, cut where needed; None where it is dropped: by the policy, or because no
        target, or nothing of the prompt, would be left.
    """
    input_ids, labels = example
    num_excess = len(input_ids) - max_length
    if num_excess <= 0:
        return example
    if overlong == "cut-completion":
        kept = Example(input_ids[:max_length], labels[:max_length])
        return kept if has_target(kept.labels) else None
    if overlong == "cut-prompt":
        prompt_end = next((i for i, x in enumerate(labels) if x != IGNORE_LABEL), 0)
        cut = num_start + num_excess
        if cut < prompt_end:
            return Example(
                [*input_ids[:num_start], *input_ids[cut:]], [*labels[:num_start], *labels[cut:]]
            )
    return None


def has_target(labels: Sequence[int]) -> bool:
    """Return whether any position but the first, which nothing precedes, carries loss."""
    # From the end, where targets usually are.
    return any(labels[index] != IGNORE_LABEL for index in range(len(labels) - 1, 0, -1))
