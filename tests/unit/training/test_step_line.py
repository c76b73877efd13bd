from __future__ import annotations

import pytest

from diablo_ds.training.step_line import StepState, live_text, plain_text

VALUES = {
    "loss": 1.08324,
    "learning_rate": 7.9e-4,
    "grad_norm": 0.41234,
    "step_s": 4.2123,
    "tokens_per_s": 12_345.0,
    "epoch": 1.5,
    "memory_bytes": 71.23e9,
    "memory_now_bytes": 70e9,
    "mfu": 0.4567,
}
STATE = StepState(12_000, 40_000, VALUES, 1.1204, 1.1543, 130_000.0, num_gpus=8)
SMALL = StepState(12, 40, VALUES | {"tokens_per_s": 450.0}, 1.12, 1.15, 61.0)


@pytest.mark.parametrize("state", [STATE, SMALL, StepState(0, 40)])
def test_the_line_fits_from_20_to_300_columns(state):
    for columns in range(20, 300):
        assert len(live_text(state, columns)) <= columns


def test_all_is_written_out_where_there_is_room():
    text = plain_text(STATE)
    assert text == (
        "step 12000/40000  loss 1.0832 (mean 1.1204)  held-out 1.1543  epoch 1.50  lr 7.90e-4  "
        "grad norm 0.412  4.21 s/step  12,345 tokens/s (1,543 per GPU)  MFU 45.7%  "
        "memory 70.0 GB, peak 71.2  36:06:40 left"
    )
    assert live_text(STATE, len(text)) == text
    assert live_text(StepState(0, 40, note="first step 0:31"), 31) == "step 0/40  first step 0:31"
    wide = live_text(STATE, 250)
    assert wide.split("  ")[1].startswith("━")
    assert wide.replace(f"{wide.split('  ')[1]}  ", "") == text


@pytest.mark.parametrize("state", [STATE, SMALL])
def test_what_stays_at_80_and_100_columns(state):
    narrow, compact = live_text(state, 79), live_text(state, 99)
    for part in ("loss 1.083 (1.120)", "held 1.15", "tok/s", "lr 7.9e-4", " left", "70.0/71.2 GB"):
        assert part in compact
    for part in (f"{state.step}/{state.num_steps}", "loss 1.083", "held 1.15", "tok/s", " left"):
        assert part in narrow
