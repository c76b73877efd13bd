"""A question of a task, and the verdict on an answer to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Question:
    """One question, before it is rendered with a template."""

    id: str
    """Unique in its task: the published id, or the row's number, counted from 1."""
    instruction: str = ""
    context: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    """A conversation, ending with the user, in place of instruction and context."""
    reference: Any = None
    """What an answer is compared with: a JSON value that the task's judge understands."""
    choices: tuple[str, ...] = ()
    """The possible answers, in full, as a response in the training data would be."""
    correct: int | None = None
    """Index of the correct choice."""


@dataclass(frozen=True)
class Verdict:
    """What a judge found in a generated answer."""

    extracted: str | None
    """The part of the answer that was compared; None if nothing was found."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """From 0 to 1, by metric."""
