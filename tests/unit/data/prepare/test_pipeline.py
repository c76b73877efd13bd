from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import Counter
from pathlib import Path

import datasets
import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.data.labels import IGNORE_LABEL
from diablo_ds.data.loading import load_data
from diablo_ds.data.prepare import chunk_files, chunks, pipeline, writing
from diablo_ds.data.prepare.manifest import describe
from diablo_ds.data.prepare.options import PrepareOptions
from diablo_ds.data.prepare.preview import inspect_dataset
from diablo_ds.data.text.conversations import EACH_ANSWER
from diablo_ds.data.text.tokenization import load_tokenizer
from diablo_ds.data.token_table import TokenTable
from diablo_ds.errors import UserError
from diablo_ds.model.finding import find_tokenizer
from tests.chat_templates import QWEN3
from tests.tiny import byte_tokenizer
from tests.tokenizers_for_tests import save_bytelevel, save_chat, save_sentencepiece


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "ROWS_PER_CHUNK", 10)


def _rows(count, word="word"):
    return [{"prompt": f"{word} {i}?", "completion": "x" * (i % 9 + 1)} for i in range(count)]


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def prepare(tokenizer_folder, tmp_path, monkeypatch):
    # A process for each call would take seconds; the tests of the command have it.
    monkeypatch.setattr(pipeline, "load_tokenizer", load_tokenizer)

    def run(*sources, output="out", **changes):
        options = PrepareOptions(
            family=changes.pop("family", "jsonl"),
            source=tuple(map(str, sources)),
            tokenizer=changes.pop("tokenizer", str(tokenizer_folder)),
            output=tmp_path / output,
            **changes,
        )
        return pipeline.prepare(options, find_tokenizer)

    return run


def _texts(folder, part="train"):
    table = TokenTable.load(Path(folder), part)
    decode = load_tokenizer_of(folder).encoder.decode
    return [decode([int(t) for t in table[i].input_ids]) for i in range(len(table))]


def load_tokenizer_of(folder):
    manifest = json.loads((Path(folder) / "manifest.json").read_text())
    return load_tokenizer(Path(manifest["tokenizer"]["name"]))


def _files(folder):
    """Every file of a dataset but the note of file times."""
    found = sorted(Path(folder).rglob("*"))
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in found
        if path.is_file() and path.name != ".file_times.json"
    }


def test_rows_come_out_in_their_order_and_train_as_they_are(prepare, tmp_path, tokenizer_folder):
    rows = _rows(37)
    path = _write(tmp_path / "d.jsonl", rows)
    manifest = prepare(path)
    expected = [f"{row['prompt']}{row['completion']}<|end|>" for row in rows]
    assert _texts(tmp_path / "out") == expected
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


def test_the_manifest_counts_everything(prepare, tmp_path):
    rows = [*_rows(20), *_rows(5), {"prompt": "p" * 200, "completion": "c"}]
    rows += [{"prompt": 1, "completion": "c"}, {"prompt": "a", "completion": ""}]
    path = _write(tmp_path / "d.jsonl", rows)
    test = _write(tmp_path / "test.jsonl", [{"question": "WORD 3"}])
    manifest = prepare(path, max_length=100, exclude=(str(test),), max_bad_rows=0.5, seed=7)
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["rows_in"] == {"d": 28}
    left_out = manifest["rows_left_out"]
    assert (left_out["bad"], left_out["too_long"], left_out["duplicates"]) == (2, 1, 4)
    assert left_out["in_tests"] == {"same question as a test": 2}
    assert sum(left_out["bad_reasons"].values()) == 2
    assert f"{path}, line 27: field 'prompt' must be text: 1" in manifest["bad_rows"]
    train = manifest["parts"]["train"]
    table = TokenTable.load(tmp_path / "out", "train")
    assert train["rows"] == len(table) == 19
    assert train["tokens"] == table.lengths().sum()
    examples = [table[i] for i in range(19)]
    assert train["target_tokens"] == sum(int((e.labels != IGNORE_LABEL).sum()) for e in examples)
    assert train["longest"] == table.lengths().max()
    assert train["largest_id"] == table.largest_id()
    assert sum(train["length_histogram"]["counts"]) == 19
    assert manifest["sources"][0]["file"] == str(path)
    assert len(manifest["sources"][0]["sha256"]) == 64
    assert manifest["options"]["seed"] == 7
    assert {"tokenizers", "datasets", "diablo_ds"} <= set(manifest["versions"])
    assert manifest["templates"] == {"pairs": "plain"}


@pytest.mark.parametrize("overlong", ["cut-prompt", "cut-completion"])
def test_cut_rows_are_counted(prepare, tmp_path, overlong):
    rows = [*_rows(5), {"prompt": "p" * 20, "completion": "c" * 20}]
    manifest = prepare(_write(tmp_path / "d.jsonl", rows), max_length=30, overlong=overlong)
    assert manifest["parts"]["train"]["cut"] == 1
    assert manifest["parts"]["train"]["rows"] == 6
    assert manifest["rows_left_out"]["too_long"] == 0
    end = {"cut-prompt": "c" * 20 + "<|end|>", "cut-completion": "p" * 20 + "c" * 10}[overlong]
    assert _texts(tmp_path / "out")[-1].endswith(end)


def test_an_overlong_row_can_be_an_error(prepare, tmp_path):
    path = _write(tmp_path / "d.jsonl", [*_rows(5), {"prompt": "p" * 90, "completion": "c"}])
    with pytest.raises(UserError, match=r"must fit max_length; got 1 longer than max_length=30"):
        prepare(path, max_length=30, overlong="error")


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_number_of_processes(prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "TOKENS_PER_SHARD", 500)
    sources = [_write(tmp_path / f"{name}.jsonl", _rows(73, name)) for name in ("one", "two")]
    options = {"val_share": 0.2, "mix": ("one=31", "two=0.5"), "seed": 3}
    for num_proc in (1, 3):
        prepare(*sources, output=f"out{num_proc}", num_proc=num_proc, **options)
    files = _files(tmp_path / "out1")
    assert sum(name.endswith(".arrow") for name in files) > 2
    assert files == _files(tmp_path / "out3")
    assert not list(tmp_path.glob(".*"))


def test_a_second_run_finds_the_result(prepare, tmp_path, monkeypatch, capsys):
    path = _write(tmp_path / "d.jsonl", _rows(12))
    first = prepare(path)
    before = _files(tmp_path / "out")
    monkeypatch.setattr(pipeline, "load_tokenizer", None)  # nothing is tokenised
    assert prepare(path) == first
    assert "Already prepared" in capsys.readouterr().err
    assert _files(tmp_path / "out") == before
    # Bad rows allowed, or processes, change nothing in the result.
    assert prepare(path, num_proc=2, max_bad_rows=0.5) == first


def test_a_moved_source_is_the_same_source_and_a_changed_one_is_not(prepare, tmp_path):
    path = _write(tmp_path / "d.jsonl", _rows(12))
    first = prepare(path)
    (tmp_path / "elsewhere").mkdir()
    assert prepare(path.rename(tmp_path / "elsewhere" / "d.jsonl")) == first
    _write(path, _rows(13))
    with pytest.raises(UserError, match=r"differs: sources\[1\]\.sha256: "):
        prepare(path)
    assert len(_texts(tmp_path / "out")) == 12


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "options.seed: 0, now 1"),
        ({"max_length": 99}, "options.max_length: 512, now 99"),
        ({"template": "alpaca"}, "options.template: 'auto', now 'alpaca'"),
    ],
)
def test_other_options_do_not_overwrite_a_result(prepare, tmp_path, changes, named):
    path = _write(tmp_path / "d.jsonl", _rows(12))
    prepare(path)
    before = _files(tmp_path / "out")
    with pytest.raises(UserError, match="must be new, or prepared from the same inputs") as error:
        prepare(path, **changes)
    assert named in str(error.value)
    assert _files(tmp_path / "out") == before


def test_another_tokenizer_does_not_overwrite_a_result(prepare, tmp_path):
    path = _write(tmp_path / "d.jsonl", _rows(12))
    prepare(path)
    other = str(save_bytelevel(tmp_path / "tokenizer"))
    with pytest.raises(UserError, match=r"differs: tokenizer\.fingerprint: "):
        prepare(path, tokenizer=other)


def test_a_folder_that_is_not_ours_is_left_alone(prepare, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(UserError, match="output must be a new folder"):
        prepare(_write(tmp_path / "d.jsonl", _rows(3)))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]


class _InterruptedError(Exception):
    pass


def _interrupt_after(monkeypatch, num_chunks):
    """Make the preparation end in the middle; return the list of chunks it tokenises."""
    done = []
    original = chunks.ChunkEncoder.__call__

    def encode(self, chunk):
        if len(done) == num_chunks:
            raise _InterruptedError
        if not chunk_files.chunk_file(self._folder, chunk.number).exists():
            done.append(chunk.number)
        return original(self, chunk)

    monkeypatch.setattr(chunks.ChunkEncoder, "__call__", encode)
    return done


def test_an_interrupted_run_goes_on_and_ends_with_the_same_files(prepare, tmp_path, monkeypatch):
    path = _write(tmp_path / "d.jsonl", _rows(95))
    prepare(path, output="whole", val_share=0.1)
    with monkeypatch.context() as patch:
        _interrupt_after(patch, 4)
        with pytest.raises(_InterruptedError):
            prepare(path, output="out", val_share=0.1)
    assert not (tmp_path / "out").exists()
    done = _interrupt_after(monkeypatch, 100)
    prepare(path, output="out", val_share=0.1)
    assert done == [4, 5, 6, 7, 8, 9]  # the first four were there
    whole, resumed = _files(tmp_path / "whole"), _files(tmp_path / "out")
    assert whole == resumed
    assert not list(tmp_path.glob(".*"))


def test_finished_work_of_other_inputs_is_not_used(prepare, tmp_path, monkeypatch):
    path = _write(tmp_path / "d.jsonl", _rows(95))
    with monkeypatch.context() as patch:
        _interrupt_after(patch, 4)
        with pytest.raises(_InterruptedError):
            prepare(path)
    prepare(path, template="alpaca")
    assert all(text.startswith("Below is an instruction") for text in _texts(tmp_path / "out"))


def test_a_dataset_that_another_process_finished_meanwhile_is_left_alone(
    prepare, tmp_path, monkeypatch
):
    path = _write(tmp_path / "d.jsonl", _rows(5))
    work_folder = pipeline._work_folder

    @contextlib.contextmanager
    def after_another_one(*args):
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "_work_folder", work_folder)
            prepare(path)
        before = _times(tmp_path / "out")
        with work_folder(*args) as owner:
            yield owner
        assert _times(tmp_path / "out") == before

    monkeypatch.setattr(pipeline, "_work_folder", after_another_one)
    assert prepare(path)["parts"]["train"]["rows"]
    assert sorted(p.name for p in tmp_path.glob("*out*")) == ["out"]


def _times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_two_at_a_time_are_refused(prepare, tmp_path, monkeypatch):
    path = _write(tmp_path / "d.jsonl", _rows(5))

    def also(*_):
        with pytest.raises(UserError, match="being prepared must not be in use"):
            prepare(path)
        raise _InterruptedError

    monkeypatch.setattr(chunks.ChunkEncoder, "__call__", also)
    with pytest.raises(_InterruptedError):
        prepare(path)


def test_held_out_rows_are_disjoint_from_training(prepare, tmp_path):
    path = _write(tmp_path / "d.jsonl", [*_rows(60), *_rows(60)])
    manifest = prepare(path, val_share=0.25)
    train, heldout = _texts(tmp_path / "out"), _texts(tmp_path / "out", "heldout")
    assert (len(train), len(heldout)) == (45, 15)
    assert not set(train) & set(heldout)
    assert manifest["rows_left_out"]["duplicates"] == 60


def test_training_rows_that_are_in_the_held_out_source_are_removed(prepare, tmp_path):
    train = _write(tmp_path / "d.jsonl", _rows(30))
    val = _write(tmp_path / "val.jsonl", [*_rows(3), *_rows(2, "other")])
    manifest = prepare(train, val_source=(str(val),))
    assert len(_texts(tmp_path / "out", "heldout")) == 5
    assert len(_texts(tmp_path / "out")) == 27
    assert manifest["rows_left_out"]["duplicates"] == 3


def test_tests_are_excluded_from_training_and_not_from_the_held_out_part(prepare, tmp_path):
    train = _write(tmp_path / "d.jsonl", _rows(30))
    test = _write(tmp_path / "test.jsonl", _rows(4, "Word"))
    manifest = prepare(train, val_source=(str(test),), exclude=(str(test),))
    assert manifest["parts"]["train"]["rows"] == 26
    assert manifest["parts"]["heldout"]["rows"] == 4


def test_of_a_folder_to_exclude_the_test_files_are_taken(prepare, tmp_path):
    folder = tmp_path / "task"
    folder.mkdir()
    train = _write(folder / "train.jsonl", _rows(30))
    _write(folder / "test.jsonl", _rows(4))
    assert prepare(train, exclude=(str(folder),))["parts"]["train"]["rows"] == 26
    train.unlink()
    more = _write(tmp_path / "d.jsonl", _rows(30))
    assert prepare(more, exclude=(str(folder),), output="o")["parts"]["train"]["rows"] == 26


def test_sources_are_mixed_by_name(prepare, tmp_path):
    for name in ("alpaca", "safety"):
        _write(tmp_path / f"{name}.jsonl", _rows(40, name))
    sources = [f"general={tmp_path}/alpaca.jsonl", tmp_path / "safety.jsonl"]
    prepare(*sources, mix=("general=20", "safety=0.1"))
    words = Counter(text.split()[0] for text in _texts(tmp_path / "out"))
    assert words == {"alpaca": 20, "safety": 4}


def test_a_limit_reads_the_first_rows_of_each_source(prepare, tmp_path):
    for name in ("one", "two"):
        _write(tmp_path / f"{name}.jsonl", _rows(40, name))
    prepare(tmp_path / "one.jsonl", tmp_path / "two.jsonl", limit=13)
    expected = [row["prompt"] for name in ("one", "two") for row in _rows(13, name)]
    assert [text.split("?")[0] + "?" for text in _texts(tmp_path / "out")] == expected


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
    monkeypatch.setattr(pipeline, "MIN_ROWS_TO_JUDGE", 30)
    path = _write(tmp_path / "d.jsonl", [{"prompt": "a"}] * 5 + _rows(500))
    with pytest.raises(UserError, match="got 5 of 30 rows"):
        prepare(path)


def test_a_damaged_chunk_of_an_interrupted_run_is_made_again(prepare, tmp_path, monkeypatch):
    source = _write(tmp_path / "d.jsonl", _rows(25))
    whole = prepare(source, output="whole")
    with monkeypatch.context() as context:
        context.setattr(pipeline, "assemble", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(source)
    damaged = sorted((tmp_path / ".out.partial").glob("chunk-*"))
    damaged[0].write_bytes(damaged[0].read_bytes()[:-400])
    damaged[1].write_bytes(b"")
    assert prepare(source)["parts"] == whole["parts"]
    assert _files(tmp_path / "out") == _files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("parts.train.rows", "9", r"manifest\.parts\.train\.rows must be a whole number"),
        ("parts.train", None, r"manifest\.parts\.train must be an object"),
        ("tokenizer.probe", "abc", r"manifest\.tokenizer\.probe must be a list"),
        ("rows_in.d", -1, r"manifest\.rows_in\.d must be a whole number"),
        ("licences", [7], r"manifest\.licences\[0\] must be text"),
        ("sources", [{}], r"manifest\.sources\[0\] must have a field name"),
    ],
)
def test_a_manifest_of_another_form_is_refused(prepare, tmp_path, path, value, message):
    source = _write(tmp_path / "d.jsonl", _rows(5))
    manifest = prepare(source)
    *parents, last = path.split(".")
    inner = manifest
    for key in parents:
        inner = inner[key]
    inner[last] = value
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    for read in (
        lambda: prepare(source),
        lambda: inspect_dataset(tmp_path / "out", 1, "", find_tokenizer),
    ):
        with pytest.raises(UserError, match=message):
            read()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 1}, "max_length must be >= 2; got max_length=1"),
        ({"max_length": 10**30}, "max_length must be <= 2147483647"),
        ({"seed": 2**64}, "seed must be <= 9223372036854775807"),
        ({"val_share": float("nan")}, "val_share must be a finite number"),
        ({"licence": "a\nb"}, "without control characters"),
        ({"val_share": 0.9}, "val_share must be <= 0.5"),
        ({"val_share": 0.1, "val_source": ("x",)}, "val_share or val_source, not both"),
        ({"template": "alpacca"}, "template must be one of auto, alpaca, gsm8k, plain, chat"),
        ({"overlong": "cut"}, "overlong must be one of drop, cut-prompt"),
        ({"mix": ("d=2.5",)}, "mix must be NAME=ROWS or NAME=SHARE"),
        ({"mix": ("d",)}, "mix must be NAME=ROWS or NAME=SHARE"),
        ({"mix": ("x=1",)}, "mix must name sources; got 'x', known are d"),
        ({"mix": ("d=9",)}, "got d=9, 5 good"),
        ({"mix": ("d=0",)}, "the part train must have at least one row"),
        ({"max_length": 3}, "the part train must have at least one row; got none of 5 rows"),
        ({"exclude": ("nowhere.json",)}, "nowhere.json"),
        ({"template": "chat"}, "needs a tokenizer with a chat template"),
        ({"template": "chat", "control_tokens": "read"}, "control_tokens needs the template plain"),
    ],
)
def test_wrong_options_are_named(prepare, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        prepare(_write(tmp_path / "d.jsonl", _rows(5)), **changes)
    assert not (tmp_path / "out").exists()
    partial = tmp_path / ".out.partial"
    assert not partial.exists() or any(partial.glob("chunk-*"))  # only finished work is kept


def test_an_empty_source_is_named(prepare, tmp_path):
    (tmp_path / "d.jsonl").touch()
    with pytest.raises(UserError, match=r"at least one row; got none in .*d\.jsonl"):
        prepare(tmp_path / "d.jsonl")


def test_a_bare_sentencepiece_model_prepares_too(prepare, tmp_path):
    model = save_sentencepiece(tmp_path / "sp.model")
    prepare(_write(tmp_path / "d.jsonl", _rows(5)), tokenizer=str(model))
    assert _texts(tmp_path / "out")[4] == "<s>word 4?xxxxx</s>"


def test_a_dataset_of_another_tokenizer_is_not_trained_on(prepare, tmp_path, tokenizer_folder):
    other = save_bytelevel(tmp_path / "other")
    prepare(_write(tmp_path / "d.jsonl", _rows(5)), tokenizer=str(other))
    config = RunConfig(data=str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"must be made with the model's tokenizer; got .*other"):
        load_data(config, load_tokenizer(tokenizer_folder), 1000)


def test_every_option_but_places_and_means_is_recorded(prepare):
    recorded = set(
        PrepareOptions(family="math", source=("a",), tokenizer="t", output=Path("o")).recorded()
    )
    fields = {field.name for field in dataclasses.fields(PrepareOptions)}
    assert fields - recorded == {
        *("source", "val_source", "exclude", "tokenizer"),  # recorded by their content
        *("output", "num_proc", "max_bad_rows"),
    }


def test_what_was_done_with_chats_is_counted(prepare, tmp_path):
    tokenizer = str(save_chat(tmp_path / "tokenizer", QWEN3))
    asked, thought = {"role": "user", "content": "hi"}, {"reasoning_content": "hm", "mood": "glad"}
    answers = [{"role": "assistant", "content": f"{i}", **thought} for i in range(9)]
    rows = [{"messages": [asked, answer]} for answer in answers]
    rows += [{"messages": [asked, answers[0], asked, answers[1]]}]
    path = _write(tmp_path / "d.jsonl", rows)
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
    assert _files(tmp_path / "out1") == _files(tmp_path / "out2")
    # Raw rows in training give the same examples, and say the same.
    config = RunConfig(data=str(path), heldout_share=0.0)
    raw, _ = load_data(config, load_tokenizer(Path(tokenizer)), 1000)
    assert len(raw) == 11
    assert raw.notes == manifest["notes"]
    assert f"1 row: {EACH_ANSWER}" in raw.describe()
    unique = dict.fromkeys((tuple(e.input_ids), tuple(e.labels)) for e in raw)
    table = TokenTable.load(tmp_path / "out1", "train")
    prepared = [table[i] for i in range(len(table))]
    assert list(unique) == [(tuple(e.input_ids), tuple(e.labels)) for e in prepared]
