"""What a model is asked: items with their tokens, and the rows that answers become."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diablo_ds.data.examples import Examples
from diablo_ds.data.labels import IGNORE_LABEL
from diablo_ds.data.text.tokenization import Tokenizer
from diablo_ds.errors import UserError
from diablo_ds.evaluation.engine import Engine
from diablo_ds.evaluation.inputs import CHOICE, GENERATION, LOSS, TaskInput
from diablo_ds.evaluation.loss_data import load_loss_examples
from diablo_ds.evaluation.models import Models
from diablo_ds.evaluation.options import EvaluateOptions
from diablo_ds.evaluation.predictions import Key, Row, finite
from diablo_ds.evaluation.prompts import encode_choices, encode_questions
from diablo_ds.evaluation.question import Question
from diablo_ds.evaluation.scores import judge_choices
from diablo_ds.model.requests import (
    ChoiceRequest,
    ChoiceResult,
    Generation,
    GenerationRequest,
    LossRequest,
    LossResult,
)

LONGEST_EXAMPLE = 2048
"""Tokens of the longest example of a loss, where models take as many."""
Request = GenerationRequest | ChoiceRequest | LossRequest


@dataclass(frozen=True)
class Item:
    """One thing that a model is asked."""

    key: Key
    request: Request
    is_truncated: bool
    """Whether the prompt, or the text of a loss, was too long for the model and is cut."""
    question: Question | None = None


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
        self, model: str, given: TaskInput, template: str, end_ids: frozenset[int]
    ) -> list[Item]:
        """Return all that a model is asked for a task, in the order of its questions.

        Args:
            model: its name.
            given: the task.
            template: of the prompts.
            end_ids: tokens that end the model's answers.

        Raises:
            UserError: if a question does not fit the template, or an answer not the model.
        """
        if LOSS in given.asks:
            return self._texts(model, given)
        items: list[Item] = []
        if GENERATION in given.asks:
            items += self._generations(model, given, template, end_ids)
        if CHOICE in given.asks:
            items += self._rankings(model, given, template)
        return items

    def check(self, model: str, given: TaskInput, template: str) -> None:
        """Raise UserError where `items` would."""
        self.items(model, given, template, frozenset())

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
            )
        return self._examples[key]

    def _generations(
        self, model: str, given: TaskInput, template: str, end_ids: frozenset[int]
    ) -> list[Item]:
        task = given.task
        room = self._room(model, given, task.max_new_tokens)
        items = []
        for question, prompt in zip(
            given.questions, self._encoded(model, given, template), strict=True
        ):
            cut = _cut(prompt, room, self.tokenizer(model))
            for sample in range(task.num_samples):
                request = GenerationRequest(
                    cut,
                    task.max_new_tokens,
                    end_ids,
                    task.stops_for(template),
                    task.temperature,
                    task.top_p,
                    _seed(self._options.seed, task.name, question.id, sample),
                )
                key = Key(model, task.name, GENERATION, question.id, sample)
                items.append(Item(key, request, len(cut) < len(prompt), question))
        return items

    def _rankings(self, model: str, given: TaskInput, template: str) -> list[Item]:
        place = self._models.folder(model), template, given.name
        if place not in self._choices:
            tokenizer = self.tokenizer(model)
            self._choices[place] = encode_choices(given.questions, template, tokenizer)
        items = []
        for question, prompt, choices in zip(
            given.questions,
            self._encoded(model, given, template),
            self._choices[place],
            strict=True,
        ):
            room = self._room(model, given, max(map(len, choices)))
            cut = _cut(prompt, room, self.tokenizer(model))
            key = Key(model, given.name, CHOICE, question.id, 0)
            request = ChoiceRequest(cut, choices)
            items.append(Item(key, request, len(cut) < len(prompt), question))
        return items

    def _texts(self, model: str, given: TaskInput) -> list[Item]:
        examples = self.examples(model, given)
        full = examples.table.lengths()[examples.indices]
        items = []
        for number in range(min(len(examples), given.limit or len(examples))):
            ids, labels = examples[number]
            key = Key(model, given.name, LOSS, str(number + 1), 0)
            request = LossRequest(tuple(map(int, ids)), tuple(map(int, labels)))
            items.append(Item(key, request, len(ids) < int(full[number])))
        return items

    def _encoded(self, model: str, given: TaskInput, template: str) -> list[tuple[int, ...]]:
        place = self._models.folder(model), template, given.name
        if place not in self._prompts:
            tokenizer = self.tokenizer(model)
            self._prompts[place] = encode_questions(given.questions, template, tokenizer)
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

    def _room(self, model: str, given: TaskInput, num_answer: int) -> float:
        """Return the most tokens of a prompt: at least half of the positions are for prompts."""
        positions = self._positions(model)
        if num_answer > positions // 2:
            raise UserError(
                "answers must take at most half of a model's positions, for prompts to have room; "
                f"got {num_answer} tokens for an answer of {given.name}, {positions} positions of "
                f"{model}; give a smaller --max-new-tokens"
            )
        return positions - num_answer


def ask(engine: Engine, items: Sequence[Item], on_result: Callable[[Item, Any], object]) -> None:
    """Put items to a model. Collective: every rank must call this with the same items."""
    for kind, call in (
        (GenerationRequest, engine.generate),
        (ChoiceRequest, engine.choose),
        (LossRequest, engine.losses),
    ):
        chosen = [item for item in items if isinstance(item.request, kind)]

        def deliver(index: int, result: Any, chosen: list[Item] = chosen) -> None:
            on_result(chosen[index], result)

        do: Any = call
        do([item.request for item in chosen], deliver)


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
    row["prompt"] = decode(list(request.prompt))
    row["num_prompt_tokens"] = len(request.prompt)
    row["reference"] = item.question.reference
    if isinstance(result, ChoiceResult):
        known = [-math.inf if math.isnan(v) else v for v in result.log_likelihoods]
        verdict = judge_choices(item.question, known)
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
    if given.task.judge is None:
        return row
    found = given.task.judge(item.question, result.text)
    return row | {"extracted": found.extracted, "scores": dict(found.scores)}


def _cut(prompt: tuple[int, ...], room: float, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return a prompt that fits: its start tokens and its end, where the question is asked."""
    if len(prompt) <= room:
        return prompt
    start = tokenizer.start_ids if prompt[: len(tokenizer.start_ids)] == tokenizer.start_ids else ()
    return (*start, *prompt[len(prompt) - int(room) + len(start) :])


def _seed(seed: int, task: str, question: str, sample: int) -> int:
    """Return the seed of an answer, which depends neither on the model nor on other answers."""
    digest = hashlib.sha256(f"{seed}\0{task}\0{question}\0{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
