from __future__ import annotations

import json
from pathlib import Path

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.data.labels import IGNORE_LABEL
from diablo_ds.data.loading import load_data
from diablo_ds.data.prepare.manifest import describe
from diablo_ds.data.prepare.preview import inspect_dataset
from diablo_ds.data.text.conversations import EACH_ANSWER
from diablo_ds.data.text.tokenization import load_tokenizer
from diablo_ds.data.token_table import TokenTable
from diablo_ds.errors import UserError
from diablo_ds.model.finding import find_tokenizer
from tests.chat_templates import QWEN3
from tests.tokenizers_for_tests import save_chat
from tests.unit.data.prepare.preparing import pairs, read_files, write_rows


@pytest.fixture
def counted(prepare, tmp_path):
    """A preparation in which every kind of row occurs, with its source's path."""
    rows = [*pairs(20), *pairs(5), {"prompt": "p" * 200, "completion": "c"}]
    rows += [{"prompt": 1, "completion": "c"}, {"prompt": "a", "completion": ""}]
    path = write_rows(tmp_path / "d.jsonl", rows)
    test = write_rows(tmp_path / "test.jsonl", [{"question": "WORD 3"}])
    return prepare(path, max_length=100, exclude=(str(test),), max_bad_rows=0.5, seed=7), path


def test_skipped_rows_are_counted_by_reason(counted):
    manifest, path = counted
    assert manifest["rows_in"] == {"d": 28}
    skipped = manifest["rows_left_out"]
    assert (skipped["bad"], skipped["too_long"], skipped["duplicates"]) == (2, 1, 4)
    assert skipped["in_tests"] == {"same question as a test": 2}
    assert sum(skipped["bad_reasons"].values()) == 2
    assert f"{path}, line 27: field 'prompt' must be text: 1" in manifest["bad_rows"]


def test_counts_of_a_part_are_those_of_its_tokens(counted, tmp_path):
    train = counted[0]["parts"]["train"]
    table = TokenTable.load(tmp_path / "out", "train")
    examples = [table[i] for i in range(len(table))]
    assert train["rows"] == len(table) == 19
    assert train["tokens"] == table.lengths().sum()
    assert train["target_tokens"] == sum(int((e.labels != IGNORE_LABEL).sum()) for e in examples)
    assert train["longest"] == table.lengths().max()
    assert train["largest_id"] == table.largest_id()
    assert sum(train["length_histogram"]["counts"]) == 19


def test_the_inputs_are_recorded(counted, tmp_path):
    manifest, path = counted
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["sources"][0]["file"] == str(path)
    assert len(manifest["sources"][0]["sha256"]) == 64
    assert manifest["options"]["seed"] == 7
    assert {"tokenizers", "datasets", "diablo_ds"} <= set(manifest["versions"])
    assert manifest["templates"] == {"pairs": "plain"}


def test_the_description_names_what_was_skipped(counted):
    text = describe(counted[0])
    assert "28 rows read: 28 d" in text
    assert "9 skipped: 2 bad, 1 too long, 2 same question as a test, 4 duplicates" in text
    assert "train: 19 examples, " in text


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("parts.train.rows", "9", r"manifest\.parts\.train\.rows must be an integer"),
        ("parts.train", None, r"manifest\.parts\.train must be an object"),
        ("tokenizer.probe", "abc", r"manifest\.tokenizer\.probe must be a list"),
        ("rows_in.d", -1, r"manifest\.rows_in\.d must be an integer"),
        ("licences", [7], r"manifest\.licences\[0\] must be text"),
        ("sources", [{}], r"manifest\.sources\[0\] must have a field name"),
    ],
)
def test_a_malformed_manifest_is_refused(prepare, tmp_path, path, value, message):
    source = write_rows(tmp_path / "d.jsonl", pairs(5))
    manifest = prepare(source)
    *parents, last = path.split(".")
    inner = manifest
    for key in parents:
        inner = inner[key]
    inner[last] = value
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    for read in (
        lambda: prepare(source),
        lambda: list(inspect_dataset(tmp_path / "out", 1, "", find_tokenizer)),
    ):
        with pytest.raises(UserError, match=message):
            read()


def test_what_was_done_with_chats_is_counted(prepare, tmp_path):
    tokenizer = str(save_chat(tmp_path / "tokenizer", QWEN3))
    asked, thought = {"role": "user", "content": "hi"}, {"reasoning_content": "hm", "mood": "glad"}
    answers = [{"role": "assistant", "content": f"{i}", **thought} for i in range(9)]
    rows = [{"messages": [asked, answer]} for answer in answers]
    rows += [{"messages": [asked, answers[0], asked, answers[1]]}]
    path = write_rows(tmp_path / "d.jsonl", rows)
    for num_proc in (1, 2):
        manifest = prepare(path, tokenizer=tokenizer, output=f"out{num_proc}", num_proc=num_proc)
    # The first answer of the last row is a copy, the second is not.
    train = manifest["parts"]["train"]
    assert (train["rows"], train["examples"]) == (10, 10)
    assert manifest["rows_left_out"]["duplicates"] == 0
    assert manifest["examples_left_out"] == {"too_long": 0, "duplicates": 1, "not_in_mix": 0}
    assert manifest["notes"] == {
        "message key 'mood', which the chat template does not use": 10,
        EACH_ANSWER: 1,
    }
    assert f"1 row: {EACH_ANSWER}" in describe(manifest)
    assert read_files(tmp_path / "out1") == read_files(tmp_path / "out2")
    # Raw rows in training give the same examples, and say the same.
    config = RunConfig(data=(str(path),), heldout_share=0.0)
    raw, _ = load_data(config, load_tokenizer(Path(tokenizer)), 1000)
    assert len(raw) == 11
    assert raw.read.notes == manifest["notes"]
    assert f"1 row: {EACH_ANSWER}" in raw.describe()
    unique = dict.fromkeys((tuple(e.input_ids), tuple(e.labels)) for e in raw)
    table = TokenTable.load(tmp_path / "out1", "train")
    prepared = [table[i] for i in range(len(table))]
    assert list(unique) == [(tuple(e.input_ids), tuple(e.labels)) for e in prepared]
