from __future__ import annotations

import datasets

from diablo_ds.config.run import RunConfig
from diablo_ds.data.loading import load_data
from diablo_ds.data.text.tokenization import load_tokenizer
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
        load_data(RunConfig(data=str(d), heldout_share=0.0), tokenizer, 264)[0]
        for d in (path, tmp_path / "out")
    ]
    for one, other, row in zip(*both, part, strict=True):
        assert list(one.input_ids) == list(other.input_ids) == row["input_ids"]
        assert list(one.labels) == list(other.labels) == row["labels"]
    assert manifest["parts"]["train"]["rows"] == 37
