"""A task: where its questions come from, how they are asked, and how answers are judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diablo_ds.config.choices import Template
from diablo_ds.evaluation.question import Question, Verdict

Kind = Literal["generate", "choose", "both", "loss"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything that differs between tasks."""

    name: str
    version: int
    """Raised whenever a change of the task can change a score."""
    kind: Kind
    """Whether answers are generated, chosen by their likelihood, or both, or a text is scored."""
    template: Template
    """Template of the prompts where nothing else is chosen: that of the published protocol."""
    trained_templates: tuple[Template, ...] = ("chat",)
    """Templates that take the place of `template` where the model was trained with them."""
    metrics: tuple[str, ...]
    """The first is the one to compare models by."""
    lower_is_better: bool = False
    read: Callable[[Path], Iterator[Question]] | None = None
    """Reads the questions of a file or folder; raises UserError naming file and line. None for the
    kind "loss", whose data are read as training data are."""
    judge: Callable[[Question, str], Verdict] | None = None
    """Judges a generated answer. None if none is generated."""
    max_new_tokens: int = 0
    stops: tuple[str, ...] = ()
    """Texts that end an answer that continues the prompt's text: with the template plain only."""
    num_samples: int = 1
    """Answers generated per question."""
    temperature: float = 0.0
    """0 for greedy decoding."""
    top_p: float = 1.0
    runs_code: bool = False
    """Whether judging runs programs that the model wrote."""
    default_data: Callable[[], Path | None] | None = None
    """Finds the data that an installed package brings; None where it is not installed."""
