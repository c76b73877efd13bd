from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.data.batch_source import BatchSource
from diablo_ds.data.batches import Dealer
from diablo_ds.data.identity import DataIdentity, identify, reconcile
from diablo_ds.data.loading import load_data
from diablo_ds.data.streaming import open_stream
from diablo_ds.errors import UserError
from diablo_ds.training.resuming import place_data
from tests.tiny import tiny_tokenizer, write_pairs


@pytest.fixture
def data(tmp_path) -> Path:
    return write_pairs(tmp_path / "d.jsonl", 40)


def _config(data: Path, **changes) -> RunConfig:
    return RunConfig(data=(str(data),), global_batch=4, micro_batch=2, **changes)


def _sources(config: RunConfig):
    tokenizer = tiny_tokenizer()
    dealer = Dealer(config, tokenizer.pad_id, 0, 1)
    if config.stream:
        return open_stream(config, tokenizer, dealer, 264), None
    train, heldout = load_data(config, tokenizer, 264)
    parts = (train, heldout)
    return tuple(None if part is None else BatchSource(part, config, dealer) for part in parts)


def _identity(config: RunConfig) -> DataIdentity:
    return identify(config, *_sources(config))


def _rows(data: Path) -> list[str]:
    return data.read_text().splitlines(keepends=True)


def _replace(data):
    write_pairs(data, 40, seed=1)


def _grow(data):
    data.write_text("".join([*_rows(data), *_rows(data)[:8]]))


def _cut(data):
    data.write_text("".join(_rows(data)[:30]))


def _swap(data):
    first, second, *rest = _rows(data)
    data.write_text("".join([second, first, *rest]))


def _one_letter(data):
    text = data.read_text()
    data.write_text(text[:-4] + ("7" if text[-4] != "7" else "8") + text[-3:])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("change", [_replace, _grow, _cut, _swap, _one_letter])
def test_any_change_of_the_file_is_noticed_and_named(change, stream, data):
    config = _config(data, stream=stream, max_steps=20 if stream else 0, heldout_share=0.0)
    old = _identity(config)
    assert reconcile(old, _identity(config), config, 5) == (old, "")
    change(data)
    with pytest.raises(UserError, match="data must be those that the run was trained on") as error:
        reconcile(old, _identity(config), config, 5)
    assert str(data) in str(error.value)
    assert "--allow-changed-data" in str(error.value)
    if change is _grow and not stream:
        assert "40 examples, now 48; " in str(error.value)


def test_another_template_is_a_change_and_not_one_of_the_files(data):
    for changes in ({}, {"stream": True, "max_steps": 3}):
        config = _config(data, **changes)
        old = _identity(config)
        new = _identity(dataclasses.replace(config, template="alpaca"))
        with pytest.raises(UserError, match="the files are the same, so the tokenizer"):
            reconcile(old, new, config, 5)


def test_a_new_pass_over_grown_data_takes_each_example_once(data):
    config = _config(data, num_epochs=2, heldout_share=0.0)
    old = _identity(config)  # 10 steps a pass
    _grow(data)  # 12 steps a pass
    allowed = dataclasses.replace(config, allow_changed_data=True)
    train, heldout = _sources(allowed)
    checkpoint = _Checkpoint(13, old)  # in the second pass
    source, identity, num_steps = place_data(allowed, train, heldout, checkpoint)
    assert (identity.start_step, identity.passes, num_steps) == (13, 1, 25)
    fresh = dataclasses.replace(train, run_config=dataclasses.replace(config, num_epochs=1))
    for step in range(12):
        for mine, expected in zip(source.step(13 + step), fresh.step(step), strict=True):
            assert mine.input_ids.equal(expected.input_ids)
    # It goes on there, with the option or without it.
    later = _Checkpoint(20, identity)
    again, same, num_steps = place_data(config, train, heldout, later)
    assert (same, num_steps) == (identity, 25)
    for mine, expected in zip(again.step(20), fresh.step(7), strict=True):
        assert mine.input_ids.equal(expected.input_ids)


@pytest.mark.parametrize(
    ("epochs", "step", "left"), [(1, 4, 1), (1, 10, 1), (3, 25, 1), (3, 5, 3), (0.5, 3, 0.5)]
)
def test_full_passes_over_the_old_data_count(epochs, step, left, data):
    config = _config(data, num_epochs=epochs, heldout_share=0.0, allow_changed_data=True)
    old = _identity(config)
    _cut(data)
    identity, text = reconcile(old, _identity(config), config, step)
    assert (identity.start_step, identity.passes) == (step, left)
    assert f"starts a new pass over the current data after step {step}" in text


def test_with_a_number_of_steps_that_stays(data):
    config = _config(data, max_steps=8, allow_changed_data=True)
    old = _identity(config)
    _replace(data)
    train, heldout = _sources(config)
    for step in (5, 8):
        source, _, num_steps = place_data(config, train, heldout, _Checkpoint(step, old))
        assert num_steps == 8
    assert list(source.step(7))


def test_held_out_data_that_changed_leave_the_training_where_it_was(data, tmp_path):
    heldout = write_pairs(tmp_path / "h.jsonl", 6, seed=3)
    config = _config(data, heldout_data=(str(heldout),))
    old = _identity(config)
    _cut_to(heldout, 4)
    with pytest.raises(UserError, match="held-out data: 6 examples, now 4"):
        reconcile(old, _identity(config), config, 5)
    allowed = dataclasses.replace(config, allow_changed_data=True)
    identity, text = reconcile(old, _identity(config), allowed, 5)
    assert identity.start_step == 0
    assert "cannot be compared" in text


@pytest.mark.parametrize("is_early", [False, True])
@pytest.mark.parametrize("longer", [{"num_epochs": 3}, {"max_steps": 25}])
def test_an_extension_goes_on_with_the_next_example(longer, is_early, data, monkeypatch):
    _cut_to(data, 38)  # 10 steps of 4, the last one of 2
    config = _config(data, heldout_share=0.0)
    train, heldout = _sources(config)
    assert train.num_steps == 10
    assert [train.lag_after(step) for step in (0, 9, 10)] == [0, 0, 2]
    identity = dataclasses.replace(_identity(config), lag=train.lag_after(10))
    if is_early:  # whose version wrote neither
        identity = dataclasses.replace(identity, lag=None, num_epochs=None)
    same, _, num_steps = place_data(config, train, heldout, _Checkpoint(10, identity), config)
    assert (num_steps, same.lag_after(10)) == (10, 2)

    later = dataclasses.replace(config, **longer)
    train, heldout = _sources(later)
    checkpoint = _Checkpoint(10, identity)
    source, identity, num_steps = place_data(later, train, heldout, checkpoint, config)
    assert num_steps == (later.max_steps or -(-(3 * 38 + 2) // 4))
    assert identity.lag == 2
    asked: list[int] = []
    monkeypatch.setattr(
        BatchSource, "_sequence", lambda self, position: asked.append(position) or np.array([0])
    )
    for step in range(10, num_steps):
        list(source.step(step))
    end = 3 * 38 if "num_epochs" in longer else 25 * 4 - 2
    assert asked == list(range(38, end))
    # From a checkpoint before the short step it is as if the run had been longer from the start.
    checkpoint = _Checkpoint(8, dataclasses.replace(identity, lag=0, num_epochs=1.0, passes=1.0))
    source, identity, _ = place_data(later, train, heldout, checkpoint, config)
    assert source.lag_after(9) == 0


def test_more_passes_count_on_top_where_the_data_changed_before(data):
    config = _config(data, num_epochs=2, heldout_share=0.0, allow_changed_data=True)
    identity = dataclasses.replace(_identity(config), start_step=13, passes=1.0)
    longer = dataclasses.replace(config, num_epochs=4)
    now, _ = reconcile(identity, _identity(longer), longer, 15)
    assert (now.start_step, now.passes, now.num_epochs) == (13, 3, 4)
    again, _ = reconcile(now, _identity(longer), longer, 17)
    assert again == now


def test_a_run_is_not_given_fewer_steps_than_it_has_taken(data):
    config = _config(data, num_epochs=2, heldout_share=0.0)
    train, heldout = _sources(dataclasses.replace(config, num_epochs=1))
    checkpoint = _Checkpoint(13, _identity(config))
    with pytest.raises(UserError, match=r"at least the 13 .* num_epochs: 2 -> 1"):
        place_data(train.run_config, train, heldout, checkpoint, config)


def _cut_to(path, count):
    path.write_text("".join(_rows(path)[:count]))


def test_a_shorter_run_than_was_taken_ends_where_it_is(data):
    config = _config(data, max_steps=3)
    train, heldout = _sources(config)
    _, _, num_steps = place_data(config, train, heldout, _Checkpoint(8, None))
    assert num_steps == 8


def test_the_identity_survives_json_and_garbage_is_refused(data):
    identity = _identity(_config(data))
    values = json.loads(json.dumps(identity.as_json()))
    assert DataIdentity.from_json(values, 3, Path()) == identity
    for name, wrong in [
        ("train", None),
        ("train", {}),
        ("heldout", []),
        ("start_step", 4),
        ("start_step", -1),
        ("start_step", 1.0),
        ("passes", "x"),
        ("passes", -1),
        ("num_epochs", "x"),
        ("lag", -1),
        ("lag", 1.5),
        ("passes", float("nan")),
        ("train", values["train"] | {"examples": "many"}),
        ("train", values["train"] | {"files": {"x": 1}}),
    ]:
        with pytest.raises(UserError, match="data of a checkpoint must have"):
            DataIdentity.from_json(values | {name: wrong}, 3, Path())


@dataclasses.dataclass
class _Checkpoint:
    """What `place_data` looks at."""

    step: int
    identity: DataIdentity | None

    @property
    def data(self):
        return None if self.identity is None else json.loads(json.dumps(self.identity.as_json()))
