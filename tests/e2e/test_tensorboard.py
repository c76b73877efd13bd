"""What a person sees who opens TensorBoard on runs that are done, go on, or were resumed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests import forked
from tests.browser import needs_browser
from tests.e2e.commands import losses
from tests.tensorboard_pages import tensorboard
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, needs_browser]

LOSS = "1 loss/per target token"
GROUPS = ["1 loss", "3 speed", "4 time", "5 memory", "6 optimizer", "8 progress", "9 deltas"]


def _until_step(run: forked.Command, folder: Path, step: int) -> None:
    metrics = folder / "metrics.jsonl"
    wait_until(
        lambda: run.has_ended() or (metrics.exists() and step in losses(folder)), f"step {step}"
    )


def test_runs_have_names_and_groups_in_order_and_a_killed_run_draws_one_line(options, tmp_path):
    finished, resumed, running = (tmp_path / name for name in ("finished", "resumed", "running"))
    forked.diablo_ds("train", *options, "--output", finished)
    killed = forked.Command("train", *options, "--output", resumed)
    _until_step(killed, resumed, 5)
    for process in killed.processes:
        process.kill()
    killed.result(check=False)
    for path in (resumed / "tensorboard").glob("events.*"):
        path.write_bytes(path.read_bytes()[:-7])  # in the middle of a write
    done = forked.diablo_ds("train", *options, "--output", resumed)
    live = forked.Command("train", *options, "--max-steps", "100000", "--output", running)
    try:
        _until_step(live, running, 2)
        with tensorboard(["--logdir", str(tmp_path)]) as board:
            assert not live.has_ended()
            titles = board.titles()
            lines = {
                name: board.points(f"{name}/tensorboard", LOSS) for name in ("finished", "resumed")
            }
            assert board.points("running/tensorboard", LOSS)
    finally:
        for process in live.processes:
            process.kill()
        live.result(check=False)
    assert {f"{name}/tensorboard" for name in ("finished", "resumed", "running")} <= set(titles)
    assert "." not in titles
    shown = [title for title in titles if title in GROUPS]
    assert list(dict.fromkeys(shown)) == GROUPS
    assert {LOSS, "3 speed/tokens_per_s"} <= set(titles)
    for name, line in lines.items():
        assert dict(line) == pytest.approx(losses(tmp_path / name), rel=1e-6)
        assert [step for step, _ in line] == list(range(1, 9))

    (command,) = (line for line in done.stdout.splitlines() if " --logdir" in line)
    with tensorboard(shlex.split(command)[1:]) as board:
        assert set(board.get("data/runs")) == {
            f"resumed/tensorboard{part}" for part in ("", "/heldout", "/results")
        }
    assert json.loads((resumed / "run.json").read_text())["starts"][-1]["start_step"] == 4
