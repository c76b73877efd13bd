from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from diablo_ds.launcher.attempt import Attempt
from diablo_ds.launcher.cluster import Cluster, Host
from diablo_ds.ranks.exit_codes import EXIT_PORT_IN_USE, EXIT_STOPPED, EXIT_USER_ERROR


def _attempt(launcher_code: str = "") -> Attempt:
    attempt = Attempt(Cluster(hosts=(Host("localhost", 1),)), Path())
    attempt.process = subprocess.Popen([sys.executable, "-c", launcher_code])
    attempt.process.wait()
    return attempt


@pytest.mark.parametrize(
    ("code", "is_worth_it"),
    [
        (0, False),
        (1, True),  # a defect, or a full disk that may have room the next time
        (EXIT_USER_ERROR, False),
        (EXIT_STOPPED, False),
        (EXIT_PORT_IN_USE, True),
        (137, True),
    ],
)
def test_what_may_not_happen_again_is_worth_a_restart(code, is_worth_it):
    attempt = _attempt()
    assert attempt.is_worth_a_restart(code) == is_worth_it
    attempt.asked_by = "Received SIGTERM"
    assert not attempt.is_worth_a_restart(code)


def test_ranks_that_stopped_because_their_launcher_was_killed_are_started_again():
    assert _attempt("import os; os.kill(os.getpid(), 9)").is_worth_a_restart(EXIT_STOPPED)
