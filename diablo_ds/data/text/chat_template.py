"""A tokenizer's own template for conversations: messages to text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diablo_ds.data.text.control_tokens import ControlToken, ControlTokens
from diablo_ds.errors import UserError

Message = Mapping[str, Any]
"""One turn of a conversation: "role", "content" and other keys that the template knows."""
Span = tuple[int, int]
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template in Jinja, rendered by transformers, as at inference.

    Args:
        sources: the templates by name, "default" and perhaps "tool_use".
        variables: the tokenizer's named tokens, which a template may use, such as bos_token.
    """

    sources: tuple[tuple[str, str], ...]
    variables: tuple[tuple[str, str], ...]

    def source(self, tools: Sequence[Any] | None = None) -> str:
        """Return the template for conversations with these tools."""
        sources = dict(self.sources)
        if tools and "tool_use" in sources:
            return sources["tool_use"]
        return sources.get("default", self.sources[0][1])

    def mentions(self, word: str) -> bool:
        """Return whether a word occurs in the source of a template."""
        pattern = re.compile(rf"\b{re.escape(word)}\b")
        return any(pattern.search(source) for _, source in self.sources)

    def has_marks(self, tools: Sequence[Any] | None = None) -> bool:
        """Return whether the template marks what a model generates, by {% generation %}."""
        return bool(_GENERATION.search(self.source(tools)))

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        *,
        add_generation_prompt: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Render messages, optionally with the opening of the next answer.

        Raises:
            UserError: if the template does not accept them.
        """
        return self._render(messages, tools, variables, add_generation_prompt, False)[0]

    def render_marked(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        *,
        variables: Mapping[str, Any] | None = None,
    ) -> tuple[str, list[Span]]:
        """Render messages, and return the spans of text that a model generates.

        Raises:
            UserError: if the template does not accept them.
        """
        return self._render(messages, tools, variables, False, True)

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None,
        variables: Mapping[str, Any] | None,
        add_generation_prompt: bool,
        with_marks: bool,
    ) -> tuple[str, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, marks = render_jinja_template(
                conversations=[[dict(message) for message in messages]],
                tools=list(tools) if tools else None,
                chat_template=self.source(tools),
                add_generation_prompt=add_generation_prompt,
                return_assistant_tokens_mask=with_marks,
                **{**dict(self.variables), **(variables or {})},
            )
        except ImportError:
            raise
        except Exception as error:  # templates are programs: roles must alternate, or any TypeError
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"chat template must accept the messages: {reason}") from None
        return texts[0], [(int(start), int(end)) for start, end in marks[0]] if marks else []

    def turn_tokens(self, added: ControlTokens) -> tuple[frozenset[str], ControlToken | None]:
        """Find the tokens that begin and end turns, by rendering a short conversation.

        Args:
            added: all added tokens of the tokenizer.

        Returns:
            The texts of all such tokens, and the token that ends an answer; empty and None if the
            template does not accept a question and an answer, or has no such tokens.
        """
        question, answer = {"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}
        try:
            asked = self.render([question])
            answered = self.render([question, answer])
        except UserError:
            return frozenset(), None
        end = added.end_of_turn(answered)
        found = {place.token.text for place in added.find(asked)}
        return frozenset(found | ({end.token.text} if end else set())), end.token if end else None
