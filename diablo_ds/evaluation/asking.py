"""What a model is asked: items with their tokens, and the rows that answers become."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from diablo_ds.data.examples import Examples
from diablo_ds.data.labels import IGNORE_LABEL
from diablo_ds.data.text.tokenization import Tokenizer
from diablo_ds.errors import UserError
from diablo_ds.evaluation.inputs import TaskInput
from diablo_ds.evaluation.items import (
    CHOICE,
    GENERATION,
    LOSS,
    Item,
    choice_items,
    generation_items,
    loss_items,
    verdict_of,
)
from diablo_ds.evaluation.loss_data import load_loss_examples
from diablo_ds.evaluation.models import Models
from diablo_ds.evaluation.options import EvaluateOptions
from diablo_ds.evaluation.predictions import Row
from diablo_ds.evaluation.prompts import encode_choices, encode_questions
from diablo_ds.files.strict_json import finite
from diablo_ds.generation.prompts import PromptForm
from diablo_ds.model.requests import ChoiceResult, Generation, LossRequest, LossResult

LONGEST_EXAMPLE = 2048
"""Tokens of the longest example of a loss, where models take as many."""


class Encoder:
    """Questions and texts as items, encoded once for all models with the same tokenizer.

    Args:
        models: the models of the evaluation.
        options: the options of the evaluation.
    """

    def __init__(self, models: Models, options: EvaluateOptions) -> None:
        self._models, self._options = models, options
        self._prompts: dict[tuple[Path, str, str], list[tuple[int, ...]]] = {}
        self._choices: dict[tuple[Path, str, str], list[tuple[tuple[int, ...], ...]]] = {}
        self._examples: dict[tuple[Path, str], Examples] = {}
        self._tokenizers: dict[Path, Tokenizer] = {}

    def items(
        self, model: str, given: TaskInput, form: PromptForm, end_ids: frozenset[int]
    ) -> list[Item]:
        """Return all that a model is asked for a task, in the order of its questions.

        Args:
            model: its name.
            given: the task.
            form: of the prompts.
            end_ids: tokens that end the model's answers.

        Raises:
            UserError: if a question does not fit the template, or an answer not the model.
        """
        if LOSS in given.asks:
            return loss_items(model, given.task, self.examples(model, given), given.limit or 0)
        items: list[Item] = []
        if GENERATION in given.asks:
            items += generation_items(
                model,
                given.task,
                given.questions,
                self._encoded(model, given, form),
                form.template,
                self.tokenizer(model),
                end_ids=end_ids,
                max_positions=self._positions(model),
                seed=self._options.seed,
            )
        if CHOICE in given.asks:
            items += self._rankings(model, given, form)
        return items

    @cached_property
    def max_length(self) -> int:
        """The longest example of a loss, in tokens: the same for all models.

        Raises:
            UserError: if a model does not take as many as were given.
        """
        known = {name: self._positions(name) for name in self._models.names}
        model = min(known, key=lambda name: known[name])
        given = self._options.max_length
        if given is not None and given > known[model]:
            raise UserError(
                "max_length must be at most the positions of each model; got "
                f"max_length={given}, and {known[model]} positions of {model}"
            )
        return given or min(LONGEST_EXAMPLE, int(min(known[model], LONGEST_EXAMPLE)))

    def examples(self, model: str, given: TaskInput) -> Examples:
        """Return the examples of a task of the kind "loss", as a model reads them.

        Raises:
            UserError: if they cannot be read.
        """
        folder = self._models.folder(model)
        key = folder, given.name
        if key not in self._examples:
            self._examples[key] = load_loss_examples(
                given.path,
                self.tokenizer(model),
                self._models.text_config(model).vocab_size,
                max_length=self.max_length,
                template=self._options.template,
                corpus=self._options.corpus,
                column=self._options.column,
                control_tokens=self._options.control_tokens,
            )
        return self._examples[key]

    def _rankings(self, model: str, given: TaskInput, form: PromptForm) -> list[Item]:
        place = self._models.folder(model), form.text, given.name
        if place not in self._choices:
            tokenizer = self.tokenizer(model)
            self._choices[place] = encode_choices(
                given.questions, form.template, tokenizer, form.control_tokens
            )
        return choice_items(
            model,
            given.task,
            given.questions,
            self._encoded(model, given, form),
            self._choices[place],
            self.tokenizer(model),
            max_positions=self._positions(model),
        )

    def _encoded(self, model: str, given: TaskInput, form: PromptForm) -> list[tuple[int, ...]]:
        place = self._models.folder(model), form.text, given.name
        if place not in self._prompts:
            tokenizer = self.tokenizer(model)
            self._prompts[place] = encode_questions(
                given.questions, form.template, tokenizer, form.control_tokens
            )
        return self._prompts[place]

    def tokenizer(self, model: str) -> Tokenizer:
        """Return a model's tokenizer."""
        folder = self._models.folder(model)
        if folder not in self._tokenizers:
            self._tokenizers[folder] = self._models.tokenizer(model)
        return self._tokenizers[folder]

    def _positions(self, model: str) -> float:
        positions = getattr(self._models.text_config(model), "max_position_embeddings", None)
        return int(positions) if positions else math.inf


def row_of(item: Item, result: Any, given: TaskInput, decode: Callable[[Any], str]) -> Row:
    """Return an answer as a row, with its verdict where it takes no program.

    Args:
        item: what was asked.
        result: the engine's.
        given: the task.
        decode: returns the text of tokens.

    Raises:
        UserError: if the judge of the task cannot work.
    """
    row: Row = {**item.key._asdict(), "is_truncated": item.is_truncated}
    request = item.request
    if isinstance(result, LossResult) and isinstance(request, LossRequest):
        start = next((i for i, x in enumerate(request.labels) if x != IGNORE_LABEL), 0)
        row["prompt"], row["output"] = (
            decode(list(request.input_ids[:start])),
            decode(list(request.input_ids[start:])),
        )
        return row | {
            "num_prompt_tokens": start,
            "nats": finite(result.nats),
            "num_targets": result.num_targets,
        }
    assert not isinstance(request, LossRequest)
    assert item.question is not None
    verdict = verdict_of(given.task, item, result)
    row["prompt"] = decode(list(request.prompt))
    row["num_prompt_tokens"] = len(request.prompt)
    row["reference"] = item.question.reference
    if isinstance(result, ChoiceResult):
        assert verdict is not None
        return row | {
            "output": verdict.extracted,
            "choices": list(item.question.choices),
            "correct": item.question.correct,
            "log_likelihoods": list(map(finite, result.log_likelihoods)),
            "is_greedy": list(result.is_greedy),
            "extracted": verdict.extracted,
            "scores": dict(verdict.scores),
        }
    assert isinstance(result, Generation)
    row |= {"output": result.text, "finish": result.finish, "num_tokens": len(result.tokens)}
    if verdict is None:
        return row
    return row | {"extracted": verdict.extracted, "scores": dict(verdict.scores)}
