"""Variants of chat templates: what they call roles, and how they take tool calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from diablo_ds.data.text.chat_template import ChatTemplate, Message


def with_known_role(message: Message, template: ChatTemplate) -> dict[str, Any]:
    """Rename the developer role to system for a template that does not know the newer name."""
    if message["role"] == "developer" and not template.mentions("developer"):
        return {**message, "role": "system"}
    return dict(message)


def variants(messages: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the variants of tool calls that templates expect, the usual one first.

    Null content next to calls may be absent, empty or null; arguments may be an object or JSON
    text.
    """
    if not any(message.get("tool_calls") for message in messages):
        yield messages
        return
    for as_text in (False, True):
        for content in ({}, {"content": ""}, {"content": None}):
            yield [
                {**({} if "content" in m else content), **_with_arguments(m, as_text)}
                if m.get("tool_calls")
                else m
                for m in messages
            ]


def _with_arguments(message: dict[str, Any], as_text: bool) -> dict[str, Any]:
    if not as_text:
        return message
    calls = [
        {
            **call,
            "function": {
                **call["function"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            },
        }
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}
