from __future__ import annotations

import pickle

import pytest

from diablo_ds.data.text.encoders import HuggingFaceEncoder
from diablo_ds.data.text.tokenization import load_tokenizer
from tests import tokenizers_for_tests as kinds
from tests.tokenizers_for_tests import KINDS

TEXT = "the cat  sat\n\ton \u00e9 the mat"


@pytest.fixture(scope="module", params=KINDS)
def encoder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return load_tokenizer(KINDS[request.param](folder / "t")).encoder


def _encode(encoder, text, **options):
    (ids,) = encoder.encode([text], **{"continues": False, "parse_special": False, **options})
    return ids


def test_a_text_comes_back(encoder):
    assert encoder.decode(_encode(encoder, TEXT)).removeprefix(" ") == TEXT


def test_what_continues_a_text_gets_no_space_before_it(encoder):
    first = _encode(encoder, "the cat")
    joined = [*first, *_encode(encoder, "sat", continues=True)]
    assert encoder.decode(joined).removeprefix(" ") == "the catsat"


def test_control_tokens_are_read_only_if_asked(encoder):
    token = encoder.control.tokens[-1]
    text = f"the{token.text}cat"
    assert token.id not in _encode(encoder, text)
    parsed = _encode(encoder, text, parse_special=True)
    assert parsed.count(token.id) == 1
    assert token.text in encoder.decode(parsed)


def test_ids_are_below_the_vocabulary_size_and_survive_pickling(encoder):
    copy = pickle.loads(pickle.dumps(encoder))
    assert copy == encoder
    assert _encode(copy, TEXT) == _encode(encoder, TEXT)
    assert 0 <= max(_encode(encoder, TEXT)) < encoder.vocab_size


def test_documents_know_where_each_token_comes_from(tmp_path):
    encoder = load_tokenizer(kinds.save_bytelevel(tmp_path)).encoder
    assert isinstance(encoder, HuggingFaceEncoder)
    text = "the cat<|end|>sat"
    (document,) = encoder.encode_documents([text])
    assert document.ids == _encode(encoder, text, parse_special=True)
    assert "".join(text[start:end] for start, end in document.offsets) == text


def test_added_tokens_can_become_control_tokens(tmp_path):
    family = kinds.save_bytelevel(tmp_path)
    encoder = load_tokenizer(family).encoder
    assert encoder.with_control(frozenset()) is encoder
    assert {token.text for token in encoder.control.tokens} <= {
        token.text for token in encoder.added.tokens
    }
