"""Control tokens of a tokenizer: where their text occurs, and how a user's text stays text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

_FIRST_PLACEHOLDER = 0xF0000
"""Private-use characters stand for control text in messages, as ordinary text has none."""


class ControlToken(NamedTuple):
    """A token with a text of its own that a tokenizer recognises, such as the end of a turn."""

    text: str
    id: int
    strips_before: bool = False
    """Whether it strips the white space before it."""
    strips_after: bool = False


class Place(NamedTuple):
    """Where a control token occurs in a text."""

    start: int
    end: int
    token: ControlToken


@dataclass(frozen=True)
class ControlTokens:
    """All control tokens of a tokenizer; of several that fit, the longest is read."""

    tokens: tuple[ControlToken, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.tokens,)

    @cached_property
    def by_text(self) -> Mapping[str, ControlToken]:
        """The tokens by their text."""
        return {token.text: token for token in self.tokens}

    @cached_property
    def ids(self) -> frozenset[int]:
        """The tokens' ids."""
        return frozenset(token.id for token in self.tokens)

    @cached_property
    def _first_character(self) -> re.Pattern[str]:
        characters = sorted({re.escape(token.text[0]) for token in self.tokens})
        return re.compile(f"[{''.join(characters)}]" if characters else "(?!)")

    @cached_property
    def _lengths(self) -> list[int]:
        return sorted({len(token.text) for token in self.tokens}, reverse=True)

    @cached_property
    def _beginnings(self) -> frozenset[str]:
        return frozenset(t.text[:end] for t in self.tokens for end in range(1, len(t.text)))

    def find(self, text: str) -> Iterator[Place]:
        """Yield the places of control tokens from left to right, preferring the longest."""
        done = 0
        for match in self._first_character.finditer(text):
            start = match.start()
            if start < done:
                continue
            for length in self._lengths:
                token = self.by_text.get(text[start : start + length])
                if token is not None:
                    done = start + len(token.text)
                    yield Place(start, done, token)
                    break

    def are_in(self, text: str) -> bool:
        """Return whether a text contains the text of a control token."""
        return next(self.find(text), None) is not None

    def at_start(self, text: str) -> ControlToken | None:
        """Return the control token that a text begins with."""
        place = next(self.find(text), None)
        return place.token if place is not None and place.start == 0 else None

    def at_end(self, text: str) -> ControlToken | None:
        """Return the control token that a text ends with."""
        places = list(self.find(text))
        return places[-1].token if places and places[-1].end == len(text) else None

    def end_of_turn(
        self, text: str, start: int = 0, usual: ControlToken | None = None
    ) -> Place | None:
        """Return the place of an answer's end of turn, if a text closes with control tokens.

        After it a template may write a line break or another end token; before it, the end of a
        tool call. So it is the usual token if present, otherwise the first.

        Args:
            text: a rendered conversation that ends with an answer.
            start: position at which the answer starts.
            usual: the token that ends the template's answers.
        """
        end = len(text)
        closing: list[Place] = []
        for place in reversed(list(self.find(text[start:]))):
            if text[start + place.end : end].strip():
                break
            end = start + place.start
            closing.insert(0, Place(end, start + place.end, place.token))
        return next((p for p in closing if p.token == usual), closing[0] if closing else None)

    def unfinished(self, text: str) -> int:
        """Return the number of last characters of a text that begin a control token."""
        longest = self._lengths[0] - 1 if self._lengths else 0
        for length in range(min(longest, len(text)), 0, -1):
            if text[-length:] in self._beginnings:
                return length
        return 0


class Escaped(NamedTuple):
    """Values in which placeholders replace the text of control tokens."""

    value: Any
    originals: Mapping[str, str]
    """What each placeholder, a single character, stands for."""
    has_control_text: bool
    """Whether complete control tokens were replaced, and not only their beginnings."""


def escape(value: Any, control: ControlTokens) -> Escaped:
    """Replace control text by placeholders in all strings of a nested value, keys included.

    A template that joins such strings cannot form a control token from them, not even from parts,
    since a part that could begin a control token is replaced too.
    """
    if not any(control.are_in(text) or control.unfinished(text) for text in strings(value)):
        return Escaped(value, {}, False)
    used = set("".join(strings(value)))
    free = (chr(point) for point in range(_FIRST_PLACEHOLDER, 0x110000) if chr(point) not in used)
    placeholders: dict[str, str] = {}
    found = False

    def placeholder(original: str) -> str:
        if original not in placeholders:
            placeholders[original] = next(free)
        return placeholders[original]

    def replace(text: str) -> str:
        nonlocal found
        result, done = "", 0
        for place in control.find(text):
            found = True
            result += text[done : place.start] + placeholder(text[place.start : place.end])
            done = place.end
        rest = text[done:]
        if length := control.unfinished(rest):
            rest = rest[:-length] + placeholder(rest[-length]) + rest[len(rest) - length + 1 :]
        return result + rest

    escaped = map_strings(value, replace)
    return Escaped(escaped, {mark: text for text, mark in placeholders.items()}, found)


def unescape(text: str, originals: Mapping[str, str]) -> str:
    """Return a text with its placeholders replaced by the original text."""
    for mark, original in originals.items():
        text = text.replace(mark, original)
    return text


def strings(value: Any) -> Iterable[str]:
    """Yield all strings of a nested value of dicts and lists, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from strings(key)
            yield from strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings(item)


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """Return a nested value with every string changed, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {map_strings(k, change): map_strings(v, change) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [map_strings(item, change) for item in value]
    return value
