"""What TensorBoard reads of a run: one line for each tag, whatever happened in between."""

from __future__ import annotations

import contextlib
import itertools
import math
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diablo_ds.ranks import event_files
from diablo_ds.ranks.tensorboard import TensorBoard

LOSS = "1 loss/per target token"


def _write(folder: Path, steps: range, *, last_step: int = -1, offset: float = 0.0) -> None:
    with contextlib.closing(TensorBoard(folder, last_step=last_step)) as board:
        board.hyperparameters({"learning_rate": 1e-3 + offset, "packing": False, "data": "a"})
        for step in steps:
            board.scalars(step, {"loss/training": step + offset, "optimizer/grad_norm": 1.0})
            if step % 4 == 0:
                board.scalars(step, {"loss/heldout": step + offset})
                board.histogram(step, "deltas/norms", [0.0, 1.0, 3.0])
                board.text(step, "samples", "| a |\n|---|\n| b |")


def _read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()


def _points(folder: Path, tag: str = LOSS) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in _read(folder).Scalars(tag)]


def test_training_and_heldout_loss_share_a_card_and_groups_are_in_order(tmp_path):
    _write(tmp_path, range(6))
    assert _points(tmp_path) == [(step, step) for step in range(6)]
    assert _points(tmp_path / "heldout") == [(0, 0), (4, 4)]
    found = _read(tmp_path)
    assert found.Tags()["scalars"] == [LOSS, "6 optimizer/grad_norm"]
    assert found.Histograms("9 deltas/norms")[0].histogram_value.num == 3
    assert {"samples", "custom_scalars__config__"} <= set(found.Tags()["tensors"])


def test_a_value_that_is_not_finite_is_written(tmp_path):
    with contextlib.closing(TensorBoard(tmp_path)) as board:
        board.scalars(1, {"loss/training": math.nan})
    assert math.isnan(_points(tmp_path)[0][1])


@pytest.mark.parametrize("num_cut", [0, 1, 3, 40, 200])
def test_a_run_that_continues_draws_one_line(tmp_path, num_cut):
    _write(tmp_path, range(10))
    (path,) = tmp_path.glob("events.*")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - num_cut])  # killed in the middle of a write
    # A reader that has seen everything, as a TensorBoard that was open all the time.
    watching = _read(tmp_path)
    kept = min(6, max(step for step, _ in _points(tmp_path)))
    _write(tmp_path, range(kept + 1, 12), last_step=kept, offset=0.5)
    wanted = [(step, step + 0.5 * (step > kept)) for step in range(12)]
    assert _points(tmp_path) == wanted
    assert [(e.step, e.value) for e in watching.Reload().Scalars(LOSS)] == wanted
    assert [step for step, _ in _points(tmp_path / "heldout")] == [0, 4, 8]
    assert len(_read(tmp_path).Tensors("samples")) == 3


def test_files_of_one_second_are_read_in_the_order_they_were_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(event_files, "_numbers", itertools.count(9))  # the next one has two digits
    _write(tmp_path, range(3))
    _write(tmp_path, range(3, 6), last_step=2)
    assert [step for step, _ in _points(tmp_path)] == list(range(6))


def test_settings_are_those_of_the_last_start(tmp_path):
    from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

    _write(tmp_path, range(3))
    _write(tmp_path, range(3, 5), last_step=2, offset=1.0)
    metadata = _read(tmp_path / "results").summary_metadata["_hparams_/session_start_info"]
    settings = parse_session_start_info_plugin_data(metadata.plugin_data.content).hparams
    assert settings["learning_rate"].number_value == 1.001
    assert settings["data"].string_value == "a"
    assert settings["packing"].HasField("bool_value")


def test_damage_costs_no_more_than_what_follows_it(tmp_path):
    _write(tmp_path, range(10))
    (path,) = tmp_path.glob("events.*")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) // 2))
    _write(tmp_path, range(8, 10), last_step=7)
    steps = [step for step, _ in _points(tmp_path)]
    assert steps[:2] == [0, 1]
    assert steps[-2:] == [8, 9]
    assert steps == sorted(set(steps))


def test_events_are_in_one_table_that_the_last_start_wrote(tmp_path):
    times = [datetime(2026, 11, 27, 20, minute, tzinfo=UTC) for minute in range(3)]
    with contextlib.closing(TensorBoard(tmp_path)) as board:
        board.event(0, times[0], "started")
        board.scalars(0, {"loss/training": 1.0})
        board.event(5, times[1], "rank 1 on a failed: a | b")
    tables = _read(tmp_path).Tensors("events")
    assert [table.step for table in tables] == [0, 5]
    (text,) = tables[-1].tensor_proto.string_val
    assert b"| started |" in text
    assert b"| rank 1 on a failed: a &#124; b |" in text
    with contextlib.closing(TensorBoard(tmp_path, last_step=5)) as board:
        for time in times:
            board.event(5, time, f"at {time.minute}")
        board.scalars(5, {"loss/training": 1.0})
    (table,) = _read(tmp_path).Tensors("events")
    assert [f"at {minute}" in str(table.tensor_proto) for minute in range(4)] == [True] * 3 + [
        False
    ]


def test_a_new_run_in_the_folder_of_one_that_never_saved_begins_anew(tmp_path):
    _write(tmp_path, range(3))
    _write(tmp_path, range(1), offset=0.5)
    assert _points(tmp_path) == [(0, 0.5)]
