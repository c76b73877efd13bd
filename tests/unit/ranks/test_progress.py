from __future__ import annotations

import time

import pytest

from diablo_ds.ranks import progress
from diablo_ds.ranks.progress import BYTES, Progress, draw_bar, format_seconds


@pytest.mark.parametrize("columns", [20, 40, 79, 99, 199])
@pytest.mark.parametrize("total", [0, 12_345_678_901])
def test_a_line_fits_and_says_what_is_done(columns, total):
    shown = Progress("Loading the model", total, BYTES)
    shown.advance(1_234_567)
    text = shown.text(columns)
    assert text.startswith("Loading the model")
    assert len(text) <= columns
    if total and columns >= 40:
        assert "1.23 MB of 12.35 GB" in text


def test_a_log_gets_whole_lines_now_and_then(capsys, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with Progress("Step 6/24: evaluation", 4, "batches") as shown:
        for _ in shown.over(range(4)):
            now += 10.0
    with Progress("Of another rank", 4, "batches", is_shown=False) as other:
        for _ in other.over(range(4)):
            now += 100.0
    assert capsys.readouterr().err == "Step 6/24: evaluation  2 of 4 batches  0:20 left\n"


def test_a_bar_is_drawn_in_characters_that_the_stream_has(monkeypatch):
    assert len(draw_bar(0.5, 8)) == 8
    monkeypatch.setattr(progress.sys, "stderr", type("Ascii", (), {"encoding": "ascii"})())
    assert draw_bar(0.5, 8) == "####----"
    assert draw_bar(2.0, 4) == "####"
    assert draw_bar(0.0, 4) == "----"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3599.6, "1:00:00"), (90061, "25:01:01")]
)
def test_seconds_are_shown_as_on_a_clock(seconds, text):
    assert format_seconds(seconds) == text
