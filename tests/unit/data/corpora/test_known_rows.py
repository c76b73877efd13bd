"""Rows that are known by their fields, without the name of a family."""

from __future__ import annotations

import json

import pytest

from diablo_ds.data.corpora.chat_rows import UNANSWERED
from diablo_ds.data.corpora.encoding import Encoded, Rejected, RowEncoder
from diablo_ds.data.corpora.raw_rows import RawRow
from diablo_ds.data.text.templates import alpaca
from diablo_ds.errors import UserError
from tests.chat_templates import CHATML, QWEN25
from tests.tiny import tiny_tokenizer
from tests.unit.data.chats import CALL, TOOL, encode, examples_of, find_targets
from tests.unit.data.corpora.encoded import encode as encode_plain
from tests.unit.data.corpora.encoded import texts

MESSAGES = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hi there"},
    {"role": "assistant", "content": "the cat sat"},
    {"role": "user", "content": "and then?"},
    {"role": "assistant", "content": "on the mat"},
]


def _sharegpt(human="human", gpt="gpt"):
    roles = {"system": "system", "user": human, "assistant": gpt}
    return [{"from": roles[m["role"]], "value": m["content"]} for m in MESSAGES]


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": _sharegpt()},
        {"conversations": _sharegpt("user", "assistant")},
        {"conversations": _sharegpt("Human", "chatgpt"), "id": None},
        {"conversations": _sharegpt()[1:], "system": "be brief"},
        {"conversations": json.dumps(_sharegpt())},
        {"conversations": MESSAGES},
        {"messages": _sharegpt()},
        {"Messages": MESSAGES},
        {
            "system": "be brief",
            "history": [["hi there", "the cat sat"]],
            "instruction": "and then?",
            "input": "",
            "output": "on the mat",
        },
        {
            "system": "be brief",
            "history": json.dumps([["hi there", "the cat sat"]]),
            "question": "and then?",
            "answer": "on the mat",
        },
    ],
)
def test_conversations_in_each_form_are_the_same(load, row):
    tokenizer, _ = load(CHATML)
    result = encode(tokenizer, row)
    assert isinstance(result, Encoded), result
    assert list(result.examples) == examples_of(tokenizer, {"messages": MESSAGES})
    assert result.notes == ()


def test_calls_in_sharegpts_form_are_those_of_messages(load):
    tokenizer, _ = load(QWEN25)
    expected = [
        {"role": "user", "content": "hi there"},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": CALL}]},
        {"role": "tool", "content": "the mat"},
        {"role": "assistant", "content": "the cat sat"},
    ]
    turns = [("human", "hi there"), ("function_call", json.dumps(CALL)), ("observation", "the mat")]
    for call in (CALL, json.dumps(CALL), json.dumps([CALL])):
        turns = [("human", "hi there"), ("function_call", call), ("observation", "the mat")]
        talk = [{"from": f, "value": v} for f, v in [*turns, ("gpt", "the cat sat")]]
        row = {"conversations": talk, "tools": json.dumps([TOOL])}
        assert examples_of(tokenizer, row) == examples_of(
            tokenizer, {"messages": expected, "tools": [TOOL]}
        )


def test_a_last_question_of_sharegpt_is_removed_and_said(load):
    tokenizer, _ = load(CHATML)
    row = {"conversations": [*_sharegpt(), {"from": "human", "value": "why?"}]}
    result = encode(tokenizer, row)
    assert list(result.examples) == examples_of(tokenizer, {"messages": MESSAGES})
    assert result.notes == (UNANSWERED,)


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        (MESSAGES[:-1], MESSAGES[-1:]),
        (MESSAGES[:-1], "on the mat"),
        ("hi there", MESSAGES[-1:]),
    ],
)
def test_prompt_and_completion_may_be_messages(load, prompt, completion):
    tokenizer, _ = load(CHATML)
    result = encode(tokenizer, {"prompt": prompt, "completion": completion})
    (example,) = result.examples
    assert find_targets(tokenizer, example) == ["on the mat<|im_end|>"]
    earlier = MESSAGES[:-1] if isinstance(prompt, list) else [MESSAGES[1]]
    (whole,) = examples_of(tokenizer, {"messages": [*earlier, MESSAGES[-1]]})
    assert example.input_ids == whole.input_ids
    assert result.notes == ()


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"instruction": "Q", "input": "C", "output": "A"}, alpaca("Q", "C"), "A"),
        ({"instruction": "Q", "output": "A"}, alpaca("Q"), "A"),
        ({"INSTRUCTION": "Q", "Input": "", " Output": "A"}, alpaca("Q"), "A"),
        ({"instruction": "Q", "context": "C", "response": "A"}, alpaca("Q", "C"), "A"),
        ({"Question": "Q", "Answer": "A"}, alpaca("Q"), "A"),
        ({"question": "Q", "answer": "#### Step 1\nA"}, alpaca("Q"), "#### Step 1\nA"),
        ({"query": "Q", "response": "A"}, alpaca("Q"), "A"),
        ({"problem": "Q", "solution": "A"}, alpaca("Q"), "A"),
        ({"Prompt": "Q ", "Completion": "A"}, "Q ", "A"),
        ({"TEXT": "A"}, "", "A"),
    ],
)
def test_pairs_and_texts_are_known_in_any_case(row, prompt, completion):
    (result,) = encode_plain("auto", row)
    assert texts(result) == (prompt, completion + "<|end|>")
    assert result.notes == ()


def test_an_alpaca_row_without_turns_needs_no_chat_template_where_alpaca_is_named():
    row = {"instruction": "Q", "input": "", "output": "A", "system": "", "history": []}
    (bad,) = encode_plain("auto", row)
    assert "--template alpaca" in bad.reason
    (result,) = encode_plain("auto", row, template="alpaca")
    assert texts(result) == (alpaca("Q"), "A<|end|>")


@pytest.mark.parametrize(
    ("row", "repair"),
    [
        ({"question": "2+3?", "answer": "It is 5.\n#### 5"}, "add --corpus math"),
        ({"goal": "G", "target": "T"}, "add --corpus safety"),
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, "--column completion=chosen"),
        ({"Frage": "Q", "Antwort": "A"}, "--column prompt=Question"),
        ({"Text": "a", "TEXT": "b"}, "must differ in more than case"),
    ],
)
def test_rows_that_need_an_option_name_it(row, repair):
    (result,) = encode_plain("auto", row)
    assert isinstance(result, Rejected)
    assert repair in result.reason


def test_a_final_number_is_kept_where_a_template_is_named():
    row = {"question": "2+3?", "answer": "It is 5.\n#### 5"}
    (result,) = encode_plain("auto", row, template="alpaca")
    assert texts(result) == (alpaca("2+3?"), "It is 5.\n#### 5<|end|>")


def test_fields_that_are_not_used_are_said():
    (result,) = encode_plain("auto", {"text": "A", "Source": "web", "meta": None})
    assert result.notes == ("field 'source', which is not used",)


def _named(row, *columns):
    encoder = RowEncoder("auto", "auto", tiny_tokenizer(), columns=columns)
    return encoder.encode([RawRow(1, row)])[0]


def test_named_columns_are_read():
    row = {"Frage": "Q", "Antwort": "A", "prompt": "other"}
    result = _named(row, "prompt=Frage", "completion=antwort")
    assert texts(result) == ("Q", "A<|end|>")
    assert "must have the column 'Reply'" in _named(row, "prompt=Frage", "completion=Reply").reason
    for wrong in ("prompt", "nothing=Frage"):
        with pytest.raises(UserError, match="FIELD=COLUMN with one of the fields"):
            _named(row, wrong)
    with pytest.raises(UserError, match="named once"):
        _named(row, "prompt=Frage", "prompt=Antwort")
