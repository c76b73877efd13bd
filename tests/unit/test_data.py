from __future__ import annotations

import json
from collections import Counter

import datasets
import pytest
import torch

from diablo_ds import data
from diablo_ds.data import BatchSource, Example, Examples
from diablo_ds.loss import IGNORE_LABEL, count_targets
from tests.tiny import byte_tokenizer, write_pairs


def _load(path, heldout="", share=0.25, max_length=100, overlong="drop", seed=0, vocab_size=264):
    return data.load_data(
        str(path),
        str(heldout),
        share,
        tokenizer=byte_tokenizer(),
        vocab_size=vocab_size,
        max_length=max_length,
        overlong=overlong,
        seed=seed,
    )


def _source(examples, rank=0, world_size=1, micro_batch=2):
    return BatchSource(examples, 256, micro_batch, rank, world_size)


def _examples(lengths) -> Examples:
    """Examples whose tokens tell which example they are."""
    rows = [{"input_ids": [i] * n, "labels": [i] * n} for i, n in enumerate(lengths)]
    return Examples(rows, range(len(rows)), lengths, "test")


def _ids(micro_batches) -> Counter[int]:
    rows = [row for batch in micro_batches for row in batch.input_ids[:, 0].tolist()]
    return Counter(row for row in rows if row != 256)


def test_the_loss_is_on_the_completion_and_the_end_token_alone():
    tokenizer = byte_tokenizer()
    (row,) = data.tokenize([("ab", "cd")], tokenizer)
    assert tokenizer.decode(row["input_ids"]) == "abcd<|end|>"
    targets = [token for token in row["labels"] if token != IGNORE_LABEL]
    assert tokenizer.decode(targets) == "cd<|end|>"
    assert len(row["labels"]) == len(row["input_ids"])


def test_a_start_token_is_added_where_the_tokenizer_adds_one():
    tokenizer = byte_tokenizer()
    assert data.tokenize([("a", "b")], tokenizer)[0]["input_ids"][0] != 257
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    (row,) = data.tokenize([("a", "b")], tokenizer)
    assert row["input_ids"][0] == tokenizer.bos_token_id
    assert row["labels"][0] == IGNORE_LABEL


def test_held_out_share_is_disjoint_and_depends_on_the_seed_alone(tmp_path):
    path = write_pairs(tmp_path / "d.jsonl", 20)
    train, heldout = _load(path)
    assert (len(train), len(heldout)) == (15, 5)
    assert sorted([*train.indices, *heldout.indices]) == list(range(20))
    assert _load(path)[1].indices == heldout.indices
    assert _load(path, seed=1)[1].indices != heldout.indices
    assert _load(path, share=0.0)[1] is None


def test_prepared_dataset_equals_its_source(tmp_path):
    path = write_pairs(tmp_path / "d.jsonl", 8)
    rows = data.tokenize(data.read_jsonl(path), byte_tokenizer())
    part = datasets.Dataset.from_list(rows)
    datasets.DatasetDict(train=part, heldout=part).save_to_disk(tmp_path / "prepared")
    train, heldout = _load(tmp_path / "prepared")
    expected, _ = _load(path, share=0.0)
    assert list(train) == list(heldout) == list(expected)


def test_overlong_examples_are_counted(tmp_path):
    path = tmp_path / "d.jsonl"
    rows = [("p" * 3, "c" * 2), ("p" * 3, "c" * 20), ("p" * 30, "c")]
    path.write_text("\n".join(json.dumps({"prompt": p, "completion": c}) for p, c in rows))
    dropped, _ = _load(path, share=0.0, max_length=10)
    assert (len(dropped), dropped.num_dropped, dropped.num_cut) == (1, 2, 0)
    assert "2 longer than max_length dropped" in dropped.describe()
    cut, _ = _load(path, share=0.0, max_length=10, overlong="cut")
    # The third row's prompt alone fills the length: cut, it would have no target.
    assert (len(cut), cut.num_dropped, cut.num_cut) == (2, 1, 1)
    assert [len(example.input_ids) for example in cut] == [6, 10]
    with pytest.raises(ValueError, match=r"2 longer than max_length=10 .* row 2 with 24 tokens"):
        _load(path, max_length=10, overlong="error")
    with pytest.raises(ValueError, match="at least one example of at most 3 tokens"):
        _load(path, max_length=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "at least one row; got none"),
        (b"\n \n", "at least one row; got none"),
        (b'{"prompt": "a", "completion": "b"}\n{"prompt": }', "line 2: Expecting value"),
        (b'{"prompt": "a"}', "text field 'completion'; got .*line 1: no such field"),
        (b'{"prompt": 3, "completion": "b"}', "text field 'prompt'; got .*line 1: 3"),
        (b'{"prompt": "a", "completion": ""}', "completion that is not empty; got .*line 1"),
        (b"[1]", "must be a JSON object; got .*line 1: list"),
        (b'\n{"prompt": "\xff"}', "must be UTF-8; got .*line 2"),
    ],
)
def test_bad_rows_are_named_with_their_line(tmp_path, text, message):
    path = tmp_path / "d.jsonl"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=message):
        _load(path)


def test_missing_and_foreign_data_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"existing file or folder; got .*nowhere"):
        _load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="must be a prepared dataset"):
        _load(tmp_path)
    datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(tmp_path / "raw")
    with pytest.raises(ValueError, match="columns input_ids and labels; got text"):
        _load(tmp_path / "raw")
    uneven = datasets.Dataset.from_list([{"input_ids": [1, 2], "labels": [1]}])
    uneven.save_to_disk(tmp_path / "uneven")
    with pytest.raises(ValueError, match="equal lengths"):
        _load(tmp_path / "uneven")
    path = write_pairs(tmp_path / "one.jsonl", 1)
    with pytest.raises(ValueError, match="at least 2 examples to hold some out"):
        _load(path)


def test_collate_pads_on_the_right_and_masks_padding():
    examples = [Example([1, 2, 3], [IGNORE_LABEL, 2, 3]), Example([4], [4])]
    batch = data.collate(examples, pad_id=9)
    width = data.PAD_TO_MULTIPLE
    assert batch.input_ids.tolist() == [[1, 2, 3] + [9] * (width - 3), [4] + [9] * (width - 1)]
    assert batch.attention_mask.sum(1).tolist() == [3, 1]
    assert count_targets(batch.labels) == 2


def test_token_ids_outside_the_vocabulary_are_refused(tmp_path):
    path = write_pairs(tmp_path / "d.jsonl")
    prepared = tmp_path / "prepared"
    rows = data.tokenize(data.read_jsonl(path), byte_tokenizer())
    datasets.Dataset.from_list(rows).save_to_disk(prepared)
    for source in (path, prepared):
        with pytest.raises(ValueError, match=r"got 256, vocab_size=256 in .* another tokenizer"):
            _load(source, vocab_size=256)
        assert len(_load(source, vocab_size=257)[0])


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_step_is_the_same_set_of_examples_at_any_world_size(world_size):
    examples = _examples([5, 3, 9, 1, 7, 2, 8, 4, 6, 10])
    options = {"num_examples": 30, "seed": 3}
    for step in range(4):
        whole = _ids(_source(examples).train_step(step, accumulation_steps=4, **options))
        parts = [
            list(
                _source(examples, rank, world_size).train_step(
                    step, accumulation_steps=4 // world_size, **options
                )
            )
            for rank in range(world_size)
        ]
        assert {len(part) for part in parts} == {4 // world_size}
        assert sum((_ids(part) for part in parts), Counter()) == whole


def test_an_epoch_sees_each_example_once_and_the_next_in_another_order():
    examples = _examples([3] * 10)
    source = _source(examples)
    steps = [
        _ids(source.train_step(s, accumulation_steps=1, num_examples=20, seed=0)) for s in range(10)
    ]
    first, second = steps[:5], steps[5:]
    assert sum(first, Counter()) == sum(second, Counter()) == Counter(range(10))
    assert first != second


def test_rows_beyond_the_end_are_empty_and_carry_no_target():
    source = _source(_examples([3, 3, 3]), micro_batch=4)
    (batch,) = source.train_step(0, accumulation_steps=1, num_examples=3, seed=0)
    assert _ids([batch]) == Counter(range(3))
    assert batch.input_ids.shape[0] == 4
    assert count_targets(batch.labels) == 3 * 2


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_held_out_examples_are_seen_once_with_equal_counts_on_all_ranks(world_size):
    examples = _examples([2, 9, 4, 7, 5, 3, 8])
    parts = [list(_source(examples, rank, world_size).heldout()) for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1
    assert sum((_ids(part) for part in parts), Counter()) == Counter(range(7))


def test_examples_of_similar_length_share_a_micro_batch():
    lengths = torch.randint(1, 400, (64,)).tolist()
    source = _source(_examples(lengths), micro_batch=8)
    widths = [b.input_ids.shape[1] for b in source.heldout()]
    assert widths == sorted(widths, reverse=True)
    assert sum(widths) * 8 < 1.25 * sum(lengths)
