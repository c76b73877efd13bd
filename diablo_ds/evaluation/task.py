"""A task: where its questions come from, how they are asked, and how answers are judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from diablo_ds.config.choices import PLAIN, Template
from diablo_ds.evaluation.question import Question, Verdict
from diablo_ds.evaluation.sandbox.program import Program

Kind = Literal["generate", "choose", "both", "loss"]


class Split(NamedTuple):
    """The questions that a published protocol asks, where their file has others too."""

    holds: Callable[[Question], bool]
    """Tells whether a question is one of them."""
    note: str
    """Which they are, and how all are asked, for the user."""


class ModelJudge(NamedTuple):
    """How a model judges the answers of another one."""

    ask: Callable[[Question, str], Question]
    """Makes a question for the judge, a conversation, of a question and the answer to it."""
    read: Callable[[str], Verdict]
    """Reads the judge's verdict; without scores if it said neither."""
    metrics: tuple[str, ...]
    max_new_tokens: int


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
    split: Split | None = None
    """The questions of a file that are asked; None for all."""
    read: Callable[[Path], Iterator[Question]] | None = None
    """Reads all questions of a file or folder; raises UserError naming file and line. None for the
    kind "loss", whose data are read as training data are."""
    judge: Callable[[Question, str], Verdict] | None = None
    """Judges a generated answer. None if none is generated, or if `program` judges it."""
    program: Callable[[Question, str], Program] | None = None
    """Builds a program of a generated answer, which is correct if the program's tests pass."""
    judge_model: ModelJudge | None = None
    """How another model can judge an answer."""
    max_new_tokens: int = 0
    stops: tuple[str, ...] = ()
    """Texts that end an answer which continues the prompt's text; see `stops_for`."""
    num_samples: int = 1
    """Answers generated per question."""
    temperature: float = 0.0
    """0 for greedy decoding."""
    top_p: float = 1.0
    default_data: Callable[[], Path | None] | None = None
    """Finds the data that an installed package brings; None where it is not installed."""

    @property
    def runs_code(self) -> bool:
        """Whether judging runs programs that the model wrote."""
        return self.program is not None

    def stops_for(self, template: str) -> tuple[str, ...]:
        """Return the texts that end an answer; none but where it continues the prompt's text.

        An answer of its own may begin with what ends a continuation, such as a fenced block.
        """
        return self.stops if template == PLAIN else ()
