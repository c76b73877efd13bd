"""Raw rows to tokenised examples: the one path for preparing, training and streaming."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from diablo_ds.corpora.families import Conversation, Exchange, Form, RowError, find_form
from diablo_ds.corpora.raw_rows import MAX_ROW_CHARACTERS, RawRow, Unreadable, parse, too_long
from diablo_ds.labels import Example, has_target, shorten
from diablo_ds.templates import CHAT, PROMPTS, Message, Segment
from diablo_ds.tokenization import EncodableText, Tokenizer


class Rejected(NamedTuple):
    """A row that does not fit its corpus."""

    line: int
    reason: str


class Encoded(NamedTuple):
    """A tokenised row."""

    line: int
    form: str
    question: str
    """What is asked, without the template; compared with the questions of tests."""
    example: Example | None
    """None where it is longer than the limit, and was dropped."""
    is_cut: bool


@dataclass(frozen=True)
class RowEncoder:
    """Reads rows of one family, renders them with a template and tokenises them.

    Args:
        family: one of `FAMILIES`.
        template: one of `TEMPLATES`, or "auto" for the form's own.
        tokenizer: the tokenizer.
        max_length: longest example, in tokens.
        overlong: "drop", "cut-prompt" or "cut-completion".
    """

    family: str
    template: str
    tokenizer: Tokenizer
    max_length: int
    overlong: str

    def __post_init__(self) -> None:
        if self.template == CHAT and self.tokenizer.chat is None:
            raise ValueError(
                "template chat needs a tokenizer with a chat template; got one without; choose "
                f"one of {', '.join(PROMPTS)}"
            )

    def encode(self, rows: Sequence[RawRow]) -> list[Encoded | Rejected]:
        """Encode rows; one result for each, in their order."""
        results: list[Encoded | Rejected | None] = []
        texts: list[EncodableText] = []
        meanings: list[tuple[int, str, str]] = []
        for row in rows:
            try:
                form, question, text = self._render(row)
            except RowError as error:
                results.append(Rejected(row.line, str(error)))
                continue
            results.append(None)
            texts.append(text)
            meanings.append((row.line, form.name, question))
        examples = iter(
            self._limit(line, form, question, example)
            for (line, form, question), example in zip(
                meanings, self.tokenizer.encode(texts), strict=True
            )
        )
        return [next(examples) if result is None else result for result in results]

    def _limit(self, line: int, form: str, question: str, example: Example) -> Encoded | Rejected:
        if not has_target(example.labels):
            return Rejected(line, "an example must have a token to predict, and one before it")
        start = list(self.tokenizer.start_ids)
        num_start = len(start) if example.input_ids[: len(start)] == start else 0
        kept = shorten(example, self.max_length, self.overlong, num_start=num_start)
        is_cut = kept is not None and len(kept.input_ids) < len(example.input_ids)
        return Encoded(line, form, question, kept, is_cut)

    def _render(self, row: RawRow) -> tuple[Form, str, EncodableText]:
        if isinstance(row.value, bytes) and len(row.value) > MAX_ROW_CHARACTERS:
            raise RowError(too_long(len(row.value)).reason)
        fields = parse(row.value)
        if isinstance(fields, Unreadable):
            raise RowError(fields.reason)
        form = find_form(self.family, fields)
        meaning = form.read(fields)
        template = form.template if self.template == "auto" else self.template
        if isinstance(meaning, Conversation):
            question, text = self._render_conversation(meaning, template)
        else:
            question, text = self._render_exchange(meaning, template)
        if (length := sum(len(segment.text) for segment in text.segments)) > MAX_ROW_CHARACTERS:
            raise RowError(too_long(length).reason)
        return form, question, text

    def _render_exchange(self, exchange: Exchange, template: str) -> tuple[str, EncodableText]:
        question = f"{exchange.instruction}\n{exchange.context}"
        if template == CHAT:
            content = PROMPTS["plain"](exchange.instruction, exchange.context)
            messages = [
                {"role": "user", "content": content},
                {"role": "assistant", "content": exchange.response},
            ]
            return question, self._render_chat(messages)
        prompt = PROMPTS[template](exchange.instruction, exchange.context)
        segments = (Segment(prompt, False), Segment(exchange.response, True))
        # A plain text is the user's own template, and may write control tokens.
        return question, EncodableText(segments, parse_special=template == "plain")

    def _render_conversation(
        self, conversation: Conversation, template: str
    ) -> tuple[str, EncodableText]:
        if template != CHAT:
            raise RowError(f"messages need the template chat: {template}")
        asked = (m["content"] for m in conversation.messages if m["role"] == "user")
        return next(asked, ""), self._render_chat(conversation.messages)

    def _render_chat(self, messages: Sequence[Message]) -> EncodableText:
        chat = self.tokenizer.chat
        if chat is None:
            raise RowError("messages need a tokenizer with a chat template")
        try:
            segments = chat.segments(messages)
        except ValueError as error:
            raise RowError(str(error)) from None
        add_end = not chat.ends_turns(segments)
        return EncodableText(segments, add_start=False, add_end=add_end, parse_special=True)
