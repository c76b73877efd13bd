from __future__ import annotations

import json

import datasets
import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.data import loading
from diablo_ds.data.corpora import text_files
from diablo_ds.data.corpora.reading import read_rows
from diablo_ds.data.labels import Example
from diablo_ds.data.run_sources import data_files
from diablo_ds.errors import UserError
from tests.tiny import encode_pairs, tiny_tokenizer, write_pairs


def _load(path, vocab_size=264, **changes):
    defaults = {"heldout_share": 0.25, "max_length": 100}
    config = RunConfig(**{"data": (str(path),), **defaults, **changes})
    return loading.load_data(config, tiny_tokenizer(), vocab_size)


def _pairs(path):
    rows = [json.loads(row.value) for row in read_rows(path)]
    return [(row["prompt"], row["completion"]) for row in rows]


def _plain(examples):
    return [[list(map(int, part)) for part in example] for example in examples]


def _save(path, rows):
    columns = {"input_ids": [r.input_ids for r in rows], "labels": [r.labels for r in rows]}
    return datasets.Dataset.from_dict(columns)


def test_raw_rows_are_tokenised_as_prompt_and_completion(tmp_path):
    path = write_pairs(tmp_path / "d.jsonl", 8)
    train, _ = _load(path, heldout_share=0.0)
    assert _plain(train) == _plain(encode_pairs(_pairs(path)))


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_dataset_of_another_program_can_be_read(tmp_path, shuffled):
    """Any dataset on disk with the two columns, also of 64-bit numbers, or with an indices map."""
    path = write_pairs(tmp_path / "d.jsonl", 8)
    expected, _ = _load(path, heldout_share=0.0)
    part = _save(tmp_path, encode_pairs(_pairs(path)))
    if shuffled:
        part = part.select(range(7, -1, -1))
    datasets.DatasetDict(train=part, heldout=part).save_to_disk(tmp_path / "prepared")
    train, heldout = _load(tmp_path / "prepared")
    assert _plain(train) == _plain(heldout) == _plain(expected)[:: -1 if shuffled else 1]


def test_overlong_examples_are_counted(tmp_path):
    path = tmp_path / "d.jsonl"
    rows = [("p" * 3, "c" * 2), ("p" * 3, "c" * 20), ("p" * 30, "c")]
    path.write_text("\n".join(json.dumps({"prompt": p, "completion": c}) for p, c in rows))

    def lengths(overlong):
        examples, _ = _load(path, heldout_share=0.0, max_length=10, overlong=overlong)
        assert [len(example.input_ids) for example in examples] == examples.lengths.tolist()
        return examples.lengths.tolist(), len(examples.dropped), examples.counts().cut

    assert lengths("drop") == ([6], 2, 0)
    # The third row's prompt alone fills the length: cut at the end, it would have no target.
    assert lengths("cut-completion") == ([6, 10], 1, 1)
    # The second row's completion alone is too long.
    assert lengths("cut-prompt") == ([6, 10], 1, 1)
    examples, _ = _load(path, heldout_share=0.0, max_length=10)
    assert "2 skipped: 2 too long" in examples.describe()
    with pytest.raises(UserError, match=r"2 longer than max_length=10 .* row 2 with 24 tokens"):
        _load(path, max_length=10, overlong="error")
    with pytest.raises(UserError, match="at least one example of at most 3 tokens"):
        _load(path, max_length=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "at least one row; got none"),
        (b"\n \n", "at least one row; got none"),
        (b'{"prompt": "a", "completion": "b"}\n{"prompt": }', "line 2: .*Expecting value"),
        (b'{"prompt": "a"}', "line 1: a row must have the fields conversations; .*it has prompt"),
        (b'{"prompt": 3, "completion": "b"}', "line 1: field 'prompt' must be text: 3"),
        (b'{"prompt": "a", "completion": ""}', "line 1: field 'completion' must not be empty"),
        (b"[1]", "line 1: a row must be a JSON object: list"),
        (b'\n{"prompt": "\xff"}', "line 2: a row must be UTF-8"),
    ],
)
def test_bad_rows_are_named_with_their_line(tmp_path, text, message):
    path = tmp_path / "d.jsonl"
    path.write_bytes(text)
    with pytest.raises(UserError, match=message):
        _load(path)


def test_missing_and_foreign_data_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"existing file or folder; got .*nowhere"):
        _load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"existing file or folder; got .*empty"):
        _load(tmp_path / "empty")
    datasets.Dataset.from_list([{"input_ids": [1]}]).save_to_disk(tmp_path / "raw")
    with pytest.raises(UserError, match="columns input_ids and labels; got input_ids"):
        _load(tmp_path / "raw")
    (tmp_path / "raw" / "state.json").write_text("{}")
    with pytest.raises(UserError, match="must be a prepared dataset"):
        _load(tmp_path / "raw")
    _save(tmp_path, [Example([1, 2], [1])]).save_to_disk(tmp_path / "uneven")
    with pytest.raises(UserError, match="equal lengths"):
        _load(tmp_path / "uneven")
    path = write_pairs(tmp_path / "one.jsonl", 1)
    with pytest.raises(UserError, match="at least 2 rows to hold some out"):
        _load(path)
    _save(tmp_path, encode_pairs([("a", "b")])).save_to_disk(tmp_path / "prepared")
    with pytest.raises(UserError, match="no effect on a prepared dataset; got corpus='math'"):
        _load(tmp_path / "prepared", corpus="math")


def test_token_ids_outside_the_vocabulary_are_refused(tmp_path):
    path = write_pairs(tmp_path / "d.jsonl")
    prepared = tmp_path / "prepared"
    _save(tmp_path, encode_pairs(_pairs(path))).save_to_disk(prepared)
    for source in (path, prepared):
        with pytest.raises(UserError, match=r"got 256, vocab_size=256 in .* another tokenizer"):
            _load(source, vocab_size=256)
        assert len(_load(source, vocab_size=257)[0])


def test_the_default_data_is_the_shipped_slice_of_gsm8k():
    train, heldout = _load("default", max_length=3000)
    assert (len(train), len(heldout)) == (160, 20)
    text = tiny_tokenizer().encoder.decode(train[0].input_ids)
    assert "\nAnswer the above question. First think step by step" in text
    assert "The final answer is: 72<|end|>" in text


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("run.json", "a run folder"),
        ("checksums.json", "a checkpoint"),
        ("adapter_config.json", "an adapter"),
    ],
)
def test_what_a_run_wrote_is_not_taken_for_data(name, kind, tmp_path):
    (tmp_path / name).write_text("{}")
    (tmp_path / "state.json").write_text("{}")  # a checkpoint and a dataset's part have one
    with pytest.raises(UserError, match=f"raw files; got data='{tmp_path}', {kind}"):
        _load(tmp_path)


def _rows(names):
    return [{"Prompt": f"{name}?", "Completion": f"{name}!"} for name in names]


def _pairs_of(examples):
    decode = tiny_tokenizer().encoder.decode
    return [decode(example.input_ids).removesuffix("<|end|>") for example in examples]


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv", "saved"])
def test_the_splits_of_a_folder_are_training_and_held_out_data(form, tmp_path, caplog):
    splits = {"train": ["a", "b"], "test": ["c"], "validation": ["d"]}
    parts = {name: datasets.Dataset.from_list(_rows(rows)) for name, rows in splits.items()}
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    if form == "saved":
        datasets.DatasetDict(parts).save_to_disk(folder)
    for name, part in parts.items():
        path = folder / "data" / f"{name}-00000-of-00001.{form}"
        if form == "parquet":
            part.to_parquet(path)
        elif form == "jsonl":
            part.to_json(path)
        elif form == "csv":
            part.to_csv(path)
    with caplog.at_level("INFO", "diablo_ds"):
        train, heldout = _load(folder, heldout_share=0.5)
    assert _pairs_of(train) == ["a?a!", "b?b!"]
    assert _pairs_of(heldout) == ["d?d!"]
    assert "validation" in heldout.describe()
    assert "Not read, as it looks like test data" in caplog.text
    config = RunConfig(data=(str(folder),))
    assert [p.parent.name + p.name for p in data_files(config, "heldout")] != []
    assert set(data_files(config, "heldout")).isdisjoint(data_files(config, "train"))


def test_a_saved_dataset_is_read_without_its_caches(tmp_path):
    rows = datasets.Dataset.from_list(_rows("abcd"))
    rows.select([3, 1, 0]).save_to_disk(tmp_path / "saved", num_shards=2)
    (tmp_path / "saved" / "cache-1234.arrow").write_bytes(b"other rows")
    train, _ = _load(tmp_path / "saved", heldout_share=0.0)
    assert _pairs_of(train) == ["d?d!", "b?b!", "a?a!"]


def test_texts_are_joined_and_cut_and_no_token_is_lost(tmp_path):
    texts = ["first text", "a" * 25, "b"]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps({"Text": text}) for text in texts))
    train, _ = _load(path, heldout_share=0.0, max_length=10)
    whole = "".join(f"{text}<|end|>" for text in texts)
    decode = tiny_tokenizer().encoder.decode
    assert "".join(decode(example.input_ids) for example in train) == whole
    assert train.lengths.tolist() == [10, 10, 10, 9]
    assert "3 rows: text, joined" in train.describe()
    by_row, _ = _load(path, heldout_share=0.0, max_length=10, text="row", overlong="cut-completion")
    assert by_row.lengths.tolist() == [10, 10, 2]


@pytest.mark.parametrize("name", ["book.txt", "book.md"])
def test_a_text_file_is_trained_to_its_end(name, tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "PIECE_CHARACTERS", 50)
    text = "".join(f"line {i} of a book\n" for i in range(40))
    (tmp_path / name).write_text(text)
    train, heldout = _load(tmp_path / name, heldout_share=0.0, max_length=32)
    assert heldout is None
    decode = tiny_tokenizer().encoder.decode
    assert "".join(decode(example.input_ids) for example in train) == text + "<|end|>"
    train, heldout = _load(tmp_path / name, heldout_share=0.2, max_length=32)
    assert len(heldout) == round(0.2 * (len(train) + len(heldout)))
