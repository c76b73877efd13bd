"""Encoders: pieces of text to token ids, without adding tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from diablo_ds.data.text.control_tokens import ControlToken, ControlTokens


class Encoder(Protocol):
    """Turns pieces of text into token ids, without adding any."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""

    @property
    def control(self) -> ControlTokens:
        """The tokens that stand for themselves and not for text."""

    @property
    def unknown_id(self) -> int | None:
        """The token of text that is not in the vocabulary, if there is one."""

    def encode(self, texts: list[str], *, continues: bool, parse_special: bool) -> list[list[int]]:
        """Encode each text as the beginning of a document, or as its continuation.

        Args:
            texts: pieces of text.
            continues: whether other text precedes each.
            parse_special: whether control tokens are read from text, or remain characters.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, control tokens included."""


class EncodedText(NamedTuple):
    """Tokens of a text, and the span of characters of each."""

    ids: list[int]
    offsets: list[tuple[int, int]]


@dataclass(frozen=True)
class HuggingFaceEncoder:
    """A fast Hugging Face tokenizer, from its JSON description."""

    backend_json: str

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.backend_json,)

    @cached_property
    def _description(self) -> dict[str, Any]:
        description: dict[str, Any] = json.loads(self.backend_json)
        return description

    @cached_property
    def _backends(self) -> tuple[Any, Any, Any]:
        """For the beginning of a document, for its continuation, and after a control token."""
        from tokenizers import Tokenizer

        def changed(change: Any) -> Any:
            steps = {key: change(self._description[key]) for key in _STEPS}
            return Tokenizer.from_str(json.dumps({**self._description, **steps}))

        first = Tokenizer.from_str(self.backend_json)
        backends = (first, changed(_without_prefix), changed(_without_first_prefix))
        for backend in backends:
            backend.no_truncation()
            backend.no_padding()
        return backends

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return 1 + max(map(int, self._backends[0].get_vocab().values()))

    @cached_property
    def control(self) -> ControlTokens:
        """The tokens that the tokenizer's file marks as special."""
        return ControlTokens(
            tuple(_control_token(t) for t in self._added if t["special"] and not _is_byte(t))
        )

    @cached_property
    def unknown_id(self) -> int | None:
        """The token of text that is not in the vocabulary, if there is one."""
        model = self._description["model"]
        unknown: int | None = model.get("unk_id")
        if (text := model.get("unk_token")) is not None:
            unknown = self._backends[0].token_to_id(text)
        return unknown

    @property
    def added(self) -> ControlTokens:
        """All added tokens, special or not."""
        return ControlTokens(tuple(_control_token(t) for t in self._added if not _is_byte(t)))

    @property
    def _added(self) -> list[dict[str, Any]]:
        return [token for token in self._description["added_tokens"] if token["content"]]

    def with_control(self, texts: frozenset[str]) -> HuggingFaceEncoder:
        """Return an encoder that also treats these added tokens as control tokens."""
        added = self._description["added_tokens"]
        if all(token["special"] for token in added if token["content"] in texts):
            return self
        marked = [{**t, "special": t["special"] or t["content"] in texts} for t in added]
        return HuggingFaceEncoder(json.dumps({**self._description, "added_tokens": marked}))

    def encode(self, texts: list[str], *, continues: bool, parse_special: bool) -> list[list[int]]:
        """Encode each text as the beginning of a document, or as its continuation."""
        backend = self._backends[continues]
        backend.encode_special_tokens = not parse_special
        encoded = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def encode_after_control(self, texts: list[str]) -> list[list[int]]:
        """Encode each text as one that follows a control token; control tokens are not read."""
        backend = self._backends[2]
        backend.encode_special_tokens = True
        encoded = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def encode_documents(self, texts: list[str]) -> list[EncodedText]:
        """Encode entire documents, reading control tokens, with the span of each token."""
        backend = self._backends[0]
        backend.encode_special_tokens = False
        encoded = backend.encode_batch(texts, add_special_tokens=False)
        return [EncodedText(encoding.ids, encoding.offsets) for encoding in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, control tokens included."""
        text: str = self._backends[0].decode(list(ids), skip_special_tokens=False)
        return text


_STEPS = ("normalizer", "pre_tokenizer")


def _control_token(token: dict[str, Any]) -> ControlToken:
    return ControlToken(token["content"], token["id"], token["lstrip"], token["rstrip"])


def _is_byte(token: dict[str, Any]) -> bool:
    """Return whether a token stands for a byte; some files list these as special."""
    text = token["content"]
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _without_prefix(step: Any) -> Any:
    """Return a normalizer or pre-tokenizer that puts no space before a text.

    A tokenizer that is made for beginnings of documents adds one, which inside a document would be
    a space that is not in the text.
    """
    if not isinstance(step, dict):
        return step
    if step["type"] == "Sequence":
        key = "normalizers" if "normalizers" in step else "pretokenizers"
        kept = [_without_prefix(part) for part in step[key]]
        return {**step, key: [part for part in kept if part is not None]}
    if step["type"] == "Prepend":
        return None
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    if step["type"] == "ByteLevel":
        return {**step, "add_prefix_space": False}
    return step


def _without_first_prefix(step: Any) -> Any:
    """Return a pre-tokenizer that adds a space only after control tokens, not at the start."""
    if not isinstance(step, dict):
        return step
    if step["type"] == "Sequence":
        key = "normalizers" if "normalizers" in step else "pretokenizers"
        return {**step, key: [_without_first_prefix(part) for part in step[key]]}
    if step["type"] == "Metaspace" and step.get("prepend_scheme") == "first":
        return {**step, "prepend_scheme": "never"}
    return step


@dataclass(frozen=True)
class SentencePieceEncoder:
    """A bare SentencePiece model, from its bytes."""

    model: bytes

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.model,)

    @cached_property
    def _processors(self) -> tuple[Any, Any]:
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

        messages: Any = sentencepiece_model_pb2  # its classes are created at run time
        description = messages.ModelProto.FromString(self.model)
        # Otherwise a prompt would lose its last space and a program its indentation, which the
        # same model keeps in a model folder.
        description.normalizer_spec.remove_extra_whitespaces = False
        first = SentencePieceProcessor(model_proto=description.SerializeToString())
        # Otherwise a completion would get a leading space.
        description.normalizer_spec.add_dummy_prefix = False
        return first, SentencePieceProcessor(model_proto=description.SerializeToString())

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return int(self._processors[0].vocab_size())

    @cached_property
    def control(self) -> ControlTokens:
        """The model's control symbols, such as begin and end tokens."""
        processor = self._processors[0]
        ids = [i for i in range(processor.vocab_size()) if processor.is_control(i)]
        return ControlTokens(tuple(ControlToken(processor.id_to_piece(i), i) for i in ids))

    @property
    def unknown_id(self) -> int | None:
        """None: SentencePiece does not count the unknown token among the control symbols."""
        return None

    def encode(self, texts: list[str], *, continues: bool, parse_special: bool) -> list[list[int]]:
        """Encode each text; SentencePiece itself never reads control tokens from text."""
        if parse_special:
            return [self._parse(text, continues) for text in texts]
        ids: list[list[int]] = self._processors[continues].encode(texts, num_threads=1)
        return ids

    def _parse(self, text: str, continues: bool) -> list[int]:
        ids: list[int] = []
        done = 0
        for place in [*self.control.find(text), None]:
            end = len(text) if place is None else place.start
            if piece := text[done:end]:
                ids += self._processors[continues or done > 0].encode(piece)
            if place is not None:
                ids.append(place.token.id)
                done = place.end
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, control tokens included."""
        processor = self._processors[0]
        text = ""
        plain: list[int] = []
        for token in [*ids, None]:
            if token is None or processor.is_control(token):
                text += processor.decode(plain)
                text += "" if token is None else processor.id_to_piece(token)
                plain = []
            else:
                plain.append(token)
        return text
