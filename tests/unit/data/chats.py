"""Conversations as users have them, encoded by tokenizers with published templates."""

from __future__ import annotations

import json

from diablo_ds.data.corpora.encoding import Encoded, RowEncoder
from diablo_ds.data.corpora.raw_rows import RawRow
from diablo_ds.data.labels import IGNORE_LABEL
from tests.chat_templates import FAMILIES

LEGACY = ("Llama 2", "Mistral")
KINDS = [*FAMILIES, *(f"{name}, legacy" for name in LEGACY)]
CALL = {"name": "get_weather", "arguments": {"city": "Zürich", "days": [1, 2]}}
TOOL = {
    "name": "get_weather",
    "description": "the weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
TALK = ("hi there", "the cat sat", "and  then?", "on the mat, it is")


def load_kind(load, kind):
    name = kind.removesuffix(", legacy")
    return load(FAMILIES[name], kind != name)


def encode(tokenizer, row, **options):
    values = {"family": "auto", "template": "auto"}
    encoder = RowEncoder(**{**values, "tokenizer": tokenizer, **options})
    # As a line of a file, which is how most rows come.
    (result,) = encoder.encode([RawRow(1, json.dumps(row).encode())])
    return result


def examples_of(tokenizer, row, **options):
    result = encode(tokenizer, row, **options)
    assert isinstance(result, Encoded), result
    return list(result.examples)


def find_targets(tokenizer, example):
    """Return the texts with loss of an example, one for each stretch of tokens."""
    texts, current = [], []
    pairs = zip(example.input_ids, example.labels, strict=True)
    for token, label in [*pairs, (None, IGNORE_LABEL)]:
        assert label in (token, IGNORE_LABEL)
        if label != IGNORE_LABEL:
            current.append(token)
        elif current:
            texts.append(tokenizer.encoder.decode(current))
            current = []
    return texts


def chat(*turns, **row):
    roles = ("user", "assistant") * len(turns)
    messages = [
        {"role": role, **(turn if isinstance(turn, dict) else {"content": turn})}
        for role, turn in zip(roles, turns, strict=False)
    ]
    return {"messages": messages, **row}


def tool_chat(call, tools, **content):
    calls = [{"id": "abcdefghi", "type": "function", "function": call}]
    return {
        "messages": [
            {"role": "user", "content": "how is it?"},
            {"role": "assistant", "tool_calls": calls, **content},
            {"role": "tool", "tool_call_id": "abcdefghi", "content": "sunny"},
            {"role": "assistant", "content": "It is fine."},
        ],
        "tools": tools,
    }


def count_control(tokenizer, example):
    return sum(token in tokenizer.control.ids for token in example.input_ids)
