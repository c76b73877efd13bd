"""Conversations to text, rendered by the tokenizer's template, with the answers marked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from diablo_ds.data.text.chat_forms import variants, with_known_role
from diablo_ds.data.text.chat_template import ChatTemplate, Message, Span
from diablo_ds.data.text.control_tokens import (
    ControlToken,
    ControlTokens,
    Place,
    escape,
    strings,
    unescape,
)
from diablo_ds.errors import UserError

EACH_ANSWER = "split into one example per answer, as the chat template changes earlier turns"
LAST_ANSWER = "loss on the last answer only, as the chat template changes earlier turns"
GREETING = "an answer before any question, without loss, as the chat template cannot open it"
DATE = "today's date in the text, which the chat template writes if date_string is not given"
CONTROL_TEXT = "control tokens in the text, kept as plain characters"
REASONING = "reasoning_content"
_BEFORE_QUESTIONS = ("system", "developer", "assistant")


@dataclass(frozen=True)
class Conversation:
    """A conversation of several turns, for the tokenizer's chat template."""

    messages: Sequence[Message]
    has_loss: Sequence[bool]
    """For each message, whether it is an answer with loss."""
    tools: Sequence[Mapping[str, Any]] | None = None
    """Tools that the assistant may call, as JSON schemas."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the row for the template, such as enable_thinking."""
    notes: tuple[str, ...] = ()
    """What was done with the row, to be counted."""


class OmittedError(UserError):
    """A chat template omits part of a conversation."""


class RenderedChat(NamedTuple):
    """A conversation, or a part of it, as text."""

    text: str
    targets: tuple[Span, ...]
    """Spans of characters that carry loss: answers, each with its end of turn."""
    originals: Mapping[str, str]
    """Control text of messages, by its placeholder in ``text``."""
    is_closed: bool
    """Whether the last answer ends with a control token; otherwise it needs the end token."""


class RenderedConversation(NamedTuple):
    """All examples of one conversation."""

    chats: list[RenderedChat]
    notes: tuple[str, ...]


def render_conversation(
    conversation: Conversation,
    template: ChatTemplate,
    control: ControlTokens,
    turn_end: ControlToken | None,
    *,
    last_only: bool = False,
) -> RenderedConversation:
    """Render a conversation, with the loss on each answer and its end of turn.

    If the template marks what a model generates, by {% generation %}, the loss is there, after the
    opening of the answer and up to its end of turn. Otherwise an answer is what the template
    renders in addition to the previous messages and the opening of an answer. If the template
    renders earlier turns differently once others follow, as templates do that drop earlier
    thoughts, each answer has an example of its own, with the history that a model would see at
    that point.

    Args:
        conversation: messages, tools and variables.
        template: the tokenizer's template.
        control: the tokenizer's control tokens.
        turn_end: the token that ends the template's answers.
        last_only: whether to keep only the last of several examples.

    Raises:
        UserError: if the template does not accept the messages or omits part of them.
    """
    known = [with_known_role(message, template) for message in conversation.messages]
    values = {"messages": known, "tools": conversation.tools}
    escaped = escape({**values, "variables": dict(conversation.variables)}, control)
    renderer = _Renderer(
        template,
        control,
        turn_end,
        conversation.has_loss,
        escaped.value["tools"],
        escaped.value["variables"],
        escaped.originals,
    )
    chats, done = _first_that_renders(renderer, escaped.value["messages"])
    notes = [*conversation.notes, *done]
    if len(chats) > 1:
        notes.append(LAST_ANSWER if last_only else EACH_ANSWER)
    if template.mentions("strftime_now") and "date_string" not in conversation.variables:
        notes.append(DATE)
    if escaped.has_control_text:
        notes.append(CONTROL_TEXT)
    return RenderedConversation(chats[-1:] if last_only else chats, tuple(notes))


def _first_that_renders(
    renderer: _Renderer, messages: list[dict[str, Any]]
) -> tuple[list[RenderedChat], list[str]]:
    errors: list[UserError] = []
    for variant in variants(messages):
        try:
            return renderer.render(variant)
        except UserError as error:
            errors.append(error)
    # What a template omits is more informative than that it does not accept another variant.
    raise next((e for e in errors if isinstance(e, OmittedError)), errors[0])


@dataclass(frozen=True)
class _Renderer:
    template: ChatTemplate
    control: ControlTokens
    turn_end: ControlToken | None
    has_loss: Sequence[bool]
    tools: Sequence[Mapping[str, Any]] | None
    variables: Mapping[str, Any]
    originals: Mapping[str, str]

    def render(self, messages: list[dict[str, Any]]) -> tuple[list[RenderedChat], list[str]]:
        """Return the examples of a conversation, and notes on them."""
        chats, notes = None, list[str]()
        if self.template.has_marks(self.tools):
            chats = self._by_marks(messages)
        if chats is None:
            chats, notes = self._by_answers(messages)
        last = max(turn for turn, has_loss in enumerate(self.has_loss) if has_loss)
        for turn, message in enumerate(messages[:last], start=1):
            if not _shows(chats[-1].text, message.get("content") or ""):
                raise self._omitted(f"the content of message {turn} ({message['role']})")
        for tool in self.tools or ():
            name = tool["function"]["name"]
            if name not in chats[-1].text:
                raise self._omitted("tools", name)
        return chats, notes

    def _by_marks(self, messages: list[dict[str, Any]]) -> list[RenderedChat] | None:
        """Use the template's own marks; return None if there is not one per answer."""
        text, marks = self.template.render_marked(messages, self.tools, variables=self.variables)
        answers = [turn for turn, m in enumerate(messages) if m["role"] == "assistant"]
        if len(marks) != len(answers):
            return None
        targets = []
        is_closed = False
        for turn, (start, end) in zip(answers, marks, strict=True):
            opening = self._render(messages[:turn], add_generation_prompt=True)
            if start < len(opening) <= end and text.startswith(opening):
                start = len(opening)  # a model never generates the opening
            last, is_closed = self._end(text[:end], start)
            if not is_closed and (place := self._control_at(text, end)):
                last, is_closed = place.end, True
            # A template may drop the thoughts of earlier answers.
            thoughts = turn == answers[-1]
            self._check_answer(turn, messages[turn], text[start:last], thoughts=thoughts)
            if self.has_loss[turn]:
                targets.append((start, last, is_closed))
        spans = tuple((start, end) for start, end, _ in targets)
        _, last, is_closed = targets[-1]
        return [RenderedChat(text[:last], spans, self.originals, is_closed)]

    def _control_at(self, text: str, start: int) -> Place | None:
        place = next(self.control.find(text[start:]), None)
        if place is None or place.start:
            return None
        return Place(start, start + place.end, place.token)

    def _by_answers(self, messages: list[dict[str, Any]]) -> tuple[list[RenderedChat], list[str]]:
        chats: list[RenderedChat] = []
        notes: dict[str, None] = {}
        for turn in range(len(messages)):
            if not self.has_loss[turn]:
                continue
            try:
                prompt, chat = self._answer(messages, turn)
            except UserError:
                is_asked = any(m["role"] not in _BEFORE_QUESTIONS for m in messages[:turn])
                if is_asked or not any(self.has_loss[turn + 1 :]):
                    raise
                notes[GREETING] = None  # an unprompted answer need not be learnt
                continue
            if chats and prompt.startswith(chats[-1].text):
                chat = chat._replace(targets=chats.pop().targets + chat.targets)
            chats.append(chat)
        return chats, list(notes)

    def _answer(self, messages: list[dict[str, Any]], turn: int) -> tuple[str, RenderedChat]:
        """Return the text before an answer, and the chat up to the answer's end of turn."""
        prompt = self._render(messages[:turn], add_generation_prompt=True)
        text = self._render(messages[: turn + 1])
        if not text.startswith(prompt):
            raise UserError(
                "chat template must render an answer after the opening that a model gets; got "
                f"different text for message {turn + 1}: it opens an answer with "
                f"{_last_line(prompt)!r}"
            )
        end, is_closed = self._end(text, len(prompt))
        self._check_answer(turn, messages[turn], text[len(prompt) : end])
        targets = ((len(prompt), end),)
        return prompt, RenderedChat(text[:end], targets, self.originals, is_closed)

    def _render(
        self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = False
    ) -> str:
        return self.template.render(
            messages,
            self.tools,
            add_generation_prompt=add_generation_prompt,
            variables=self.variables,
        )

    def _end(self, text: str, start: int) -> tuple[int, bool]:
        """Return the position after an answer's end of turn, and whether there is one."""
        place = self.control.end_of_turn(text, start, self.turn_end)
        return (len(text), False) if place is None else (place.end, True)

    def _check_answer(
        self, turn: int, message: dict[str, Any], answer: str, *, thoughts: bool = True
    ) -> None:
        """Raise UserError unless the template renders all of an answer."""
        number = turn + 1
        content = message.get("content")
        if content and not _shows(answer, content):
            raise self._omitted(f"the content of message {number} (assistant)")
        if thoughts and (thought := message.get(REASONING)) and not _shows(answer, thought):
            raise self._omitted(f"{REASONING} of message {number}")
        for call in message.get("tool_calls") or ():
            function = call["function"]
            arguments = function["arguments"]
            values = [] if isinstance(arguments, str) else list(strings(arguments))
            missing = [v for v in values if not _shows(answer, v)]
            as_python = arguments and isinstance(arguments, dict) and str(arguments) in answer
            if function["name"] not in answer or missing or as_python:
                raise self._omitted(f"tool_calls of message {number}", function["name"])
            if not content and answer.count("None") > "".join(strings(message)).count("None"):
                raise UserError(
                    f"chat template must render message {number} without content; got 'None' for it"
                )

    def _omitted(self, what: str, value: str = "") -> OmittedError:
        shown = f": {unescape(value, self.originals)!r:.60}" if value else ""
        return OmittedError(f"chat template must render {what}, but omits it{shown}")


def _shows(text: str, value: str) -> bool:
    """Return whether a rendered text contains a message's text, possibly trimmed or quoted."""
    words = re.findall(r"\w+", value.rsplit("</think>", 1)[-1])
    return not words or max(words, key=len) in text


def _last_line(text: str) -> str:
    return text.rstrip("\n").rsplit("\n", 1)[-1][-60:]
