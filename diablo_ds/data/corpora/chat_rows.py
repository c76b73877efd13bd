"""Rows that hold a conversation, by the fields that they have it in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from diablo_ds.data.corpora.chats import WITHOUT_LOSS, build_conversation, parsed
from diablo_ds.data.corpora.fields import Exchange, Fields, RowError, text
from diablo_ds.data.corpora.sharegpt import with_standard_names
from diablo_ds.data.text.conversations import Conversation

UNANSWERED = "messages after the last answer, which carry no loss, removed"


def read_conversation(row: Fields) -> Conversation:
    """Read a row with messages, and optionally with tools and variables for the template.

    Lists and objects may also be JSON text, as in tables. Null fields count as absent, since tables
    fill missing fields with null. Messages may have ShareGPT's keys and roles.

    Raises:
        RowError: if the row does not fit.
    """
    return build_conversation(row, _messages(row, "messages"))


def read_sharegpt(row: Fields) -> Conversation:
    """Read a row with conversations, as ShareGPT has them.

    Its dialogues may end with a question, which carries no loss and is removed.

    Raises:
        RowError: if the row does not fit.
    """
    messages = _with_system(row, _messages(row, "conversations"))
    end = len(messages)
    while end and _role(messages[end - 1]) in ("user", "tool", "function"):
        end -= 1
    notes = (UNANSWERED,) if 0 < end < len(messages) else ()
    return build_conversation(row, messages[: end or None], notes)


def read_chat_pair(row: Fields) -> Conversation:
    """Read a row with prompt and completion of which one or both are messages, as TRL has them.

    The loss is on the answers of the completion.

    Raises:
        RowError: if the row does not fit.
    """
    prompt = _one_side(row, "prompt", "user")
    completion = _one_side(row, "completion", "assistant")
    earlier = [
        {**message, "train": False} if _role(message) == "assistant" else message
        for message in prompt
    ]
    read = build_conversation(row, [*earlier, *completion])
    return replace(read, notes=tuple(note for note in read.notes if note != WITHOUT_LOSS))


def read_instruction_chat(row: Fields) -> Conversation | Exchange:
    """Read an instruction of Alpaca, or a question, that may have a system message or history.

    Returns:
        A conversation; an exchange if the row has neither.

    Raises:
        RowError: if the row does not fit.
    """
    history = parsed(row.get("history") or [], "field 'history'")
    rule = "field 'history' must be a list of pairs of texts"
    if not isinstance(history, list):
        raise RowError(rule)
    messages: list[Any] = []
    for turn in history:
        is_pair = isinstance(turn, list | tuple) and len(turn) == 2
        if not is_pair or not all(isinstance(part, str) for part in turn):
            raise RowError(f"{rule}: {turn!r:.60}")
        messages.append({"role": "user", "content": turn[0]})
        messages.append({"role": "assistant", "content": turn[1]})
    question, answer = ("instruction", "output") if "instruction" in row else ("question", "answer")
    context = text(row, "input", may_be_empty=True) if row.get("input") is not None else ""
    exchange = Exchange(text(row, question), context.strip() and context, text(row, answer))
    messages.append({"role": "user", "content": "\n".join(filter(None, exchange[:2]))})
    messages.append({"role": "assistant", "content": exchange.response})
    messages = _with_system(row, messages)
    return exchange if len(messages) == 2 else build_conversation(row, messages)


def _messages(row: Fields, field: str) -> list[Any]:
    messages = parsed(row[field], f"field {field!r}")
    if not isinstance(messages, list) or not messages:
        raise RowError(f"field {field!r} must be a list, not empty")
    return messages


def _one_side(row: Fields, field: str, role: str) -> list[Any]:
    if isinstance(row[field], str):
        return [{"role": role, "content": text(row, field)}]
    return _messages(row, field)


def _with_system(row: Fields, messages: list[Any]) -> list[Any]:
    system = row.get("system")
    if system is None or (isinstance(system, str) and not system.strip()):
        return messages
    if _role(messages[0]) == "system":
        raise RowError("a row must have one system message: field 'system' and the first message")
    return [{"role": "system", "content": text(row, "system")}, *messages]


def _role(message: Any) -> Any:
    return with_standard_names(message).get("role") if isinstance(message, dict) else None
