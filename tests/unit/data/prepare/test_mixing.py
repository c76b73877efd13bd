from __future__ import annotations

import json
import logging

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.data.loading import load_data
from diablo_ds.data.run_sources import data_files
from diablo_ds.data.token_table import TokenTable
from diablo_ds.errors import UserError
from tests.tiny import tiny_tokenizer
from tests.unit.data.prepare.preparing import write_rows


def _rows(name, count, length=1):
    return [{"prompt": f"{name}{i}=", "completion": "x" * length} for i in range(count)]


def _load(*data, **changes):
    options = {"heldout_share": 0.0, "max_length": 60, **changes}
    config = RunConfig(data=tuple(map(str, data)), **options)
    return load_data(config, tiny_tokenizer(), 264)


def _texts(examples):
    decode = tiny_tokenizer().encoder.decode
    return [decode([int(t) for t in example.input_ids]).split("=")[0] for example in examples]


@pytest.fixture
def sources(tmp_path):
    return [
        write_rows(tmp_path / f"{n}.jsonl", _rows(n, count)) for n, count in (("a", 9), ("b", 30))
    ]


def test_shares_are_taken_of_sources_by_name_and_the_others_are_taken_whole(sources, tmp_path):
    train, heldout = _load(*sources, mix=("b=6",))
    texts = _texts(train)
    assert heldout is None
    assert sorted(t for t in texts if t[0] == "a") == [f"a{i}" for i in range(9)]
    assert len({t for t in texts if t[0] == "b"}) == 6
    assert _texts(_load(*sources, mix=("b=6",))[0]) == texts
    assert _texts(_load(*sources, mix=("b=6",), seed=1)[0]) != texts
    named, _ = _load(f"first={sources[0]}", f"second={sources[1]}", mix=("first=0", "second=0.2"))
    assert {t[0] for t in _texts(named)} == {"b"}
    assert len(named) == 6
    assert "39 rows read: 9 first, 30 second" in named.describe()
    assert "33 skipped: 33 not in the mix" in named.describe()
    assert len(_load(*sources)[0]) == 39


def test_a_preparation_takes_the_same_numbers(sources, tmp_path, prepare):
    manifest = prepare(*sources, mix=("b=6",))
    train, _ = _load(*sources, mix=("b=6",))
    assert manifest["parts"]["train"]["rows"] == len(train)
    # A prepared dataset is a source beside raw files, by the name of its folder.
    both, _ = _load(tmp_path / "out", sources[1].rename(tmp_path / "c.jsonl"), mix=("out=3", "c=4"))
    assert len(both) == 7
    assert both.table.is_mapped
    assert _load(tmp_path / "out")[0].describe().startswith("15 examples, ")


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ("c=3", "mix must name sources; got 'c', known are a, b"),
        ("b=31", "at most the rows there are; got b=31, 30 good"),
        ("b", "mix must be NAME=ROWS or NAME=SHARE"),
        ("b=1.5", "mix must be NAME=ROWS or NAME=SHARE"),
        ("b=nan", "mix must be NAME=ROWS or NAME=SHARE"),
    ],
)
def test_a_mix_of_nothing_or_of_too_much_is_refused(sources, mix, message):
    with pytest.raises(UserError, match=message):
        _load(*sources, mix=(mix,))


def test_wrong_sources_are_refused(sources, tmp_path):
    with pytest.raises(UserError, match="none that mix=a=0, b=0 takes"):
        _load(*sources, mix=("a=0", "b=0"))
    with pytest.raises(UserError, match=r"each file and folder once; got .*a\.jsonl twice"):
        _load(sources[0], f"x={sources[0]}")
    with pytest.raises(UserError, match="the default data cannot be mixed"):
        _load(sources[0], "default")
    with pytest.raises(UserError, match="mix has no effect on the default data"):
        _load("default", mix=("a=1",))
    with pytest.raises(UserError, match="a stream reads one source"):
        _load(*sources, stream=True, max_steps=3)
    with pytest.raises(UserError, match="data must name files"):
        _load("")


def test_each_source_keeps_its_held_out_part_or_gives_a_share(sources, tmp_path):
    hub = tmp_path / "hub"
    hub.mkdir()
    write_rows(hub / "train.jsonl", _rows("t", 10))
    write_rows(hub / "validation.jsonl", _rows("v", 3))
    train, heldout = _load(*sources, hub, heldout_share=0.25, mix=("a=4", "hub=5"))
    kept, held = _texts(train), _texts(heldout)
    assert sorted(t for t in held if t[0] == "v") == ["v0", "v1", "v2"]
    assert len([t for t in held if t[0] in "ab"]) == round(0.25 * 34)
    assert not [t for t in held if t[0] == "t"]
    assert len([t for t in kept if t[0] == "t"]) == 5
    assert len(kept) + len(held) == 4 + 30 + 5 + 3
    assert set(kept).isdisjoint(held)
    config = RunConfig(data=(str(sources[0]), str(hub)))
    assert [p.name for p in data_files(config, "train")] == ["a.jsonl", "train.jsonl"]
    assert [p.name for p in data_files(config, "heldout")] == ["a.jsonl", "validation.jsonl"]
    named, heldout = _load(hub, heldout_data=tuple(map(str, sources)))
    assert (len(named), len(heldout)) == (10, 39)


def test_few_bad_rows_are_skipped_and_named(tmp_path, caplog):
    lines = [json.dumps(row) for row in _rows("a", 300)]
    lines[7] = '{"prompt": "broken'
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(lines))
    train, _ = _load(path)
    assert len(train) == 299
    assert "300 rows read: 300 d\n  1 skipped: 1 bad\n  Template: plain" in train.describe()
    assert f"Skipped: {path}, line 8: a row must be valid JSON" in caplog.text
    with pytest.raises(UserError, match=r"max_bad_rows=0.001; got 1 of 300 rows .*\n.*line 8"):
        _load(path, max_bad_rows=0.001)


def test_many_examples_that_are_too_long_are_a_warning_with_the_length_to_keep(tmp_path, caplog):
    rows = [*_rows("a", 90), *({"prompt": "b=", "completion": "x" * (50 + i)} for i in range(10))]
    path = write_rows(tmp_path / "d.jsonl", rows)
    with caplog.at_level(logging.WARNING, "diablo_ds"):
        _load(path, max_length=52)
    # Prompt, completion and end token: of 100 the 99th is 2 + 58 + 1 long.
    assert "10 of 100 examples (10.0%) are dropped" in caplog.text
    assert "--max-length 61 would keep 99%" in caplog.text
    assert len(_load(path, max_length=61)[0]) == 99
    caplog.clear()
    _load(path, max_length=57)  # drops 5, which is not more than 5 %
    assert "dropped" not in caplog.text


def test_tables_of_several_sources_keep_their_rows_apart():
    from diablo_ds.data.labels import Example

    one = TokenTable.from_examples([Example([1], [1])] * 3, [0, 0, 1])
    two = TokenTable.from_examples([Example([2, 3], [-100, 3])] * 2)
    both = TokenTable.concatenated([one, two])
    assert both.source_rows(range(5)).tolist() == [0, 0, 1, 2, 3]
    assert both.num_targets().tolist() == [1] * 5
    assert both.lengths().tolist() == [1, 1, 1, 2, 2]
