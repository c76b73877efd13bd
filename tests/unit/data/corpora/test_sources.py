from __future__ import annotations

import os
from pathlib import Path

import pytest

from diablo_ds.data.corpora.sources import choose_heldout, find_sources
from diablo_ds.errors import UserError


def _touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _found(*texts):
    sources, skipped = find_sources(texts)
    return [(s.name, s.path.name) for s in sources], [path.name for path in skipped]


def test_a_folder_gives_its_training_files_named_after_their_task(tmp_path):
    _touch(tmp_path, "boolq/train.json", "boolq/test.json", "piqa/train.json.gz", "piqa/dev.json")
    _touch(tmp_path, "notes.txt", "extra/more.csv")
    sources, skipped = _found(str(tmp_path))
    expected = [("boolq", "train.json"), ("more", "more.csv"), ("piqa", "train.json.gz")]
    assert sources == expected
    assert skipped == ["test.json", "notes.txt", "dev.json"]


def test_a_file_or_glob_that_is_named_is_taken_as_it_is(tmp_path):
    _touch(tmp_path, "boolq/test.json", "piqa/test.json")
    assert _found(str(tmp_path / "boolq/test.json")) == ([("boolq", "test.json")], [])
    assert len(_found(str(tmp_path / "*/test.json"))[0]) == 2
    assert _found(f"mine={tmp_path}/boolq/test.json")[0] == [("mine", "test.json")]


def test_a_data_set_of_the_hub_is_found_in_its_cache(tmp_path, monkeypatch):
    """The layout of the hub's own cache, which a download leaves and offline runs read."""
    repository = tmp_path / "datasets--org--corpus"
    _touch(repository, "snapshots/abc/data/train.parquet", "snapshots/abc/data/test.parquet")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert _found("hf://org/corpus") == ([("corpus", "train.parquet")], ["test.parquet"])
    with pytest.raises(UserError, match=r"named hf://org/corpus$"):
        _found("org/corpus")


def test_the_splits_of_a_hub_folder_are_told_apart(tmp_path):
    shard = "{}-00000-of-00002.parquet"
    _touch(tmp_path, "README.md", "dataset_infos.json", ".cache/x.json", "LICENSE.txt")
    _touch(tmp_path, *(f"data/{shard.format(name)}" for name in ("train", "test", "validation")))
    sources, skipped = find_sources([str(tmp_path)])
    assert [(s.name, s.path.name) for s in sources] == [("data", shard.format("train"))]
    heldout, others = choose_heldout(skipped)
    assert [path.name for path in heldout] == [shard.format("validation")]
    assert [path.name for path in others] == [shard.format("test")]
    assert choose_heldout(others) == (others, [])


@pytest.mark.parametrize("name", ["values", "developers", "testimony", "contest", "train"])
def test_words_that_only_begin_like_test_are_training_data(name, tmp_path):
    _touch(tmp_path, f"{name}.jsonl", "test/0000.jsonl", "test_sft.jsonl", "held-out.jsonl")
    sources, skipped = find_sources([str(tmp_path)])
    assert [s.path.name for s in sources] == [f"{name}.jsonl"]
    assert len(skipped) == 3


def test_a_folder_of_texts_is_read(tmp_path):
    _touch(tmp_path, "a.md", "b/c.txt", "README.md")
    assert [path for _, path in _found(str(tmp_path))[0]] == ["a.md", "c.txt"]


@pytest.mark.parametrize("text", ["nowhere.json", "./nowhere", "no/such/file.json", "a/*.json"])
def test_sources_that_are_not_there_are_named(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"must be an existing|reachable hub name") as error:
        find_sources([text])
    assert text in str(error.value)


def test_wrong_formats_and_repeats_are_named(tmp_path):
    _touch(tmp_path, "a.docx", "b.json", "c/test.json")
    with pytest.raises(UserError, match=r"must be one of \.jsonl, .*a\.docx"):
        find_sources([str(tmp_path / "a.docx")])
    with pytest.raises(UserError, match=r"named once; got .*b\.json twice"):
        find_sources([str(tmp_path / "b.json"), f"x={tmp_path / 'b.json'}"])
    with pytest.raises(UserError, match="1 files look like test data: name them"):
        find_sources([str(tmp_path / "c")])


def test_names_that_are_not_utf8_are_refused(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"\xe9.jsonl")).touch()
    with pytest.raises(UserError, match="without control characters, in UTF-8"):
        find_sources([str(tmp_path)])
