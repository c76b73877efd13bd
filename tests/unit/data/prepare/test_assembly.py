"""Which rows and conversations reach which part: held out, mixed, split and skipped together."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.data.loading import load_data
from diablo_ds.data.prepare.manifest import describe
from diablo_ds.data.text.tokenization import load_tokenizer
from diablo_ds.data.token_table import TokenTable
from diablo_ds.errors import UserError
from tests.chat_templates import CHATML, QWEN3
from tests.tokenizers_for_tests import save_chat
from tests.unit.data.prepare.preparing import pairs, read_texts, write_rows


@pytest.fixture(scope="module", name="tokenizers")
def _tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    save_chat(folder / "qwen3", QWEN3)
    save_chat(folder / "chatml", CHATML)
    return folder


@pytest.fixture
def prepare_chats(tokenizers, prepare, tmp_path):
    def run(rows, output="out", tokenizer="qwen3", **changes):
        path = write_rows(tmp_path / "d.jsonl", rows)
        return prepare(path, output=output, tokenizer=str(tokenizers / tokenizer), **changes)

    return run


def _chat(number, num_turns):
    """A conversation whose every text names it, as <number>."""
    thought = {"reasoning_content": "hm"}
    return {
        "messages": [
            message
            for turn in range(num_turns)
            for message in (
                {"role": "user", "content": f"ask {turn} of <{number}>"},
                {"role": "assistant", "content": f"answer {turn}", **thought},
            )
        ]
    }


CHATS = [_chat(number, number % 4 + 1) for number in range(40)]


NUM_EXAMPLES = 100


def _conversations(examples, tokenizers):
    """The conversation that each example is of."""
    decode = load_tokenizer(tokenizers / "qwen3").encoder.decode
    texts = [decode(list(map(int, example.input_ids))) for example in examples]
    return [int(re.findall(r"of <(\d+)>", text)[-1]) for text in texts]


def _part(folder, part="train"):
    table = TokenTable.load(Path(folder), part)
    return [table[i] for i in range(len(table))]


def test_a_held_out_share_is_of_complete_conversations(prepare_chats, tmp_path, tokenizers):
    manifest = prepare_chats(CHATS, val_share=0.25, mix=("d=32",))
    found = {}
    for part in ("train", "heldout"):
        of = _conversations(_part(tmp_path / "out", part), tokenizers)
        found[part] = set(of)
        assert sorted(of) == sorted(n for n in found[part] for _ in range(n % 4 + 1))
        described = manifest["parts"][part]
        assert (described["rows"], described["examples"]) == (len(found[part]), len(of))
        assert f"{part}: {len(of)} examples of {len(found[part])} rows" in describe(manifest)
        columns = datasets.load_from_disk(str(tmp_path / "out"))[part]
        numbers = [columns["source_row"][i] for i in range(len(of))]
        assert numbers == list(np.unique(of, return_inverse=True)[1])
    assert (len(found["train"]), len(found["heldout"])) == (24, 8)
    assert not found["train"] & found["heldout"]
    num_kept = sum(part["examples"] for part in manifest["parts"].values())
    assert manifest["rows_left_out"]["not_in_mix"] == 8
    assert manifest["examples_left_out"]["not_in_mix"] == NUM_EXAMPLES - num_kept


@pytest.mark.parametrize("is_prepared", [False, True])
def test_training_holds_out_full_conversations(is_prepared, prepare_chats, tmp_path, tokenizers):
    manifest = prepare_chats(CHATS)
    data = tmp_path / ("out" if is_prepared else "d.jsonl")
    config = RunConfig(data=(str(data),), heldout_share=0.25)
    both = load_data(config, load_tokenizer(tokenizers / "qwen3"), 1000)
    train, heldout = (set(_conversations(part, tokenizers)) for part in both)
    assert (len(train), len(heldout)) == (30, 10)
    assert not train & heldout
    assert sum(map(len, both)) == NUM_EXAMPLES == manifest["parts"]["train"]["examples"]
    assert f"{len(both[1])} examples of 10 rows, " in both[1].describe()


def test_one_conversation_cannot_be_split(tmp_path, tokenizers):
    (tmp_path / "d.jsonl").write_text(json.dumps(CHATS[3]))
    config = RunConfig(data=(str(tmp_path / "d.jsonl"),), heldout_share=0.25)
    with pytest.raises(UserError, match="at least 2 rows to hold some out; got 1 in"):
        load_data(config, load_tokenizer(tokenizers / "qwen3"), 1000)


@pytest.mark.parametrize("tokenizer", ["qwen3", "chatml"])
def test_a_test_question_in_any_turn_drops_its_conversation(tokenizer, prepare_chats, tmp_path):
    test = tmp_path / "test.jsonl"
    test.write_text(json.dumps({"question": "ask 2 of <7>"}) + "\n")
    chats = [
        {"messages": [{k: v for k, v in m.items() if k != "reasoning_content"} for m in messages]}
        for messages in (chat["messages"] for chat in CHATS)
    ]
    manifest = prepare_chats(chats, tokenizer=tokenizer, exclude=(str(test),))
    assert manifest["rows_left_out"]["in_tests"] == {"same question as a test": 1}
    assert manifest["parts"]["train"]["rows"] == 39


def test_every_row_is_counted_once(prepare_chats, tmp_path):
    rows = [*CHATS, CHATS[3], _chat(3, 1), _chat("long " * 90, 3), {"messages": []}]
    manifest = prepare_chats(rows, max_length=280, max_bad_rows=0.1, val_share=0.1)
    skipped = {k: v for k, v in manifest["rows_left_out"].items() if isinstance(v, int)}
    assert skipped == {"bad": 1, "too_long": 1, "duplicates": 2, "not_in_mix": 0}
    in_parts = sum(part["rows"] for part in manifest["parts"].values())
    assert sum(skipped.values()) + in_parts == len(rows) == manifest["rows_in"]["d"]
    assert manifest["examples_left_out"] == {"too_long": 3, "duplicates": 5, "not_in_mix": 0}
    assert "Skipped examples, several for some conversations: 3 too long, 5" in describe(manifest)


def test_data_of_one_example_per_row_are_written_as_before(prepare_chats, tmp_path):
    manifest = prepare_chats([_chat(number, 1) for number in range(20)], val_share=0.1)
    assert datasets.load_from_disk(str(tmp_path / "out"))["train"].column_names == [
        "input_ids",
        "labels",
    ]
    assert "examples_left_out" not in manifest
    assert "examples" not in manifest["parts"]["train"]


def test_a_dataset_of_an_older_version_is_read_unless_it_split_conversations(
    prepare_chats, tmp_path, tokenizers, capsys
):
    """Its manifest differs from today's only where a row gave several examples."""
    single = [_chat(number, 1) for number in range(20)]
    first = prepare_chats(single, val_share=0.1)
    assert prepare_chats(single, val_share=0.1) == first
    assert "Already prepared" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out")

    manifest = prepare_chats(CHATS, val_share=0.1)
    del manifest["examples_left_out"]
    for part in manifest["parts"].values():
        part["rows"] = part.pop("examples")
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    config = RunConfig(data=(str(tmp_path / "out"),))
    tokenizer = load_tokenizer(tokenizers / "qwen3")
    for use in (
        lambda: prepare_chats(CHATS, val_share=0.1),
        lambda: load_data(config, tokenizer, 1000),
    ):
        with pytest.raises(UserError, match="keep the answers of a conversation together; got"):
            use()


def test_held_out_rows_are_disjoint_from_training(prepare, tmp_path):
    path = write_rows(tmp_path / "d.jsonl", [*pairs(60), *pairs(60)])
    manifest = prepare(path, val_share=0.25)
    train, heldout = read_texts(tmp_path / "out"), read_texts(tmp_path / "out", "heldout")
    assert (len(train), len(heldout)) == (45, 15)
    assert not set(train) & set(heldout)
    assert manifest["rows_left_out"]["duplicates"] == 60


def test_training_rows_that_are_in_the_held_out_source_are_removed(prepare, tmp_path):
    train = write_rows(tmp_path / "d.jsonl", pairs(30))
    val = write_rows(tmp_path / "val.jsonl", [*pairs(3), *pairs(2, "other")])
    manifest = prepare(train, val_source=(str(val),))
    assert len(read_texts(tmp_path / "out", "heldout")) == 5
    assert len(read_texts(tmp_path / "out")) == 27
    assert manifest["rows_left_out"]["duplicates"] == 3


def test_sources_are_mixed_by_name(prepare, tmp_path):
    for name in ("alpaca", "safety"):
        write_rows(tmp_path / f"{name}.jsonl", pairs(40, name))
    sources = [f"general={tmp_path}/alpaca.jsonl", tmp_path / "safety.jsonl"]
    prepare(*sources, mix=("general=20", "safety=0.1"))
    words = Counter(text.split()[0] for text in read_texts(tmp_path / "out"))
    assert words == {"alpaca": 20, "safety": 4}
