"""Stop strings: texts that end an answer, wherever tokens begin and end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_EXTRA_TOKENS = 5
"""Besides a token for each byte of a stop string, for tokens without any text of their own."""


class StopStrings:
    """The text of one answer's tokens, and where it is to end.

    Args:
        stops: texts that end the answer; none for no end.
        prompt: token ids before the answer.
        decode: returns the text of tokens.
    """

    def __init__(
        self,
        stops: Sequence[str],
        prompt: Sequence[int],
        decode: Callable[[Sequence[int]], str],
    ) -> None:
        self._stops = [stop for stop in stops if stop]
        self._before, self._decode = list(prompt[-1:]), decode
        longest = max((len(stop.encode()) for stop in self._stops), default=0)
        self._window = longest + _EXTRA_TOKENS

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of new tokens; decoded after the prompt's last, for their spaces."""
        start = len(self._decode(self._before))
        return self._decode([*self._before, *tokens])[start:]

    def text_before_stop(self, tokens: Sequence[int]) -> str | None:
        """Return the text up to the first stop string; None as long as there is none."""
        if not self._stops:
            return None
        # Most of the time the last tokens tell that there is none. Some tokenizers decode the first
        # without its space.
        tail = self._decode([*self._before, *tokens[-self._window :]][-self._window :])
        if not any(stop in tail for stop in self._stops):
            return None
        text = self.text(tokens)
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        return text[: min(places)] if places else None
