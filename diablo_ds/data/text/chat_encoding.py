"""Rendered conversations to tokens, with exact masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from diablo_ds.data.labels import IGNORE_LABEL, Example
from diablo_ds.data.text.control_tokens import ControlToken, unescape
from diablo_ds.data.text.conversations import RenderedChat
from diablo_ds.data.text.encoders import EncodedText, HuggingFaceEncoder
from diablo_ds.data.text.tokenization import NOT_CHARACTERS, Tokenizer


def encode_chats(tokenizer: Tokenizer, chats: Sequence[RenderedChat]) -> list[Example | str]:
    """Tokenise rendered conversations.

    The tokens are those of the entire text, as at inference, unless a token would belong to both a
    question and its answer. Then the two are tokenised apart, as a model encounters them.

    Args:
        tokenizer: the tokenizer whose template rendered them.
        chats: rendered conversations.

    Returns:
        For each an example, or the reason why there is none.
    """
    encoder = tokenizer.encoder
    assert isinstance(encoder, HuggingFaceEncoder)  # only these have templates
    results: list[Example | str | None] = [None] * len(chats)
    plain = [index for index, chat in enumerate(chats) if not chat.originals]
    documents = encoder.encode_documents([chats[index].text for index in plain])
    for index, document in zip(plain, documents, strict=True):
        results[index] = _label(tokenizer, chats[index], document)
    return [
        _encode_in_pieces(tokenizer, encoder, chat) if result is None else result
        for chat, result in zip(chats, results, strict=True)
    ]


def _label(tokenizer: Tokenizer, chat: RenderedChat, document: EncodedText) -> Example | None:
    """Mark the tokens of targets; return None if they cannot be used as they are."""
    control_ids = tokenizer.control.ids
    num_read = sum(token_id in tokenizer.forbidden_in_text for token_id in document.ids)
    if num_read > sum(1 for _ in tokenizer.control.find(chat.text)):
        return None  # some come from text that resembles them after normalisation
    targets = iter(chat.targets)
    first, last = next(targets)
    labels = []
    for token_id, (start, end) in zip(document.ids, document.offsets, strict=True):
        if token_id in control_ids:
            # A token that strips white space covers it, even across a boundary.
            text = chat.text[start:end]
            start += len(text) - len(text.lstrip())
            end = start + 1
        if start >= last:
            first, last = next(targets, (len(chat.text), len(chat.text)))
        if start < first < end or start < last < end:
            return None
        labels.append(token_id if first <= start < last else IGNORE_LABEL)
    return _closed(tokenizer, chat, [*document.ids], labels)


def _closed(
    tokenizer: Tokenizer, chat: RenderedChat, input_ids: list[int], labels: list[int]
) -> Example:
    if not chat.is_closed:
        input_ids.append(tokenizer.end_id)
        labels.append(tokenizer.end_id)
    return Example(input_ids, labels)


class _Piece(NamedTuple):
    """A part of a text: a control token of the template, or text without any."""

    start: int
    text: str
    token: ControlToken | None
    follows_control: bool


def _encode_in_pieces(
    tokenizer: Tokenizer, encoder: HuggingFaceEncoder, chat: RenderedChat
) -> Example | str:
    """Tokenise piece by piece, so that control text in messages remains characters."""
    input_ids: list[int] = []
    labels: list[int] = []
    for piece in _pieces(tokenizer, chat):
        if piece.token is not None:
            ids = [piece.token.id]
        else:
            text = [unescape(piece.text, chat.originals)]
            if piece.follows_control:
                (ids,) = encoder.encode_after_control(text)
            else:
                (ids,) = encoder.encode(text, continues=piece.start > 0, parse_special=False)
            if not tokenizer.forbidden_in_text.isdisjoint(ids):
                return NOT_CHARACTERS
        is_target = any(start <= piece.start < end for start, end in chat.targets)
        input_ids += ids
        labels += ids if is_target else [IGNORE_LABEL] * len(ids)
    return _closed(tokenizer, chat, input_ids, labels)


def _pieces(tokenizer: Tokenizer, chat: RenderedChat) -> Iterator[_Piece]:
    """Cut a text at its control tokens and at the boundaries of targets."""
    text = chat.text
    boundaries = sorted({boundary for span in chat.targets for boundary in span})
    places = list(tokenizer.control.find(text))
    done = 0
    before: ControlToken | None = None
    for place in [*places, None]:
        start, end = done, len(text) if place is None else place.start
        while before is not None and before.strips_after and start < end and text[start].isspace():
            start += 1
        while place is not None and place.token.strips_before and text[end - 1 : end].isspace():
            if end == start:
                break
            end -= 1
        cuts = [start, *(boundary for boundary in boundaries if start < boundary < end), end]
        for a, b in pairwise(cuts):
            if a < b:
                yield _Piece(a, text[a:b], None, before is not None and a == start)
        if place is not None:
            yield _Piece(place.start, "", place.token, False)
            before, done = place.token, place.end
