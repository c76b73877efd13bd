"""Questions as tokens, rendered as the training data of the model were."""

from __future__ import annotations

from collections.abc import Sequence

from diablo_ds.config.choices import AUTO
from diablo_ds.config.run import RunConfig
from diablo_ds.data.corpora.prompts import Request, encode_completed, encode_prompts
from diablo_ds.data.text.tokenization import Tokenizer
from diablo_ds.evaluation.question import Question
from diablo_ds.evaluation.task import Task
from diablo_ds.generation.prompts import (
    PromptForm,
    check_template,
    prompt_form,
    trained_template,
)

NO_PROMPT = PromptForm(AUTO, "of each row")
"""Of tasks that score texts of their own."""
_SPLIT = ("alpaca", "gsm8k")
"""Templates whose answers are tokenised apart from the prompt, so that they depend on it in no
way; other answers are encoded once for each question."""


def choose_task_form(
    task: Task,
    given: str,
    run_config: RunConfig | None,
    tokenizer: Tokenizer,
    control_tokens: str = AUTO,
) -> PromptForm:
    """Return the form of a task's prompts for one model, with its template.

    In this order: what the user gives; what the user gave for the training; that of the training
    data, where the task follows it; that of the task. Losses of different models are of the same
    tokens, so that their training does not matter: it is what the user gives, or "auto" for that of
    each row.

    Args:
        task: whose questions are asked.
        given: what the user chose, or "auto".
        run_config: of the run that trained the model; None for a base, or where it is not known.
        tokenizer: has the chat template, if there is one.
        control_tokens: what the user chose for control tokens in text, or "auto" for what they were
            in the training data.

    Raises:
        UserError: if the template is chat, and the tokenizer has none.
    """
    template, origin = given, "as given"
    if task.kind == "loss" and given == AUTO:
        return NO_PROMPT
    if run_config is not None:
        trained = trained_template(run_config)
        if control_tokens == AUTO:
            control_tokens = trained.control_tokens
        if template == AUTO and trained.is_given:
            template, origin = trained.name, "as trained"
        elif template == AUTO and trained.name in task.trained_templates:
            template, origin = trained.name, "of the training data"
    if template == AUTO:
        template, origin = task.template, "of the task"
    check_template(template, tokenizer)
    return prompt_form(template, origin, control_tokens)


def encode_questions(
    questions: Sequence[Question], template: str, tokenizer: Tokenizer, control_tokens: str = AUTO
) -> list[tuple[int, ...]]:
    """Return the tokens of the prompt of each question, up to where the answer begins.

    Args:
        questions: those to ask.
        template: one of `PROMPTS`, or "chat".
        tokenizer: the model's.
        control_tokens: see `encode_prompts`.

    Raises:
        UserError: if the template does not accept a question.
    """
    requests = [_request(question) for question in questions]
    return encode_prompts(requests, template, tokenizer, control_tokens)


def encode_choices(
    questions: Sequence[Question], template: str, tokenizer: Tokenizer, control_tokens: str = AUTO
) -> list[tuple[tuple[int, ...], ...]]:
    """Return for each question the tokens of each choice, as they follow the prompt.

    The tokens that end an answer are not among them. See `encode_questions`.

    Raises:
        UserError: if the template does not accept a question.
    """
    pairs = [(_request(q), choice) for q in questions for choice in q.choices]
    if template in _SPLIT:
        pairs = list({choice: (request, choice) for request, choice in pairs}.values())
    ends = tokenizer.control.ids | {tokenizer.end_id}
    encoded = [
        _without(ends, completed.answer)
        for completed in encode_completed(pairs, template, tokenizer, control_tokens)
    ]
    if template in _SPLIT:
        by_choice = dict(zip((choice for _, choice in pairs), encoded, strict=True))
        return [tuple(by_choice[choice] for choice in q.choices) for q in questions]
    rest = iter(encoded)
    return [tuple(next(rest) for _ in q.choices) for q in questions]


def _without(ends: frozenset[int], answer: tuple[int, ...]) -> tuple[int, ...]:
    end = len(answer)
    while end and answer[end - 1] in ends:
        end -= 1
    return answer[:end]


def _request(question: Question) -> Request:
    return Request(question.instruction, question.context, question.messages)
