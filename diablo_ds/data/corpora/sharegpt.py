"""Messages in ShareGPT's form, with "from" and "value", to the form with "role" and "content"."""

from __future__ import annotations

from typing import Any

_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "gpt-3.5": "assistant",
    "gpt-4": "assistant",
    "gpt4": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "claude": "assistant",
    "model": "assistant",
    "function_response": "tool",
    "observation": "tool",
    "tool_response": "tool",
}
"""Other names of roles."""
_CALLS = ("function_call", "tool_call")
"""Roles of messages whose content is one call or a list of calls, as JSON text."""


def with_standard_names(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message with the standard names of its keys and of its role.

    The value of a function_call becomes the tool calls of an answer.
    """
    message = dict(message)
    if message.get("role") is None and "from" in message:
        message["role"] = message.pop("from")
        if message.get("content") is None and "value" in message:
            message["content"] = message.pop("value")
    role = message.get("role")
    if not isinstance(role, str):
        return message
    if role.lower() in _CALLS:
        calls = message.pop("content", None)
        # One call is read by the older key, which holds a single one.
        is_list = isinstance(calls, list) or (isinstance(calls, str) and calls.lstrip()[:1] == "[")
        return {**message, "role": "assistant", "tool_calls" if is_list else "function_call": calls}
    message["role"] = _ROLES.get(role.lower(), role)
    return message
