"""A whole run on a terminal: a start of one screen, one live line, and nothing that breaks it."""

from __future__ import annotations

import re
import sys

import pytest

from tests.screens import Screen, run_in_terminal

pytestmark = pytest.mark.e2e
COLUMNS = 80


@pytest.fixture(scope="module")
def shown(model, data, tmp_path_factory):
    """The rows of a run of five steps, with what its live line covered."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = (
        f"--model {model} --data {data} --output {folder} --num-blocks 4 --max-steps 5 "
        "--micro-batch 2 --global-batch 4 --eval-every 2 --save-every 2"
    )
    command = [sys.executable, "-m", "diablo_ds", "train", *options.split()]
    screen = Screen(COLUMNS)
    screen.feed(run_in_terminal(command, COLUMNS))
    return [row.rstrip() for row in screen.rows]


def test_the_start_is_one_screen(shown):
    (begin,) = [i for i, row in enumerate(shown) if row.startswith("run        ")]
    (end,) = [i for i, row in enumerate(shown) if row.startswith("step 0/5  held-out loss ")]
    assert end - begin <= 35
    labels = [row[:11].rstrip() for row in shown[begin:end] if re.match(r"[a-z-]+ {2,}\S", row)]
    assert labels[:7] == ["run", "model", "trained", "data", "held-out", "batch", "steps"]
    assert labels[7:] == ["time", "numbers", "placement", "chosen"]


def test_records_are_whole_and_nothing_of_the_live_line_is_left(shown):
    text = "\n".join(shown)
    assert len(re.findall(r"^step \d/5  held-out loss \d\.\d{4}$", text, re.M)) == 4
    assert re.search(r"^Estimated time left: \d+:\d\d, for 2 steps of ", text, re.M)
    assert len([row for row in shown if "━" in row or " left" in row]) == 1  # the estimate
    assert "Done: 5 steps." in text
