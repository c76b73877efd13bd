from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from diablo_ds.files.process_status import process_status
from tests.waiting import wait_until


def test_a_childs_status_names_its_parent_and_follows_its_state():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        running = process_status(child.pid)
        assert running.parent == os.getpid()
        assert running.started >= process_status(os.getpid()).started
        child.send_signal(signal.SIGSTOP)
        wait_until(lambda: process_status(child.pid).state == "T", "the stop")
        child.kill()
        wait_until(lambda: process_status(child.pid).state == "Z", "the end")
    finally:
        child.kill()
        child.wait()
    with pytest.raises(OSError, match=f"/proc/{child.pid}/stat"):
        process_status(child.pid)
