from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from diablo_ds.launcher.processes import ancestors, describe_exit, is_stopped, reader_is_gone
from tests.waiting import wait_until


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "done"),
        (7, "exit code 7"),
        (2, "exit code 2, wrong input"),
        (85, "exit code 85, stopped as asked"),
        (-9, "killed by SIGKILL"),
    ],
)
def test_an_exit_is_told_for_people(code, text):
    assert describe_exit(code) == text


def test_a_stopped_process_is_told_from_one_that_runs_or_is_gone():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    assert not is_stopped(process.pid)
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: is_stopped(process.pid), "the process to stop")
    process.kill()
    process.wait()
    assert not is_stopped(process.pid)


def test_a_parent_that_is_no_agent_is_the_launcher():
    assert ancestors() == (os.getppid(), 0)


def test_a_pipe_that_nobody_reads_is_noticed():
    code = (
        "import os, sys; from diablo_ds.launcher.processes import reader_is_gone as gone\n"
        "before = gone(); sys.stdin.read(); os._exit(10 * before + gone())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdout.close()
    process.stdin.close()
    assert process.wait() in (1, 11)  # 11 where the reader left before the process looked
    assert not reader_is_gone()
