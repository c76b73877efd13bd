"""Conversations in the forms in which users have them."""

from __future__ import annotations

import json

import pytest

from diablo_ds.data.corpora.chats import NULL_ARGUMENTS
from diablo_ds.data.corpora.encoding import Rejected
from tests.chat_templates import CHATML, CHATML_MARKED, PHI3, QWEN3, QWEN25
from tests.unit.data.chats import CALL, TOOL, chat, encode, examples_of, find_targets, tool_chat


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_reach_the_template_under_each_of_their_names(load, key):
    tokenizer, _ = load(QWEN3)
    (example,) = examples_of(tokenizer, chat("a?", {"content": "the cat", key: "hmm"}))
    assert find_targets(tokenizer, example) == ["<think>\nhmm\n</think>\n\nthe cat<|im_end|>"]
    inline = chat("a?", "<think>\nhmm\n</think>\n\nthe cat")
    assert examples_of(tokenizer, inline) == [example]


def test_variables_of_a_row_reach_the_template(load):
    tokenizer, _ = load(QWEN3)
    row = chat("a?", "the cat", chat_template_kwargs={"enable_thinking": False})
    (example,) = examples_of(tokenizer, row)
    assert find_targets(tokenizer, example) == ["the cat<|im_end|>"]
    assert "<think>\n\n</think>\n\n" in tokenizer.encoder.decode(example.input_ids)


def test_calls_and_tools_may_come_as_text_and_in_older_forms(load):
    tokenizer, _ = load(QWEN25)
    tool = {"type": "function", "function": TOOL}
    expected = examples_of(tokenizer, tool_chat(CALL, [tool], content=None))
    as_text = {**CALL, "arguments": json.dumps(CALL["arguments"], indent=2)}
    filled = {**tool, "function": {**TOOL, "strict": None}}  # as tables fill rows
    for row in (
        tool_chat(as_text, json.dumps([tool])),
        tool_chat(CALL, [json.dumps(tool)]),
        tool_chat(CALL, [TOOL]),
        tool_chat(CALL, [filled]),
    ):
        assert examples_of(tokenizer, row) == expected
    older = tool_chat(CALL, None)
    older["functions"] = [TOOL]
    del older["messages"][1]["tool_calls"]
    older["messages"][1]["function_call"] = as_text
    older["messages"][2] = {"role": "function", "name": "get_weather", "content": "sunny"}
    assert examples_of(tokenizer, older) == expected
    as_table = tool_chat(CALL, [tool])
    as_table["messages"] = json.dumps(as_table["messages"])
    assert examples_of(tokenizer, as_table) == expected


def test_null_arguments_that_a_table_filled_in_are_removed_and_counted(load):
    tokenizer, _ = load(QWEN25)
    filled = {**CALL, "arguments": {**CALL["arguments"], "street": None}}
    result = encode(tokenizer, tool_chat(filled, [TOOL]))
    assert list(result.examples) == examples_of(tokenizer, tool_chat(CALL, [TOOL]))
    assert result.notes == (NULL_ARGUMENTS,)


@pytest.mark.parametrize(
    ("family", "row", "reason"),
    [
        (CHATML, tool_chat(CALL, None), "tool_calls of message 2, but omits it: 'get_w"),
        (PHI3, tool_chat(CALL, None), "must render tool_calls of message 2"),
        (CHATML, chat("a", "b", tools=[TOOL]), "must render tools, but omits it: 'get_w"),
        (QWEN25, tool_chat({**CALL, "arguments": "{"}, None), "arguments in valid JSON: '{'"),
        (QWEN25, tool_chat({**CALL, "arguments": "[1]"}, None), "an object as arguments"),
        (QWEN25, tool_chat({"arguments": {}}, None), "must each have a function with a name"),
        (QWEN25, chat("a", "b", tools="["), "field 'tools' must be valid JSON"),
        (QWEN25, chat("a", "b", tools={"a": 1}), "field 'tools' must be a list"),
        (QWEN25, chat("a", "b", tools=[{"type": "x"}]), "each with the name of a function"),
        (QWEN25, chat({"content": "a", "tool_calls": [{"function": CALL}]}, "b"), "only the assi"),
    ],
)
def test_what_cannot_be_rendered_is_refused_with_the_reason(load, family, row, reason):
    result = encode(load(family)[0], row)
    assert isinstance(result, Rejected)
    assert reason in result.reason


@pytest.mark.parametrize("switch", [{"weight": 0}, {"weight": 0.0}, {"train": False}])
@pytest.mark.parametrize("family", [CHATML, CHATML_MARKED])
def test_an_answer_of_weight_0_carries_no_loss(load, family, switch):
    tokenizer, _ = load(family)
    turns = ("a", "the cat", "b", "the dog", "c", "the log")
    (weighted,) = examples_of(tokenizer, chat(*turns))
    middle = chat(*turns[:3], {"content": "the dog", **switch}, *turns[4:])
    (example,) = examples_of(tokenizer, middle)
    assert example.input_ids == weighted.input_ids
    assert find_targets(tokenizer, example) == ["the cat<|im_end|>", "the log<|im_end|>"]
    last = chat(*turns[:5], {"content": "the log", **switch})
    assert examples_of(tokenizer, last) == examples_of(tokenizer, chat(*turns[:4]))
    assert "answers of weight 0, which carry no loss" in encode(tokenizer, last).notes


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"content": "b", "weight": 0.5}, "message 2: weight must be 0 or 1: 0.5"),
        ({"content": "b", "train": "no"}, "message 2: train must be true or false: 'no'"),
        ({"content": "b", "weight": 1, "train": False}, "weight and train must agree"),
        ({"content": "b", "weight": 0}, "must have an answer with loss: each has weight 0"),
        ({"content": None}, "message 2: content must be text"),
        ({}, "message 2: content must be text"),
        ({"content": " "}, "message 2: an answer must not be empty, unless its weight is 0"),
        ({"content": [{"type": "image"}]}, "message 2: each part of content must be text: 'image'"),
        ({"content": 3}, "message 2: content must be text"),
        ({"content": "b", "thinking": "x", "reasoning": "y"}, "must be one text"),
        ({"content": "b", "tool_calls": 3}, "message 2: tool_calls must be a list"),
    ],
)
def test_wrong_messages_are_refused_with_the_reason(load, message, reason):
    result = encode(load(CHATML)[0], chat("a", message))
    assert isinstance(result, Rejected), result
    assert reason in result.reason


def test_content_in_parts_is_their_text(load):
    tokenizer, _ = load(CHATML)
    parts = {"content": [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]}
    assert examples_of(tokenizer, chat("a", parts)) == examples_of(tokenizer, chat("a", "the cat"))


def test_keys_that_nothing_reads_are_reported(load):
    row = chat({"content": "a", "mood": "glad", "id": None}, {"content": "b", "mood": "glad"})
    assert encode(load(CHATML)[0], row).notes == (
        "message key 'mood', which the chat template does not use",
    )
    knows = CHATML._replace(template=CHATML.template.replace("m['content']", "m.mood + m.content"))
    result = encode(load(knows)[0], row)
    assert result.notes == ()


def test_results_of_tools_may_be_objects(load):
    tokenizer, _ = load(QWEN25)
    as_text, as_object = tool_chat(CALL, [TOOL]), tool_chat(CALL, [TOOL])
    as_text["messages"][2]["content"] = '{"sun": "ja, schön"}'
    as_object["messages"][2]["content"] = {"sun": "ja, schön"}
    assert examples_of(tokenizer, as_text) == examples_of(tokenizer, as_object)
