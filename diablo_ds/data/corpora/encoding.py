"""Raw rows to tokenised examples: the one path for preparation, training and streaming."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from diablo_ds.config.choices import AUTO, CHAT, PLAIN
from diablo_ds.config.reading import ReadingSettings
from diablo_ds.data.corpora.chats import unused_keys
from diablo_ds.data.corpora.columns import parse_columns, with_field_names
from diablo_ds.data.corpora.documents import JOINED, cut_documents
from diablo_ds.data.corpora.families import TEXT, RowKind, find_kind
from diablo_ds.data.corpora.fields import Exchange, Fields, RowError
from diablo_ds.data.corpora.own_tokens import plain_text, without_own_ends, without_own_ends_in_chat
from diablo_ds.data.corpora.raw_rows import MAX_ROW_CHARACTERS, RawRow, Unreadable, parse, too_long
from diablo_ds.data.labels import Example, has_target
from diablo_ds.data.text.chat_encoding import encode_chats
from diablo_ds.data.text.conversations import Conversation, RenderedChat, render_conversation
from diablo_ds.data.text.templates import PROMPTS, Segment
from diablo_ds.data.text.tokenization import NOT_CHARACTERS, EncodableText, Tokenizer
from diablo_ds.errors import UserError


class Rejected(NamedTuple):
    """A row that does not fit its corpus."""

    line: int
    reason: str


class Encoded(NamedTuple):
    """A tokenised row."""

    line: int
    kind: str
    """Name of its `RowKind`."""
    questions: tuple[str, ...]
    """The question of each turn, without the template; compared with the questions of tests."""
    examples: tuple[Example, ...]
    """Of any length: one, or one for each answer of a conversation whose template rewrites earlier
    turns."""
    notes: tuple[str, ...]
    """What was done with the row, to be counted and shown."""
    is_joined: bool = False
    """Whether the examples are sequences of joined texts that end in this row: any number, each of
    which counts as a row of its own."""


class _Rendered(NamedTuple):
    """A row's text, before it is tokenised."""

    line: int
    kind: str
    questions: tuple[str, ...]
    texts: Sequence[EncodableText | RenderedChat]
    notes: tuple[str, ...]
    is_joined: bool = False


@dataclass(frozen=True)
class RowEncoder:
    """Reads rows of one family, renders them with a template and tokenises them.

    Args:
        family: one of `FAMILIES`.
        template: one of `TEMPLATES`, or "auto" for that of the row's kind.
        tokenizer: tokenises the rendered texts, and has the chat template.
        control_tokens: one of `CONTROL_TOKENS`, for the template plain.
        last_answer_only: whether a conversation gives one example, whatever its template does.
        columns: texts FIELD=COLUMN that name the columns of fields.
        text_length: tokens to which texts are joined and cut; 0 where each stays an example.
    """

    family: str
    template: str
    tokenizer: Tokenizer
    control_tokens: str = AUTO
    last_answer_only: bool = False
    columns: tuple[str, ...] = ()
    text_length: int = 0

    def __post_init__(self) -> None:
        if self.template == CHAT and self.tokenizer.chat is None:
            raise UserError(
                "template chat needs a tokenizer with a chat template; got one without; choose "
                f"one of {', '.join(PROMPTS)}"
            )
        parse_columns(self.columns)

    @classmethod
    def from_settings(
        cls,
        settings: ReadingSettings,
        tokenizer: Tokenizer,
        *,
        family: str,
        in_stream: bool = False,
    ) -> RowEncoder:
        """Return the encoder that the settings of a run or of a preparation ask for.

        Args:
            settings: how raw files are read.
            tokenizer: the model's.
            family: one of `FAMILIES`.
            in_stream: whether each row must stay one sequence, as a step is a set of rows.
        """
        return cls(
            family,
            settings.template,
            tokenizer,
            settings.control_tokens,
            last_answer_only=in_stream,
            columns=settings.column,
            text_length=0 if in_stream or settings.text == "row" else settings.max_length,
        )

    @cached_property
    def _columns(self) -> dict[str, str]:
        return parse_columns(self.columns)

    def encode(self, rows: Sequence[RawRow]) -> list[Encoded | Rejected]:
        """Encode rows; return one result for each, in their order."""
        rendered: list[_Rendered | Rejected] = []
        for row in rows:
            try:
                rendered.append(self._render(row))
            except RowError as error:
                rendered.append(Rejected(row.line, str(error)))
        texts = [text for row in rendered if isinstance(row, _Rendered) for text in row.texts]
        examples = iter(self._tokenise(texts))
        finished = [
            row if isinstance(row, Rejected) else self._finish(row, examples) for row in rendered
        ]
        return self._join_texts(finished) if self.text_length else finished

    def _join_texts(self, rows: list[Encoded | Rejected]) -> list[Encoded | Rejected]:
        """Replace the examples of texts by sequences of joined texts."""
        texts = {
            number: row
            for number, row in enumerate(rows)
            if isinstance(row, Encoded) and row.is_joined
        }
        documents = [example for row in texts.values() for example in row.examples]
        for number, sequences in zip(
            texts, cut_documents(documents, self.text_length), strict=True
        ):
            rows[number] = texts[number]._replace(examples=tuple(sequences))
        return rows

    def _tokenise(self, texts: Sequence[EncodableText | RenderedChat]) -> list[Example | str]:
        """Tokenise texts; return for each an example, or the reason why there is none."""
        exchanges = [text for text in texts if isinstance(text, EncodableText)]
        chats = [text for text in texts if isinstance(text, RenderedChat)]
        from_exchanges = iter(
            NOT_CHARACTERS if self.tokenizer.misread(text, example) else example
            for text, example in zip(exchanges, self.tokenizer.encode(exchanges), strict=True)
        )
        from_chats = iter(encode_chats(self.tokenizer, chats) if chats else [])
        return [
            next(from_chats if isinstance(text, RenderedChat) else from_exchanges) for text in texts
        ]

    def _finish(self, row: _Rendered, examples: Iterator[Example | str]) -> Encoded | Rejected:
        mine = [next(examples) for _ in row.texts]
        accepted = []
        for example in mine:
            if isinstance(example, str):
                return Rejected(row.line, example)
            if not has_target(example.labels):
                reason = "an example must have a token to predict, and one before it"
                return Rejected(row.line, reason)
            accepted.append(example)
        return Encoded(row.line, row.kind, row.questions, tuple(accepted), row.notes, row.is_joined)

    def _render(self, row: RawRow) -> _Rendered:
        if isinstance(row.value, bytes) and len(row.value) > MAX_ROW_CHARACTERS:
            raise RowError(too_long(len(row.value)).reason)
        fields = parse(row.value)
        if isinstance(fields, Unreadable):
            raise RowError(fields.reason)
        named = with_field_names(fields, self._columns)
        kind = find_kind(self.family, named)
        template = kind.template if self.template == AUTO else self.template
        if not template:
            raise RowError(kind.question)
        meaning = kind.read(named)
        if isinstance(meaning, Conversation):
            if template != CHAT:
                raise RowError(f"messages need the template chat: {template}")
            asked = tuple(m["content"] for m in meaning.messages if m["role"] == "user")
            rendered = _Rendered(row.line, kind.name, asked, *self._render_chat(meaning))
        else:
            rendered = self._render_exchange(row.line, kind.name, meaning, template)
            if self.text_length and kind.name == TEXT and template == PLAIN:
                rendered = _as_document(rendered, row)
        if self.family == AUTO:
            rendered = rendered._replace(notes=(*rendered.notes, *_unused_fields(kind, named)))
        if (length := max(map(_num_characters, rendered.texts))) > MAX_ROW_CHARACTERS:
            raise RowError(too_long(length).reason)
        return rendered

    def _render_exchange(
        self, line: int, kind: str, exchange: Exchange, template: str
    ) -> _Rendered:
        questions = (f"{exchange.instruction}\n{exchange.context}",)
        if template == CHAT:
            content = PROMPTS[PLAIN](exchange.instruction, exchange.context)
            messages = [
                {"role": "user", "content": content},
                {"role": "assistant", "content": exchange.response},
            ]
            conversation = Conversation(messages, [False, True])
            return _Rendered(line, kind, questions, *self._render_chat(conversation))
        if template == PLAIN:
            prompt = PROMPTS[PLAIN](exchange.instruction, exchange.context)
            text, notes = plain_text(prompt, exchange.response, self.tokenizer, self.control_tokens)
            return _Rendered(line, kind, questions, [text], notes)
        exchange, notes = without_own_ends(exchange, self.tokenizer)
        prompt = PROMPTS[template](exchange.instruction, exchange.context)
        segments = (Segment(prompt, False), Segment(exchange.response, True))
        return _Rendered(line, kind, questions, [EncodableText(segments)], notes)

    def _render_chat(
        self, conversation: Conversation
    ) -> tuple[Sequence[RenderedChat], tuple[str, ...]]:
        tokenizer, chat = self.tokenizer, self.tokenizer.chat
        if chat is None:
            raise RowError(
                "messages need a tokenizer with a chat template; choose another tokenizer, or, for "
                "rows with a prompt and an answer, --template alpaca"
            )
        conversation = without_own_ends_in_chat(conversation, tokenizer)
        unused = unused_keys(conversation, chat)
        try:
            rendered = render_conversation(
                conversation,
                chat,
                tokenizer.control,
                tokenizer.turn_end,
                last_only=self.last_answer_only,
            )
        except UserError as error:
            raise RowError(str(error)) from None
        return rendered.chats, (*rendered.notes, *unused)


def _as_document(rendered: _Rendered, row: RawRow) -> _Rendered:
    """Return a text to be joined with others; a piece of a document has the ends of its own."""
    (text,) = rendered.texts
    assert isinstance(text, EncodableText)
    text = text._replace(
        add_start=text.add_start and not row.has_earlier,
        add_end=text.add_end and not row.has_later,
    )
    return rendered._replace(texts=[text], notes=(*rendered.notes, JOINED), is_joined=True)


def count_notes(results: Iterable[Encoded | Rejected]) -> dict[str, int]:
    """Return how many rows have each note, the notes in alphabetical order."""
    counts = Counter(
        note for result in results if isinstance(result, Encoded) for note in result.notes
    )
    return dict(sorted(counts.items()))


def count_rows(number: int, note: str) -> str:
    """Return a note and how many rows have it, as text."""
    return f"{number:,} row{'' if number == 1 else 's'}: {note}"


def _unused_fields(kind: RowKind, row: Fields) -> list[str]:
    """Return a note for each field with a value that rows of a kind are read without."""
    read = {*kind.fields, *kind.others}
    return [
        f"field {name!r:.60}, which is not used"
        for name, value in row.items()
        if name not in read and value not in (None, "", [], {})
    ]


def _num_characters(text: EncodableText | RenderedChat) -> int:
    if isinstance(text, RenderedChat):
        return len(text.text)
    return sum(len(segment.text) for segment in text.segments)
