from __future__ import annotations

import pytest

from diablo_ds.data.labels import IGNORE_LABEL
from diablo_ds.data.prepare import pipeline
from diablo_ds.data.prepare.options import PrepareOptions
from diablo_ds.data.text.tokenization import load_tokenizer
from diablo_ds.errors import UserError
from diablo_ds.evaluation.loss_data import load_loss_examples, loss_files
from diablo_ds.model.finding import find_tokenizer
from tests.tiny import byte_tokenizer, tiny_tokenizer
from tests.unit.evaluation.rows import write_rows

VOCABULARY = 264


def _load(path, **options):
    settings = {"max_length": 16, **options}
    return load_loss_examples(path, tiny_tokenizer(), VOCABULARY, **settings)


def _pairs(*prompts):
    return [{"prompt": prompt, "completion": "abc"} for prompt in prompts]


def _texts(examples):
    tokenizer = tiny_tokenizer()
    return [
        tokenizer.encoder.decode([token for token in example.labels if token != IGNORE_LABEL])
        for example in (examples[i] for i in range(len(examples)))
    ]


def test_the_tests_of_a_folder_are_read_and_long_rows_are_counted(tmp_path):
    write_rows(tmp_path / "train.jsonl", *_pairs("no"))
    write_rows(tmp_path / "test.jsonl", *_pairs("ab", "a" * 14, "a" * 16))
    examples = _load(tmp_path)
    assert _texts(examples) == ["abc<|end|>", "ab"]
    assert (examples.counts().cut, [*examples.dropped]) == (1, [20])
    assert loss_files(tmp_path) == [tmp_path / "test.jsonl"]


def test_all_tokens_of_a_text_are_scored(tmp_path):
    text = "The cat sat on the mat. " * 5
    (tmp_path / "text.txt").write_text(text)
    examples = _load(tmp_path / "text.txt")
    assert "".join(_texts(examples)) == text + "<|end|>"
    assert examples.counts().cut == len(examples.dropped) == 0


def test_settings_of_raw_data(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", {"Ask": "ab", "completion": "abc"})
    (example,) = (_load(path, column=("prompt=Ask",))[i] for i in range(1))
    assert len(example.input_ids) == 6
    asked = _load(path, column=("prompt=Ask",), template="alpaca", max_length=500)
    assert len(asked[0].input_ids) > 100
    with pytest.raises(UserError, match="needs a choice: add --corpus math"):
        _load(write_rows(tmp_path / "b.jsonl", {"question": "?", "answer": "#### 1"}))


def test_the_held_out_part_of_a_prepared_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "load_tokenizer", load_tokenizer)  # without another process
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    names = [f"{n:02d}" for n in range(10)]
    rows = [{"prompt": name, "completion": name} for name in names]
    for share, expected in ((0.3, 3), (0.0, 10)):
        output = tmp_path / f"out-{share}"
        options = PrepareOptions(
            family="auto",
            source=(str(write_rows(tmp_path / "rows.jsonl", *rows)),),
            tokenizer=str(tmp_path / "tokenizer"),
            output=output,
            val_share=share,
        )
        pipeline.prepare(options, find_tokenizer)
        assert len(_load(output)) == expected
        assert all(path.suffix == ".arrow" for path in loss_files(output))
    with pytest.raises(UserError, match="have no effect on a prepared dataset"):
        _load(output, template="alpaca")
