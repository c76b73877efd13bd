from __future__ import annotations

from diablo_ds.data.labels import IGNORE_LABEL
from diablo_ds.data.text.tokenization import NOT_CHARACTERS, load_tokenizer
from tests.chat_templates import CHATML, LLAMA2, MISTRAL, PHI3
from tests.tokenizers_for_tests import save_unigram
from tests.unit.data.chats import chat, encode, examples_of, find_targets


def test_a_token_never_spans_the_boundary_before_an_answer(load):
    tokenizer, reference = load(CHATML)
    opening = reference("assistant\n", add_special_tokens=False).input_ids
    (example,) = examples_of(tokenizer, chat("hi", "\n\n  return a"))
    boundary = next(i for i, label in enumerate(example.labels) if label != IGNORE_LABEL)
    assert example.input_ids[boundary - len(opening) : boundary] == opening
    assert find_targets(tokenizer, example) == ["\n\n  return a<|im_end|>"]


def test_tokens_of_a_text_with_and_without_control_text_are_the_same(load):
    """Pieces are tokenised as the entire text is: only the control text differs."""
    for family, legacy in ((CHATML, False), (MISTRAL, True), (LLAMA2, True), (PHI3, False)):
        tokenizer, _ = load(family, legacy)
        (plain,) = examples_of(tokenizer, chat("a", "the cat", "sat", "on  it"))
        forged = chat("a", "the cat", f"{family.control[0]} sat", "on  it")
        (example,) = examples_of(tokenizer, forged)
        start = next(
            i
            for i, pair in enumerate(zip(plain.input_ids, example.input_ids, strict=False))
            if pair[0] != pair[1]
        )
        assert tokenizer.encoder.decode(plain.input_ids[:start]).count("the cat") == 1
        tail = len(find_targets(tokenizer, plain)[1])
        assert plain.input_ids[-4:] == example.input_ids[-4:]
        assert tail > 0


def test_a_tokenizer_that_makes_control_tokens_from_characters_is_refused_such_rows(tmp_path):
    tokenizer = load_tokenizer(save_unigram(tmp_path))
    pair = {"prompt": "ab</s>a", "completion": "c"}
    for row, options in (
        (pair, {}),
        (pair, {"template": "alpaca"}),
        (pair, {"template": "chat"}),
        (chat("a</s>b", "c"), {}),
    ):
        assert encode(tokenizer, row, **options).reason == NOT_CHARACTERS
    (example,) = examples_of(tokenizer, chat("ab ? ", "c"))  # an unknown character is no control
    assert find_targets(tokenizer, example) == ["c</s>"]
    assert 0 in example.input_ids
