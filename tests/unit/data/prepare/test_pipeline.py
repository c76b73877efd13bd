from __future__ import annotations

import contextlib
import json

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.data import bad_rows
from diablo_ds.data.loading import load_data
from diablo_ds.data.prepare import chunks, pipeline
from diablo_ds.data.text.tokenization import load_tokenizer
from diablo_ds.errors import UserError
from tests.tokenizers_for_tests import save_bytelevel, save_sentencepiece
from tests.unit.data.prepare.preparing import (
    InterruptedPreparationError,
    interrupt_after,
    pairs,
    read_files,
    read_texts,
    write_rows,
)


def test_an_overlong_row_can_be_an_error(prepare, tmp_path):
    path = write_rows(tmp_path / "d.jsonl", [*pairs(5), {"prompt": "p" * 90, "completion": "c"}])
    with pytest.raises(UserError, match=r"must fit max_length; got 1 longer than max_length=30"):
        prepare(path, max_length=30, overlong="error")


def test_a_second_run_finds_the_result(prepare, tmp_path, monkeypatch, capsys):
    path = write_rows(tmp_path / "d.jsonl", pairs(12))
    first = prepare(path)
    before = read_files(tmp_path / "out")
    monkeypatch.setattr(pipeline, "load_tokenizer", None)  # nothing is tokenised
    assert prepare(path) == first
    assert "Already prepared" in capsys.readouterr().err
    assert read_files(tmp_path / "out") == before
    # Bad rows allowed, or processes, change nothing in the result.
    assert prepare(path, num_proc=2, max_bad_rows=0.5) == first


def test_a_moved_source_is_the_same_source_and_a_changed_one_is_not(prepare, tmp_path):
    path = write_rows(tmp_path / "d.jsonl", pairs(12))
    first = prepare(path)
    (tmp_path / "elsewhere").mkdir()
    assert prepare(path.rename(tmp_path / "elsewhere" / "d.jsonl")) == first
    write_rows(path, pairs(13))
    with pytest.raises(UserError, match=r"differs: sources\[1\]\.sha256: "):
        prepare(path)
    assert len(read_texts(tmp_path / "out")) == 12


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "options.seed: 0, now 1"),
        ({"max_length": 99}, "options.max_length: 512, now 99"),
        ({"template": "alpaca"}, "options.template: 'auto', now 'alpaca'"),
    ],
)
def test_other_options_do_not_overwrite_a_result(prepare, tmp_path, changes, named):
    path = write_rows(tmp_path / "d.jsonl", pairs(12))
    prepare(path)
    before = read_files(tmp_path / "out")
    with pytest.raises(UserError, match="must be new, or prepared from the same inputs") as error:
        prepare(path, **changes)
    assert named in str(error.value)
    assert read_files(tmp_path / "out") == before


def test_another_tokenizer_does_not_overwrite_a_result(prepare, tmp_path):
    path = write_rows(tmp_path / "d.jsonl", pairs(12))
    prepare(path)
    other = str(save_bytelevel(tmp_path / "tokenizer"))
    with pytest.raises(UserError, match=r"differs: tokenizer\.fingerprint: "):
        prepare(path, tokenizer=other)


def test_a_folder_that_is_not_ours_is_left_alone(prepare, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(UserError, match="output must be a new folder"):
        prepare(write_rows(tmp_path / "d.jsonl", pairs(3)))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_an_interrupted_run_continues_and_ends_with_the_same_files(prepare, tmp_path, monkeypatch):
    path = write_rows(tmp_path / "d.jsonl", pairs(95))
    prepare(path, output="uninterrupted", val_share=0.1)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4)
        with pytest.raises(InterruptedPreparationError):
            prepare(path, output="out", val_share=0.1)
    assert not (tmp_path / "out").exists()
    done = interrupt_after(monkeypatch, 100)
    prepare(path, output="out", val_share=0.1)
    assert done == [4, 5, 6, 7, 8, 9]  # the first four were there
    uninterrupted, resumed = read_files(tmp_path / "uninterrupted"), read_files(tmp_path / "out")
    assert uninterrupted == resumed
    assert not list(tmp_path.glob(".*"))


def test_finished_work_of_other_inputs_is_not_used(prepare, tmp_path, monkeypatch):
    path = write_rows(tmp_path / "d.jsonl", pairs(95))
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4)
        with pytest.raises(InterruptedPreparationError):
            prepare(path)
    prepare(path, template="alpaca")
    assert all(text.startswith("Below is an instruction") for text in read_texts(tmp_path / "out"))


def test_a_dataset_that_another_process_finished_meanwhile_is_left_alone(
    prepare, tmp_path, monkeypatch
):
    path = write_rows(tmp_path / "d.jsonl", pairs(5))
    work_folder = pipeline.open_work_folder

    @contextlib.contextmanager
    def after_another_one(*args):
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "open_work_folder", work_folder)
            prepare(path)
        before = _times(tmp_path / "out")
        with work_folder(*args) as owner:
            yield owner
        assert _times(tmp_path / "out") == before

    monkeypatch.setattr(pipeline, "open_work_folder", after_another_one)
    assert prepare(path)["parts"]["train"]["rows"]
    assert sorted(p.name for p in tmp_path.glob("*out*")) == ["out"]


def _times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_two_at_a_time_are_refused(prepare, tmp_path, monkeypatch):
    path = write_rows(tmp_path / "d.jsonl", pairs(5))

    def also(*_):
        with pytest.raises(UserError, match="being prepared must not be in use"):
            prepare(path)
        raise InterruptedPreparationError

    monkeypatch.setattr(chunks.ChunkEncoder, "__call__", also)
    with pytest.raises(InterruptedPreparationError):
        prepare(path)


def test_of_a_folder_to_exclude_the_test_files_are_taken(prepare, tmp_path):
    folder = tmp_path / "task"
    folder.mkdir()
    train = write_rows(folder / "train.jsonl", pairs(30))
    write_rows(folder / "test.jsonl", pairs(4))
    assert prepare(train, exclude=(str(folder),))["parts"]["train"]["rows"] == 26
    train.unlink()
    more = write_rows(tmp_path / "d.jsonl", pairs(30))
    assert prepare(more, exclude=(str(folder),), output="o")["parts"]["train"]["rows"] == 26


def test_too_many_bad_rows_end_the_run_with_their_places(prepare, tmp_path):
    path = tmp_path / "d.jsonl"
    good = '{"prompt": "a", "completion": "b"}\n'
    path.write_text(good * 8 + '{"prompt": "a"}\n' + '{"prompt"\n')
    with pytest.raises(UserError, match=r"max_bad_rows=0\.01; got 2 of 10 rows") as error:
        prepare(path)
    assert f"{path}, line 9: " in str(error.value)
    assert f"{path}, line 10: a row must be valid JSON" in str(error.value)
    assert not (tmp_path / "out").exists()
    assert prepare(path, max_bad_rows=0.2)["rows_left_out"]["bad"] == 2


def test_too_many_bad_rows_do_not_wait_for_the_end(prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(bad_rows, "MIN_ROWS_TO_JUDGE", 30)
    path = write_rows(tmp_path / "d.jsonl", [{"prompt": "a"}] * 5 + pairs(500))
    with pytest.raises(UserError, match="got 5 of 30 rows"):
        prepare(path)


def test_an_empty_source_is_named(prepare, tmp_path):
    (tmp_path / "d.jsonl").touch()
    with pytest.raises(UserError, match=r"at least one row; got none in .*d\.jsonl"):
        prepare(tmp_path / "d.jsonl")


def test_a_bare_sentencepiece_model_prepares_too(prepare, tmp_path):
    model = save_sentencepiece(tmp_path / "sp.model")
    prepare(write_rows(tmp_path / "d.jsonl", pairs(5)), tokenizer=str(model))
    assert read_texts(tmp_path / "out")[4] == "<s>word 4?xxxxx</s>"


def test_a_dataset_of_another_tokenizer_is_not_trained_on(prepare, tmp_path, tokenizer_folder):
    other = save_bytelevel(tmp_path / "other")
    prepare(write_rows(tmp_path / "d.jsonl", pairs(5)), tokenizer=str(other))
    config = RunConfig(data=(str(tmp_path / "out"),))
    with pytest.raises(UserError, match=r"must be made with the model's tokenizer; got .*other"):
        load_data(config, load_tokenizer(tokenizer_folder), 1000)


@pytest.mark.parametrize("changed", ["train/data-00000-of-00001.arrow", "train/state.json"])
def test_a_prepared_dataset_is_believed_only_with_its_digests(prepare, tmp_path, changed):
    path = write_rows(tmp_path / "d.jsonl", pairs(5))
    manifest = prepare(path)
    assert prepare(path) == manifest
    file = tmp_path / "out" / changed
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=f"got other content in {file}"):
        prepare(path)
    file.unlink()
    with pytest.raises(UserError, match=f"got no file '{changed}'"):
        prepare(path)
    record = tmp_path / "out" / "manifest.json"
    record.write_text(json.dumps({**manifest, "files": {}}))
    with pytest.raises(UserError, match="got none in"):
        prepare(path)


def test_an_output_that_others_can_write_is_refused(prepare, tmp_path):
    path = write_rows(tmp_path / "d.jsonl", pairs(5))
    prepare(path)
    (tmp_path / "out" / "train").chmod(0o777)
    with pytest.raises(UserError, match=r"output must .*/train, owner=.*mode=drwxrwxrwx"):
        prepare(path)
