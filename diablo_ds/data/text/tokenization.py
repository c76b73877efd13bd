"""Tokenizers: text to token ids with an exact boundary between prompt and completion."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from diablo_ds.config.remote_code import trusts_code
from diablo_ds.data.labels import IGNORE_LABEL, Example
from diablo_ds.data.text.chat_template import ChatTemplate
from diablo_ds.data.text.control_tokens import ControlToken, ControlTokens
from diablo_ds.data.text.encoders import Encoder, HuggingFaceEncoder, SentencePieceEncoder
from diablo_ds.data.text.templates import Segment
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import MAX_SETTINGS_BYTES

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
)
_PROBE = "The 2 quick foxes: {x: -1.5}\n\tna\u00efve \u4f60\u597d \U0001f98a"

_SPACES = ("a ", "a  b", "  a", "\n a\n ")
"""Texts whose white space some tokenizers remove or confuse with their own."""

MAX_TOKEN_ID = (1 << 24) - 1
"""Some 60 times the vocabulary of the largest tokenizers."""
NOT_CHARACTERS = "the tokenizer must keep control tokens in a text as characters"
"""Reason why a row is rejected."""


class EncodableText(NamedTuple):
    """An example's text, ready for a tokenizer."""

    segments: Sequence[Segment]
    add_start: bool = True
    """Whether the tokenizer's start token (BOS) comes first; a chat template writes its own."""
    add_end: bool = True
    """Whether the end token follows, as a target."""
    parse_special: bool = False
    """Whether text such as "<|im_end|>" is read as a control token, or as plain characters."""


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer with everything that training needs; small, and fast to send to a process."""

    encoder: Encoder
    start_ids: tuple[int, ...]
    """Tokens that it adds before a text: the start token, or none."""
    end_id: int
    pad_id: int
    """Token for padding, which is masked out; the end token if the tokenizer has none."""
    chat: ChatTemplate | None = None
    """The tokenizer's own template for conversations, if it has one."""
    turn_end: ControlToken | None = None
    """The token that ends the template's answers."""

    @property
    def control(self) -> ControlTokens:
        """The control tokens."""
        return self.encoder.control

    @cached_property
    def start_text(self) -> str:
        """The text of the start tokens; empty if there are none."""
        texts = {token.id: token.text for token in self.control.tokens}
        return "".join(texts.get(token_id, "") for token_id in self.start_ids)

    @cached_property
    def end_text(self) -> str:
        """The text of the end token; empty if it has none."""
        return next((t.text for t in self.control.tokens if t.id == self.end_id), "")

    @cached_property
    def forbidden_in_text(self) -> frozenset[int]:
        """The tokens that must not result from characters."""
        return self.control.ids - {self.encoder.unknown_id}

    def misread(self, text: EncodableText, example: Example) -> bool:
        """Return whether a control token resulted from a text of characters only.

        Some vocabularies contain control tokens as pieces of text too.
        """
        first = len(self.start_ids) if text.add_start else 0
        last = len(example.input_ids) - text.add_end
        body = example.input_ids[first:last]
        return not text.parse_special and not self.forbidden_in_text.isdisjoint(body)

    def encode(self, texts: Sequence[EncodableText]) -> list[Example]:
        """Tokenise texts segment by segment, so that no token spans a boundary between two.

        An example is start token + segments + end token, as requested. The loss is on the target
        segments and the end token.
        """
        groups: dict[tuple[bool, bool], list[tuple[int, int]]] = {}
        for row, text in enumerate(texts):
            first = True
            for column, segment in enumerate(text.segments):
                if segment.text:
                    key = (not first, text.parse_special)
                    groups.setdefault(key, []).append((row, column))
                    first = False
        tokens: dict[tuple[int, int], list[int]] = {}
        for (continues, parse_special), places in groups.items():
            pieces = [texts[row].segments[column].text for row, column in places]
            encoded = self.encoder.encode(pieces, continues=continues, parse_special=parse_special)
            tokens.update(zip(places, encoded, strict=True))
        return [self._join(row, text, tokens) for row, text in enumerate(texts)]

    def _join(
        self, row: int, text: EncodableText, tokens: dict[tuple[int, int], list[int]]
    ) -> Example:
        input_ids = list(self.start_ids) if text.add_start else []
        labels = [IGNORE_LABEL] * len(input_ids)
        for column, segment in enumerate(text.segments):
            ids = tokens.get((row, column), [])
            input_ids += ids
            labels += ids if segment.is_target else [IGNORE_LABEL] * len(ids)
        if text.add_end:
            input_ids.append(self.end_id)
            labels.append(self.end_id)
        return Example(input_ids, labels)

    def probe(self) -> list[int]:
        """Return the tokens of fixed texts, which are equal for tokenizers that read data alike."""
        (ids,) = self.encoder.encode([_PROBE], continues=False, parse_special=False)
        spaces = [
            token
            for continues in (False, True)
            for tokens in self.encoder.encode(
                list(_SPACES), continues=continues, parse_special=False
            )
            for token in tokens
        ]
        return [*self.start_ids, *ids, self.end_id, *spaces]

    def reads_as(self, probe: Sequence[int]) -> bool:
        """Return whether this tokenizer has a probe, also one of an earlier version."""
        mine = self.probe()
        return len(probe) > 0 and mine[: len(probe)] == list(probe)


def fingerprint(path: Path) -> str:
    """Return the SHA-256 over a tokenizer's files."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else [path / name for name in TOKENIZER_FILES]
    for file in files:
        if file.is_file():
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a Hugging Face tokenizer's folder or a SentencePiece file.

    Raises:
        UserError: if there is none, it is damaged, it has no end token (a model would not learn to
            stop), or it cannot keep a prompt and its completion apart.
    """
    for file in [path] if path.is_file() else [path / name for name in TOKENIZER_FILES]:
        if file.is_file() and file.stat().st_size > MAX_SETTINGS_BYTES:
            raise UserError(
                f"a tokenizer's file must have at most {MAX_SETTINGS_BYTES:,} bytes; got {file}"
            )
    try:
        tokenizer = _load_sentencepiece(path) if path.is_file() else _load_hugging_face(path)
        _check_boundary(tokenizer, path)
    except BaseException as error:
        if not _is_complaint(error) or (type(error) is UserError and f"{path}" in str(error)):
            raise
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(f"tokenizer must be undamaged; got {path}: {reason:.200}") from None
    return tokenizer


def _check_boundary(tokenizer: Tokenizer, path: Path) -> None:
    """Raise UserError unless a text in two parts comes back unchanged."""
    for prompt, completion in (("a", "b"), ("a", " b"), ("a ", "b"), ("a  b ", " c")):
        segments = (Segment(prompt, False), Segment(completion, True))
        (example,) = tokenizer.encode([EncodableText(segments, False, False)])
        text = tokenizer.encoder.decode(example.input_ids)
        # Some add a space before a document, which is not the prompt's.
        if text.removeprefix(" ") != prompt + completion:
            raise UserError(
                "tokenizer must decode a text that it encoded in two parts to the same text; got "
                f"{text!r:.60} for {prompt!r} + {completion!r} in {path}"
            )


def _load_hugging_face(folder: Path) -> Tokenizer:
    loaded = _auto_tokenizer(str(folder))
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            "tokenizer must be a fast one or a SentencePiece model; got "
            f"{type(loaded).__name__} in {folder}"
        )
    last = max(backend.get_vocab().values(), default=0)
    if last > MAX_TOKEN_ID:  # the library goes through all ids up to the last one
        raise UserError(
            f"a tokenizer's token ids must be at most {MAX_TOKEN_ID:,}; got {last:,} in {folder}"
        )
    if loaded.eos_token_id is None:
        raise _no_end_token(folder, "eos_token in its tokenizer_config.json")
    plain = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a").ids
    num_start = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
    encoder = HuggingFaceEncoder(backend.to_str())
    chat, turn_end = _chat_template(loaded), None
    if chat is not None:
        # Some files do not mark as special the tokens by which their template delimits turns.
        turn_tokens, turn_end = chat.turn_tokens(encoder.added)
        encoder = encoder.with_control(turn_tokens)
    return Tokenizer(
        encoder,
        tuple(full[:num_start]),
        loaded.eos_token_id,
        loaded.eos_token_id if loaded.pad_token_id is None else loaded.pad_token_id,
        chat,
        turn_end,
    )


def _chat_template(loaded: Any) -> ChatTemplate | None:
    template = loaded.chat_template
    if not template:
        return None
    sources = template if isinstance(template, dict) else {"default": template}
    named = {k: v for k, v in loaded.special_tokens_map.items() if isinstance(v, str)}
    return ChatTemplate(tuple(sources.items()), tuple(named.items()))


def _load_sentencepiece(path: Path) -> Tokenizer:
    from sentencepiece import SentencePieceProcessor

    model = path.read_bytes()
    try:
        processor = SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise UserError(f"tokenizer must be a SentencePiece model; got {path}: {error}") from None
    bos, eos, pad = processor.bos_id(), processor.eos_id(), processor.pad_id()
    if eos < 0:
        raise _no_end_token(path, "an eos id, by training it with --eos_id")
    return Tokenizer(
        SentencePieceEncoder(model), () if bos < 0 else (bos,), eos, eos if pad < 0 else pad
    )


def _no_end_token(path: Path, repair: str) -> UserError:
    return UserError(
        f"tokenizer must have an end token, or a model never learns to stop; got none in {path}; "
        f"give it {repair}"
    )


@lru_cache(maxsize=2)
def _auto_tokenizer(folder: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trusts_code())
    except BaseException as error:
        if not _is_complaint(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"folder must hold a tokenizer; got {folder}: {reason}") from None


def _is_complaint(error: BaseException) -> bool:
    """Return whether an error is one of the many that libraries raise for a damaged file.

    A panic of tokenizers, whose type cannot be imported, is no Exception.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
