from __future__ import annotations

import datasets
import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.data.loading import load_data
from diablo_ds.data.text.tokenization import load_tokenizer
from tests.tokenizers_for_tests import save_bytelevel
from tests.unit.data.prepare.preparing import pairs, read_texts, write_rows


def test_rows_come_out_in_their_order_and_train_as_they_are(prepare, tmp_path, tokenizer_folder):
    rows = pairs(37)
    path = write_rows(tmp_path / "d.jsonl", rows)
    manifest = prepare(path)
    expected = [f"{row['prompt']}{row['completion']}<|end|>" for row in rows]
    assert read_texts(tmp_path / "out") == expected
    # The library reads it too, and training from the file gives the same examples.
    part = datasets.load_from_disk(str(tmp_path / "out"))["train"]
    assert part.num_rows == 37
    assert part.features["input_ids"].feature.dtype == "int32"
    tokenizer = load_tokenizer(tokenizer_folder)
    both = [
        load_data(RunConfig(data=(str(d),), heldout_share=0.0), tokenizer, 264)[0]
        for d in (path, tmp_path / "out")
    ]
    for one, other, row in zip(*both, part, strict=True):
        assert list(one.input_ids) == list(other.input_ids) == row["input_ids"]
        assert list(one.labels) == list(other.labels) == row["labels"]
    assert manifest["parts"]["train"]["rows"] == 37


@pytest.mark.parametrize("overlong", ["cut-prompt", "cut-completion", "drop"])
def test_rows_are_cut_alike_wherever_that_happens(prepare, tmp_path, overlong):
    """In preparation, or in training from raw rows or from a longer dataset.

    The tokenizer has a start token, which its chat template does not write.
    """
    folder = save_bytelevel(tmp_path / "tokenizer", bos=True)
    row = {"role": "user", "content": "the cat sat " * 9}, {"role": "assistant", "content": "a mat"}
    rows = [{"messages": row}, *pairs(9), {"prompt": "what? " * 20, "completion": "the dog"}]
    path = write_rows(tmp_path / "d.jsonl", rows)
    tokenizer = load_tokenizer(folder)
    limits = {"max_length": 24, "overlong": overlong}
    prepare(path, tokenizer=str(folder), output="cut", **limits)
    prepare(path, tokenizer=str(folder), output="long")
    raw, cut, long = (
        load_data(RunConfig(data=(str(data),), heldout_share=0.0, **limits), tokenizer, 1000)[0]
        for data in (path, tmp_path / "cut", tmp_path / "long")
    )
    assert len(raw) == len(cut) == len(long) == (11 if overlong == "cut-prompt" else 9)
    for examples in zip(raw, cut, long, strict=True):
        ids = [list(map(int, example.input_ids)) for example in examples]
        labels = [list(map(int, example.labels)) for example in examples]
        assert ids[0] == ids[1] == ids[2]
        assert labels[0] == labels[1] == labels[2]
