"""Prompts: what comes before the answer in a training example, by the path of training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diablo_ds.config.choices import AUTO
from diablo_ds.data.corpora.encoding import Encoded, RowEncoder
from diablo_ds.data.corpora.raw_rows import RawRow
from diablo_ds.data.labels import IGNORE_LABEL
from diablo_ds.data.text.tokenization import Tokenizer
from diablo_ds.errors import UserError

_ANSWER = "the answer"
"""Stands for an answer that is not known yet; it does not become part of the prompt."""


class Request(NamedTuple):
    """What a model is asked."""

    instruction: str = ""
    context: str = ""
    messages: Sequence[Mapping[str, Any]] = ()
    """A conversation, ending before the answer, in place of instruction and context."""


class Completed(NamedTuple):
    """A request with an answer, as tokens."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    """With the tokens that end it."""


def encode_prompts(
    requests: Sequence[Request], template: str, tokenizer: Tokenizer, control_tokens: str = AUTO
) -> list[tuple[int, ...]]:
    """Return the tokens of each prompt, up to where the answer begins; see `encode_completed`."""
    pairs = [(request, _ANSWER) for request in requests]
    completed = encode_completed(pairs, template, tokenizer, control_tokens)
    return [example.prompt for example in completed]


def encode_completed(
    completed: Sequence[tuple[Request, str]],
    template: str,
    tokenizer: Tokenizer,
    control_tokens: str = AUTO,
) -> list[Completed]:
    """Encode requests with their answers as examples of training data, and cut these in two.

    Args:
        completed: each a request and an answer to it, which is not empty.
        template: one of `PROMPTS`, or "chat".
        tokenizer: the model's.
        control_tokens: what control tokens in the text of the template plain are, as in training
            data: "read", "text", or "auto" for read where a prompt begins with one.

    Raises:
        UserError: if the template does not accept a request, or there is no token before an answer.
    """
    encoder = RowEncoder(AUTO, template, tokenizer, control_tokens, last_answer_only=True)
    rows = [RawRow(n, _row(*pair)) for n, pair in enumerate(completed, start=1)]
    result = []
    for (request, _), encoded in zip(completed, encoder.encode(rows), strict=True):
        if not isinstance(encoded, Encoded):
            raise UserError(
                f"a prompt must fit the template {template}; got {_shown(request)}: "
                f"{encoded.reason}"
            )
        ids, labels = encoded.examples[-1]
        start = next(i for i, label in enumerate(labels) if label != IGNORE_LABEL)
        if not start:
            raise UserError("a prompt must have at least one token; got an empty one")
        result.append(Completed(tuple(ids[:start]), tuple(ids[start:])))
    return result


def _row(request: Request, answer: str) -> dict[str, Any]:
    """Return a row of training data; earlier answers of a conversation carry no loss."""
    if request.messages:
        messages = [dict(message) for message in request.messages]
        return {"prompt": messages, "completion": [{"role": "assistant", "content": answer}]}
    if request.context:
        return {
            "instruction": request.instruction,
            "input": request.context,
            "output": answer,
        }
    return {"prompt": request.instruction, "completion": answer}


def _shown(request: Request) -> str:
    text = request.messages[-1].get("content") if request.messages else request.instruction
    return f"{text!r:.60}"
