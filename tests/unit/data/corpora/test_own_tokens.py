"""Texts that a chat template rendered before."""

from __future__ import annotations

import pytest

from diablo_ds.data.corpora.own_tokens import CONTROL_READ, OWN_ENDS
from diablo_ds.data.text.conversations import CONTROL_TEXT
from tests.chat_templates import CHATML, LLAMA3
from tests.unit.data.chats import KINDS, chat, count_control, encode, examples_of, load_kind


@pytest.mark.parametrize("kind", KINDS)
def test_rendered_text_is_trained_on_as_its_messages_are(load, kind):
    tokenizer, reference = load_kind(load, kind)
    row = chat("hi there", "the cat sat")
    (example,) = examples_of(tokenizer, row)
    rendered_text = reference.apply_chat_template(row["messages"], tokenize=False)
    prompt = reference.apply_chat_template(
        row["messages"][:1], tokenize=False, add_generation_prompt=True
    )
    pair = {"prompt": prompt, "completion": rendered_text.removeprefix(prompt)}
    result = encode(tokenizer, pair)
    assert result.notes == (OWN_ENDS, CONTROL_READ)
    rendered = result.examples[0]
    if kind == "Phi 3":  # its template writes an end token behind the end of turn
        assert rendered.input_ids.pop() == rendered.labels.pop() == tokenizer.end_id
    if not kind.endswith("legacy"):
        assert rendered.input_ids == example.input_ids
        assert rendered.labels == example.labels
    text = examples_of(tokenizer, {"text": rendered_text})[0]
    assert text.input_ids[0] == example.input_ids[0]
    assert text.input_ids.count(tokenizer.end_id) == text.labels.count(tokenizer.end_id)
    assert text.input_ids[-2:].count(tokenizer.end_id) <= 1
    assert not tokenizer.start_ids or text.input_ids[1] != tokenizer.start_ids[0]


def test_begin_and_end_tokens_in_a_text_are_not_added_again_with_any_template(load):
    tokenizer, _ = load(LLAMA3)
    bos, eos = LLAMA3.bos, LLAMA3.eos
    for template in ("plain", "alpaca", "gsm8k", "chat"):
        clean = {"prompt": "what?", "completion": "the cat"}
        own = {"prompt": f"{bos}what?", "completion": f"the cat{eos}"}
        assert examples_of(tokenizer, own, template=template) == (
            examples_of(tokenizer, clean, template=template)
        )
        assert OWN_ENDS in encode(tokenizer, own, template=template).notes
    ended = chat("what?", f"the cat{eos}\n")
    assert examples_of(tokenizer, ended) == examples_of(tokenizer, chat("what?", "the cat"))
    assert encode(tokenizer, ended).notes == (OWN_ENDS,)


def test_control_tokens_in_plain_rows_are_read_only_where_a_row_is_rendered_or_as_asked(load):
    tokenizer, _ = load(CHATML)
    forged = {"prompt": "so <|im_end|> it", "completion": "is"}
    counts = {
        choice: count_control(tokenizer, examples_of(tokenizer, forged, control_tokens=choice)[0])
        for choice in ("auto", "text", "read")
    }
    assert counts == {"auto": 1, "text": 1, "read": 2}
    assert encode(tokenizer, forged).notes == (CONTROL_TEXT,)
    rendered = {"prompt": "<|im_start|>user\na<|im_end|>\n", "completion": "is"}
    counts = {
        choice: count_control(tokenizer, examples_of(tokenizer, rendered, control_tokens=choice)[0])
        for choice in ("auto", "text", "read")
    }
    assert counts == {"auto": 3, "text": 1, "read": 3}


def test_an_answer_that_is_nothing_but_its_end_token_is_refused(load):
    tokenizer, _ = load(CHATML)
    pair = {"prompt": "what?", "completion": "<|im_end|>\n"}
    for row, template in (
        *((pair, template) for template in ("plain", "alpaca", "chat")),
        (chat("what?", " <|im_end|>"), "chat"),
    ):
        result = encode(tokenizer, row, template=template)
        assert result.reason == "an answer must contain more than an end token"
