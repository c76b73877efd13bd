from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from diablo_ds.config.run import RunConfig
from diablo_ds.data import streaming
from diablo_ds.data.batches import Dealer
from diablo_ds.data.streaming import open_stream
from diablo_ds.data.text.conversations import LAST_ANSWER
from diablo_ds.data.text.tokenization import load_tokenizer
from diablo_ds.errors import UserError
from diablo_ds.model.loss import count_targets
from tests.chat_templates import QWEN3
from tests.tiny import tiny_tokenizer
from tests.tokenizers_for_tests import save_chat

ROWS = 50


def _write(path, count=ROWS, bad=()):
    lines = [json.dumps({"prompt": f"{i:03d}=", "completion": "x" * (i % 7)}) for i in range(count)]
    for index in bad:
        lines[index] = "{"
    path.write_text("\n".join(lines))
    return path


def _stream(path, rank=0, world_size=1, vocab_size=257, **changes):
    options = {"global_batch": 4, "micro_batch": 2, "max_steps": 100, "max_length": 30}
    options = {**options, "max_bad_rows": 0.5, **changes}
    config = RunConfig(data=(str(path),), stream=True, **options)
    tokenizer = tiny_tokenizer()
    return open_stream(config, tokenizer, Dealer(config, 256, rank, world_size), vocab_size)


def _prompts(batches) -> Counter[str]:
    decode = tiny_tokenizer().encoder.decode
    rows = [row for batch in batches for row in batch.input_ids.tolist()]
    return Counter(text[:3] for row in rows if (text := decode(row))[3] == "=")


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch):
    monkeypatch.setattr(streaming, "WINDOW_ROWS", 16)


# An empty completion, each seventh row, does not fit; neither does a broken line.
GOOD = {f"{i:03d}" for i in range(ROWS) if i % 7 and i != 8}


def _lines(stream):
    return (row for _, row in stream._stream())


def test_each_pass_has_every_good_row_once_in_another_order(tmp_path):
    stream = _stream(_write(tmp_path / "d.jsonl", bad=[8]), global_batch=10)
    steps = [_prompts(stream.step(step)) for step in range(10)]
    assert sum(steps[:5], Counter()) == sum(steps[5:], Counter()) == Counter(GOOD)
    assert steps[:5] != steps[5:]
    assert [len(s) for s in steps[:1]] != list(range(10))
    assert stream.num_skipped == 2 * (ROWS - len(GOOD))


def test_long_rows_make_a_window_of_fewer(tmp_path, monkeypatch):
    path = _write(tmp_path / "d.jsonl")
    monkeypatch.setattr(streaming, "WINDOW_CHARACTERS", 1)
    lines = [row.line for _, row in zip(range(ROWS), _lines(_stream(path)), strict=False)]
    assert lines == list(range(1, ROWS + 1))  # windows of one row: nothing is shuffled


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_step_is_the_same_set_of_rows_at_any_world_size(tmp_path, world_size):
    path = _write(tmp_path / "d.jsonl", bad=[8])
    alone = _stream(path)
    ranks = [_stream(path, rank, world_size) for rank in range(world_size)]
    for step in range(15):
        parts = [list(stream.step(step)) for stream in ranks]
        assert len({len(part) for part in parts}) == 1  # whatever the rows hold
        assert sum((_prompts(part) for part in parts), Counter()) == _prompts(alone.step(step))


def test_a_resumed_stream_continues_at_the_exact_row(tmp_path):
    path = _write(tmp_path / "d.jsonl", bad=[8])
    running, resumed = _stream(path), _stream(path)
    expected = [list(running.step(step)) for step in range(20)]
    for step in (17, 18, 3):  # also back, though nothing asks for it
        for one, other in zip(resumed.step(step), expected[step], strict=True):
            assert torch.equal(one.input_ids, other.input_ids)


def test_a_row_that_does_not_fit_is_an_empty_row(tmp_path):
    path = _write(tmp_path / "d.jsonl", 8, bad=[1, 2])
    batches = list(_stream(path, global_batch=8).step(0))
    assert sum(batch.input_ids.shape[0] for batch in batches) == 8
    assert sum(int(count_targets(b.labels)) for b in batches) == sum(n + 1 for n in (3, 4, 5, 6))


def test_only_a_window_is_in_memory(tmp_path, monkeypatch):
    held = []
    original = streaming.permutation
    monkeypatch.setattr(
        streaming, "permutation", lambda size, seed: held.append(size) or original(size, seed)
    )
    stream = _stream(_write(tmp_path / "d.jsonl", 400), global_batch=20)
    for step in range(20):
        list(stream.step(step))
    assert max(held) == 16


def test_several_compressed_files_are_one_stream(tmp_path):
    import gzip

    folder = tmp_path / "d"
    folder.mkdir()
    for part in range(3):
        text = "".join(
            json.dumps({"prompt": f"{part}{i:02d}=", "completion": "x"}) + "\n" for i in range(10)
        )
        (folder / f"part-{part}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    stream = _stream(folder, global_batch=30)
    assert set(_prompts(stream.step(0))) == {f"{p}{i:02d}" for p in range(3) for i in range(10)}


def test_tokens_beyond_the_vocabulary_make_a_row_that_does_not_fit(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "1=", "completion": "x"}\n' * 20)
    with pytest.raises(UserError, match=r"must be below the model's vocabulary size; got 256"):
        _stream(path, vocab_size=256)  # each row has the end token
    stream = _stream(path, global_batch=20)
    stream.vocab_size = 256
    assert all(batch.num_tokens == 0 for batch in stream.step(0))
    assert stream.num_skipped == 20


def test_data_that_hardly_fits_is_refused_at_the_start(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match="at least one row; got none"):
        _stream(tmp_path / "empty.jsonl")
    with pytest.raises(
        UserError, match=r"max_bad_rows=0.5; got 11 of 20 rows that do not fit:\n .*line 1: "
    ):
        _stream(_write(tmp_path / "bad.jsonl", 20, bad=[*range(9), 15]), max_length=30)
    with pytest.raises(UserError, match="examples of at most 4 tokens"):
        _stream(_write(tmp_path / "d.jsonl"), max_length=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 0}, "needs raw files as data, and max_steps"),
        ({"packing": True}, "packing needs the lengths of all examples"),
        ({"group_by_length": True}, "group_by_length needs the lengths"),
        ({"micro_batch": 0, "micro_batch_tokens": 64}, "micro_batch_tokens needs the lengths"),
        ({"overlong": "error"}, "overlong must not be error"),
    ],
)
def test_settings_that_a_stream_cannot_honour_are_refused(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        _stream(tmp_path / "d.jsonl", **changes)


def test_a_conversation_is_one_sequence_of_a_step(tmp_path, caplog):
    folder = save_chat(tmp_path / "tokenizer", QWEN3)
    asked = {"role": "user", "content": "hi"}
    rows = [{"messages": [asked, {"role": "assistant", "content": "a"}] * n} for n in (1, 2, 3, 4)]
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    config = RunConfig(data=(str(path),), stream=True, max_steps=9, global_batch=4, micro_batch=2)
    with caplog.at_level("INFO", "diablo_ds"):
        stream = open_stream(config, load_tokenizer(folder), Dealer(config, 0, 0, 1), 10**6)
    assert f"3 rows: {LAST_ANSWER}" in caplog.text
    batches = list(stream.step(0))
    assert [batch.input_ids.shape[0] for batch in batches] == [2, 2]
    per_answer = sum(int(count_targets(batch.labels)) for batch in batches) / 4
    assert per_answer == int(per_answer)  # each has the loss of one and the same answer
    assert stream.notes == {LAST_ANSWER: 3}
