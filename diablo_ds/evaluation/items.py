"""What a model is asked for a task, in tokens, and the verdicts on what it answers.

items = generation_items(model, task, questions, prompts, template, tokenizer, end_ids=ends)
ask(engine, items, on_result)
verdict_of(task, item, result)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from diablo_ds.data.examples import Examples
from diablo_ds.data.text.tokenization import Tokenizer
from diablo_ds.errors import UserError
from diablo_ds.evaluation.engine import Engine
from diablo_ds.evaluation.question import Question, Verdict
from diablo_ds.evaluation.scores import judge_choices, question_scores
from diablo_ds.evaluation.task import Task
from diablo_ds.model.requests import (
    ChoiceRequest,
    ChoiceResult,
    Generation,
    GenerationRequest,
    LossRequest,
    LossResult,
)

GENERATION, CHOICE, LOSS = "generation", "choice", "loss"
"""What a model is asked for: an answer, the likelihoods of given answers, or the loss of a text."""
CHOICE_METRICS = ("choice", "choice_norm")
"""Metrics for which no answer is generated."""
Request = GenerationRequest | ChoiceRequest | LossRequest
Result = Generation | ChoiceResult | LossResult


class Key(NamedTuple):
    """What an answer is the answer to."""

    model: str
    task: str
    kind: str
    """`GENERATION`, `CHOICE` or `LOSS`, or another one of the caller's."""
    id: str
    """Of the question."""
    sample: int = 0
    """Number of the answer, where there are several; counted from 0."""


@dataclass(frozen=True)
class Item:
    """One thing that a model is asked."""

    key: Key
    request: Request
    is_truncated: bool
    """Whether the prompt, or the text of a loss, was too long for the model and is cut."""
    question: Question | None = None
    """None where the loss of a text is asked."""


def asks_of(task: Task) -> tuple[str, ...]:
    """Return what a model is asked for, by the metrics of a task."""
    if task.kind == "loss":
        return (LOSS,)
    has_choices = any(metric in CHOICE_METRICS for metric in task.metrics)
    has_answers = any(metric not in CHOICE_METRICS for metric in task.metrics)
    return ((GENERATION,) if has_answers else ()) + ((CHOICE,) if has_choices else ())


def generation_items(
    model: str,
    task: Task,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    template: str,
    tokenizer: Tokenizer,
    *,
    end_ids: frozenset[int],
    max_positions: float = math.inf,
    seed: int = 0,
) -> list[Item]:
    """Return an item for each answer to generate.

    Args:
        model: its name, for the keys.
        task: the task.
        questions: those to ask.
        prompts: the tokens of each.
        template: of the prompts.
        tokenizer: the model's.
        end_ids: tokens that end an answer.
        max_positions: tokens that the model takes, prompt and answer together.
        seed: of tokens that are drawn.

    Raises:
        UserError: if an answer leaves no room for its prompt.
    """
    room = _room(task.name, task.max_new_tokens, max_positions)
    stops = task.stops_for(template)
    items = []
    for question, prompt in zip(questions, prompts, strict=True):
        cut = cut_prompt(prompt, room, tokenizer)
        for sample in range(task.num_samples):
            request = GenerationRequest(
                cut,
                task.max_new_tokens,
                end_ids,
                stops,
                task.temperature,
                task.top_p,
                answer_seed(seed, task.name, question.id, sample),
            )
            key = Key(model, task.name, GENERATION, question.id, sample)
            items.append(Item(key, request, len(cut) < len(prompt), question))
    return items


def choice_items(
    model: str,
    task: Task,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    choices: Sequence[tuple[tuple[int, ...], ...]],
    tokenizer: Tokenizer,
    *,
    max_positions: float = math.inf,
) -> list[Item]:
    """Return an item for each question whose choices are compared.

    Args:
        model: its name, for the keys.
        task: the task.
        questions: those to ask.
        prompts: the tokens of each.
        choices: the tokens of the choices of each.
        tokenizer: the model's.
        max_positions: tokens that the model takes, prompt and choice together.

    Raises:
        UserError: if a choice leaves no room for its prompt.
    """
    items = []
    for question, prompt, continuations in zip(questions, prompts, choices, strict=True):
        room = _room(task.name, max(map(len, continuations)), max_positions)
        cut = cut_prompt(prompt, room, tokenizer)
        key = Key(model, task.name, CHOICE, question.id)
        is_truncated = len(cut) < len(prompt)
        items.append(Item(key, ChoiceRequest(cut, continuations), is_truncated, question))
    return items


def loss_items(model: str, task: Task, examples: Examples, limit: int = 0) -> list[Item]:
    """Return an item for each of the first examples whose loss is asked.

    Args:
        model: its name, for the keys.
        task: the task.
        examples: its data.
        limit: how many; 0 for all.
    """
    full = examples.table.lengths()[examples.indices]
    items = []
    for number in range(min(len(examples), limit or len(examples))):
        ids, labels = examples[number]
        key = Key(model, task.name, LOSS, str(number + 1))
        request = LossRequest(tuple(map(int, ids)), tuple(map(int, labels)))
        items.append(Item(key, request, len(ids) < int(full[number])))
    return items


def ask(engine: Engine, items: Sequence[Item], on_result: Callable[[Item, Any], object]) -> None:
    """Put items to a model. Collective: every rank must call this with the same items.

    Args:
        engine: the model.
        items: of any kinds.
        on_result: called on every rank with each item and its `Result`, in any order.
    """
    calls: tuple[tuple[type, Any], ...] = (
        (GenerationRequest, engine.generate),
        (ChoiceRequest, engine.choose),
        (LossRequest, engine.losses),
    )
    for kind, call in calls:
        chosen = [item for item in items if isinstance(item.request, kind)]

        def deliver(index: int, result: Any, chosen: list[Item] = chosen) -> None:
            on_result(chosen[index], result)

        call([item.request for item in chosen], deliver)


def verdict_of(task: Task, item: Item, result: Result) -> Verdict | None:
    """Return the verdict on an answer; None if a program has to be run for it, or it is a loss.

    Raises:
        UserError: if the judge of the task cannot work.
    """
    if isinstance(result, LossResult):
        return None
    assert item.question is not None
    if isinstance(result, ChoiceResult):
        known = [-math.inf if math.isnan(value) else value for value in result.log_likelihoods]
        return judge_choices(item.question, known)
    return None if task.judge is None else task.judge(item.question, result.text)


def values_by_metric(
    task: Task,
    asks: Iterable[str],
    model: str,
    questions: Sequence[Question],
    scores: Callable[[Key], Mapping[str, float]],
) -> dict[str, dict[str, float]]:
    """Return the score of each question by metric and id.

    Args:
        task: names the metrics.
        asks: some of `GENERATION` and `CHOICE`.
        model: its name in the keys.
        questions: those that were asked.
        scores: returns the scores of the verdict on an answer.
    """
    values: dict[str, dict[str, float]] = {}
    for question in questions:
        key = Key(model, task.name, GENERATION, question.id)
        found: dict[str, float] = {}
        if GENERATION in asks:
            samples = [scores(key._replace(sample=n)) for n in range(task.num_samples)]
            found |= question_scores(task, samples)
        if CHOICE in asks:
            chosen = scores(key._replace(kind=CHOICE))
            found |= {metric: chosen[metric] for metric in task.metrics if metric in chosen}
        for metric, value in found.items():
            values.setdefault(metric, {})[question.id] = value
    return values


def cut_prompt(prompt: tuple[int, ...], room: float, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return a prompt that fits: its start tokens and its end, where the question is asked."""
    if len(prompt) <= room:
        return prompt
    start = tokenizer.start_ids if prompt[: len(tokenizer.start_ids)] == tokenizer.start_ids else ()
    return (*start, *prompt[len(prompt) - int(room) + len(start) :])


def answer_seed(seed: int, task: str, question: str, sample: int) -> int:
    """Return the seed of an answer, which depends neither on the model nor on other answers."""
    digest = hashlib.sha256(f"{seed}\0{task}\0{question}\0{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _room(task: str, num_answer: int, max_positions: float) -> float:
    """Return the most tokens of a prompt: at least half of the positions are for prompts."""
    if num_answer > max_positions // 2:
        raise UserError(
            "an answer must take at most half of a model's positions, for prompts to have room; "
            f"got {num_answer} tokens for an answer of {task}, {max_positions} positions; ask "
            "for shorter answers, where the task allows it, or take another model"
        )
    return max_positions - num_answer
