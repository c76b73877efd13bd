"""Messages, in the variants that users have, to conversations in one form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from diablo_ds.data.corpora.fields import Fields, RowError
from diablo_ds.data.corpora.sharegpt import with_standard_names
from diablo_ds.data.text.chat_template import ChatTemplate
from diablo_ds.data.text.conversations import REASONING, Conversation
from diablo_ds.files import strict_json

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
_THOUGHTS = (REASONING, "reasoning", "thinking")
_KNOWN = {
    "role",
    "content",
    "name",
    "weight",
    "train",
    "tool_calls",
    "tool_call_id",
    "function_call",
    *_THOUGHTS,
}
_RESULTS = ("tool", "function", "ipython")
VARIABLES = "chat_template_kwargs"
WITHOUT_LOSS = "answers of weight 0, which carry no loss"
NULL_ARGUMENTS = "null arguments of tool calls, removed"


def build_conversation(
    row: Fields, messages: Sequence[Any], more_notes: Sequence[str] = ()
) -> Conversation:
    """Read messages, and the row's tools and variables for the template.

    Null fields count as absent, since tables fill missing fields with null.

    Raises:
        RowError: if one does not fit.
    """
    notes: dict[str, None] = dict.fromkeys(more_notes)
    read = [_message(message, turn, notes) for turn, message in enumerate(messages, start=1)]
    if read[-1][0]["role"] != "assistant":
        raise RowError("the last message must be the assistant's")
    has_loss = [has_loss for _, has_loss in read]
    if not any(has_loss):
        raise RowError("a conversation must have an answer with loss: each has weight 0")
    variables = parsed(row.get(VARIABLES) or {}, f"field {VARIABLES!r}")
    if not isinstance(variables, dict):
        raise RowError(f"field {VARIABLES!r} must be an object")
    taken = {"messages", "tools", "add_generation_prompt"} & variables.keys()
    if taken:
        raise RowError(f"field {VARIABLES!r} must not hold {min(taken)!r}")
    return Conversation(
        [message for message, _ in read], has_loss, _tools(row), variables, tuple(notes)
    )


def unused_keys(conversation: Conversation, template: ChatTemplate) -> list[str]:
    """Return a note for each key of messages that the chat template does not read."""
    keys = {key for message in conversation.messages for key in message} - _KNOWN
    return [
        f"message key {key!r}, which the chat template does not use"
        for key in sorted(keys)
        if not template.mentions(key)
    ]


def _message(value: Any, turn: int, notes: dict[str, None]) -> tuple[dict[str, Any], bool]:
    if not isinstance(value, dict):
        raise RowError(f"message {turn} must be an object with role and content")
    value = with_standard_names(value)
    role = value.get("role")
    if role not in ROLES:
        raise RowError(f"message {turn}: role must be one of {', '.join(ROLES)}: {role!r:.60}")
    message = {key: item for key, item in value.items() if item is not None}
    if role == "function":  # the older name
        message["role"] = "tool"
    has_loss = _has_loss(message, role, turn, notes)
    _rename_thoughts(message, turn)
    calls = _calls(message, turn, notes)
    if calls:
        if role != "assistant":
            raise RowError(f"message {turn}: only the assistant may have tool_calls: {role}")
        message["tool_calls"] = calls
    if "content" in message:
        if role in _RESULTS and isinstance(message["content"], dict):
            message["content"] = json.dumps(message["content"], ensure_ascii=False)
        message["content"] = _content(message["content"], turn)
        if calls and not message["content"].strip():
            del message["content"]  # as if it were null, which templates expect
    elif not calls:
        raise RowError(f"message {turn}: content must be text")
    if role == "assistant" and has_loss and not calls and not message["content"].strip():
        raise RowError(f"message {turn}: an answer must not be empty, unless its weight is 0")
    return message, has_loss


def _has_loss(message: dict[str, Any], role: str, turn: int, notes: dict[str, None]) -> bool:
    """Return whether a message is an answer with loss; remove the keys that decide it."""
    weight, train = message.pop("weight", None), message.pop("train", None)
    if weight is not None and weight not in (0, 1):
        raise RowError(f"message {turn}: weight must be 0 or 1: {weight!r:.60}")
    if train is not None and not isinstance(train, bool):
        raise RowError(f"message {turn}: train must be true or false: {train!r:.60}")
    if weight is not None and train is not None and bool(weight) != train:
        raise RowError(f"message {turn}: weight and train must agree: {weight!r}, {train!r}")
    wanted = bool(weight) if weight is not None else train
    if role == "assistant":
        if wanted is False:
            notes[WITHOUT_LOSS] = None
        return wanted is not False
    if wanted:
        notes["weight or train of messages that are not answers, which carry no loss"] = None
    return False


def _rename_thoughts(message: dict[str, Any], turn: int) -> None:
    """Give an answer's thoughts the name under which transformers passes them to templates."""
    found = {key: message.pop(key) for key in _THOUGHTS if key in message}
    values = {value for value in found.values() if isinstance(value, str)}
    if any(not isinstance(value, str) for value in found.values()) or len(values) > 1:
        raise RowError(f"message {turn}: {' and '.join(found)} must be one text")
    if found and (value := values.pop()).strip():
        message[REASONING] = value


def _content(value: Any, turn: int) -> str:
    """Return a message's text, joined if it is a list of parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RowError(f"message {turn}: content must be text")
    texts = []
    for part in value:
        if isinstance(part, str):
            texts.append(part)
            continue
        is_text = isinstance(part, dict) and part.get("type") in ("text", None)
        if not is_text or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise RowError(f"message {turn}: each part of content must be text: {kind!r:.60}")
        texts.append(part["text"])
    return "".join(texts)


def _calls(message: dict[str, Any], turn: int, notes: dict[str, None]) -> list[dict[str, Any]]:
    """Return the calls of a message in OpenAI's format, with arguments as objects."""
    where = f"message {turn}: tool_calls"
    calls = parsed(message.pop("tool_calls", None) or [], where)
    if function := message.pop("function_call", None):  # the older form, for a single call
        calls = [*calls, {"function": parsed(function, where)}]
    if not isinstance(calls, list):
        raise RowError(f"{where} must be a list")
    result = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError(f"{where} must each have a function with a name")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = _json(arguments, f"{where} must have arguments in valid JSON")
        elif arguments is not None and (kept := _without_null(arguments)) != arguments:
            notes[NULL_ARGUMENTS] = None
            arguments = kept
        if not isinstance(arguments if arguments is not None else {}, dict):
            raise RowError(f"{where} must have an object as arguments")
        others = {k: v for k, v in call.items() if k in ("id",) and v is not None}
        described = {"name": function["name"], "arguments": arguments or {}}
        result.append({**others, "type": "function", "function": described})
    return result


def _tools(row: Fields) -> list[Mapping[str, Any]] | None:
    """Return the row's tools in OpenAI's format."""
    name = "tools" if row.get("tools") is not None else "functions"
    tools = parsed(row.get(name) or [], f"field {name!r}")
    if not isinstance(tools, list):
        raise RowError(f"field {name!r} must be a list")
    result: list[Mapping[str, Any]] = []
    for tool in tools:
        tool = _without_null(parsed(tool, f"field {name!r}"))
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError(f"field {name!r} must hold objects, each with the name of a function")
        result.append(tool if "function" in tool else {"type": "function", "function": tool})
    return result or None


def _without_null(value: Any) -> Any:
    """Remove null fields, by which tables fill in the keys of other rows' objects."""
    if isinstance(value, dict):
        return {key: _without_null(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_null(item) for item in value]
    return value


def parsed(value: Any, where: str) -> Any:
    """Return a list or an object that may also be JSON text, as in tables.

    Raises:
        RowError: if it is text and no JSON.
    """
    return _json(value, f"{where} must be valid JSON") if isinstance(value, str) else value


def _json(text: str, rule: str) -> Any:
    try:
        return strict_json.loads(text.encode())
    except ValueError:
        raise RowError(f"{rule}: {text!r:.60}") from None
