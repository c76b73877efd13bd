"""The live line on a real pseudo-terminal: nothing is lost, nothing of it stays between records."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.screens import Screen, resize, run_in_terminal

pytestmark = pytest.mark.slow

RECORDS = """
import logging, os, sys, time, warnings
from diablo_ds.ranks import terminal; terminal.make_safe()
from diablo_ds.ranks.live_line import live_line
from diablo_ds.ranks.log import logger, set_up_logging
set_up_logging(is_main_process=True)
line = lambda columns: "live " + "=" * (columns - 5)
live_line.show(line)
print("to stdout"); print("to", "stderr", file=sys.stderr)
logger.info("a record\\nof two lines")
logger.info("a record of " + "many " * 40 + "words")
phase = lambda columns: "phase " + "-" * (columns - 6)
live_line.show(phase); logger.info("inside a phase"); live_line.remove(phase)
for i in range(20): live_line.refresh(); time.sleep(0.02)
print("an open ", end="", file=sys.stderr); live_line.refresh(); print("end", file=sys.stderr)
if os.fork() == 0: print("from a fork", flush=True); os._exit(0)
os.wait()
"""
EXPECTED = [
    "to stdout",
    "to stderr",
    "a record",
    "of two lines",
    "a record of " + "many " * 40 + "words",
    "inside a phase",
    "an open end",
]
GUARD = """
import os, sys
from diablo_ds.launcher.guard import Guard
sys.exit(Guard(os.environ, None).run([sys.executable, "-c", sys.argv[1]]))
"""


def _command(code: str, *, is_guarded: bool) -> list[str]:
    return [sys.executable, "-c", *([GUARD] if is_guarded else []), code]


@pytest.mark.parametrize(("columns", "is_guarded"), [(80, True), (100, False), (200, True)])
def test_records_stand_whole_above_the_line(columns, is_guarded):
    code = RECORDS + "print('last'); live_line.remove(line)"
    output = run_in_terminal(_command(code, is_guarded=is_guarded), columns)
    assert f"live {'=' * (columns - 6)}\r" in output
    screen = Screen(columns)
    screen.feed(output)
    rows = [row.rstrip() for row in screen.rows]
    assert rows[-1] == ""  # the line is gone
    assert [row for row in rows if row.startswith(("live", "phase"))] == []
    expected = [*EXPECTED, "from a fork", "last"]
    assert " ".join(rows).split() == " ".join(expected).split()
    assert [line for line in expected if len(line) < columns and line not in rows] == []


def test_what_a_library_writes_itself_erases_the_line_of_a_guarded_rank():
    code = RECORDS + "os.write(2, b'by a library\\n'); time.sleep(1); os.kill(os.getpid(), 9)"
    output = run_in_terminal([sys.executable, "-c", GUARD.replace("sys.exit", ""), code], 80)
    screen = Screen(80)
    screen.feed(output)
    assert "by a library" in screen.rows
    assert not [row for row in screen.rows if "==" in row]


def test_the_line_fits_the_terminal_after_it_was_resized():
    code = RECORDS + "time.sleep(2.5); print('last'); live_line.remove(line)"
    resized = []

    def narrow(output: str, terminal: int) -> None:
        if "from a fork" in output and not resized:
            resized.append(len(output))
            resize(terminal, 60)

    output = run_in_terminal(_command(code, is_guarded=True), 120, narrow)
    after = output[output.index("from a fork") :]
    assert f"\x1b[Jlive {'=' * 54}\r" in after
    assert f"\x1b[Jlive {'=' * 114}\r" in output


def test_the_filter_of_make_train_writes_above_the_line_of_the_run_behind_it():
    lines = "first\n[INFO] [launch.py: noise\nsecond\n"
    with subprocess.Popen(["printf", "%s", lines], stdout=subprocess.PIPE) as run:
        command = [sys.executable, "-m", "diablo_ds.ranks.noise"]
        output = run_in_terminal(command, 80, stdin=run.stdout)
    screen = Screen(80)
    screen.feed(f"live line\r{output}")
    assert screen.rows == ["first", "second", ""]
