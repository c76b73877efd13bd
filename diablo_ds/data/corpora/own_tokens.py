"""Rows whose text contains control tokens already: begin and end tokens, or a rendered chat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from diablo_ds.config.choices import AUTO, READ
from diablo_ds.data.corpora.fields import Exchange, RowError
from diablo_ds.data.text.conversations import CONTROL_TEXT, Conversation
from diablo_ds.data.text.templates import Segment
from diablo_ds.data.text.tokenization import EncodableText, Tokenizer

OWN_ENDS = "a begin or end token already in the text, which is not added again"
CONTROL_READ = "control tokens in the text, read as control tokens"


def plain_text(
    prompt: str, response: str, tokenizer: Tokenizer, control_tokens: str
) -> tuple[EncodableText, tuple[str, ...]]:
    """Return the unchanged text of a prompt and its completion, and notes on them.

    Text that a chat template has rendered begins or ends with a control token. Its control tokens
    are read, and a begin or end token is not added where it has one.

    Args:
        prompt: empty for a text without one.
        response: the completion.
        tokenizer: knows the control tokens.
        control_tokens: whether control tokens are read, kept as text, or, for "auto", read in rows
            that begin or end with one.
    """
    control = tokenizer.control
    first, last = control.at_start(prompt or response), control.at_end(response.rstrip())
    is_rendered = control_tokens == READ or (control_tokens == AUTO and bool(first or last))
    segments = Segment(prompt, False), Segment(response, True)
    if not is_rendered:
        has_control = control.are_in(prompt) or control.are_in(response)
        return EncodableText(segments), (CONTROL_TEXT,) if has_control else ()
    if last is not None:  # a template may have added a line break after the end of turn
        _filled(response.rstrip().removesuffix(last.text))
        segments = segments[0], Segment(response.rstrip(), True)
    has_start = bool(tokenizer.start_text) and (prompt or response).startswith(tokenizer.start_text)
    text = EncodableText(
        segments, add_start=not has_start, add_end=last is None, parse_special=True
    )
    notes: tuple[str, ...] = (OWN_ENDS,) if has_start or last is not None else ()
    if control.are_in(prompt) or control.are_in(response):
        notes += (CONTROL_READ,)
    return text, notes


def without_own_ends(exchange: Exchange, tokenizer: Tokenizer) -> tuple[Exchange, tuple[str, ...]]:
    """Remove begin and end tokens, which the tokenizer adds, and return notes on the rest."""
    instruction = _without_start(exchange.instruction, tokenizer)
    response = _without_end(exchange.response, (tokenizer.end_text,))
    cleaned = exchange._replace(instruction=instruction, response=response)
    notes: tuple[str, ...] = (OWN_ENDS,) if cleaned != exchange else ()
    if any(tokenizer.control.are_in(text) for text in cleaned):
        notes += (CONTROL_TEXT,)
    return cleaned, notes


def without_own_ends_in_chat(conversation: Conversation, tokenizer: Tokenizer) -> Conversation:
    """Remove the begin token of the first message, and the ends of turns of answers."""
    ends = [tokenizer.end_text]
    if tokenizer.turn_end is not None:
        ends.append(tokenizer.turn_end.text)

    def clean(turn: int, message: Mapping[str, Any]) -> Mapping[str, Any]:
        content = message.get("content")
        if not content:
            return message
        if turn == 0:
            content = _without_start(content, tokenizer)
        if message["role"] == "assistant":
            content = _without_end(content, ends)
        return message if content == message["content"] else {**message, "content": content}

    messages = [clean(turn, message) for turn, message in enumerate(conversation.messages)]
    if messages == list(conversation.messages):
        return conversation
    return Conversation(
        messages,
        conversation.has_loss,
        conversation.tools,
        conversation.variables,
        (*conversation.notes, OWN_ENDS),
    )


def _without_start(text: str, tokenizer: Tokenizer) -> str:
    start = tokenizer.start_text
    return text.removeprefix(start) if start else text


def _without_end(text: str, ends: Iterable[str]) -> str:
    stripped = text.rstrip()
    for end in ends:
        if end and stripped.endswith(end):
            return _filled(stripped.removesuffix(end))
    return text


def _filled(answer: str) -> str:
    """Return an answer; raise RowError if nothing remains of it without its end token."""
    if not answer.strip():
        raise RowError("an answer must contain more than an end token")
    return answer
