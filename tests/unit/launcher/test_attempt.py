from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from diablo_ds.launcher.attempt import EXIT_CUT_SHORT, Attempt
from diablo_ds.launcher.cluster import Cluster, Host
from diablo_ds.launcher.launcher_output import Printer
from diablo_ds.ranks.exit_codes import EXIT_PORT_IN_USE, EXIT_STOPPED, EXIT_USER_ERROR
from diablo_ds.ranks.records import RankRecord, write_record


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


def _report(folder: Path, capfd, *codes: int, asked: bool = True) -> tuple[int, str]:
    attempt = _attempt()
    attempt.folder, attempt.same_command = folder, "diablo-ds launch --output 'runs/a b'"
    attempt.asked_by = "Received SIGINT" if asked else ""
    for rank, code in enumerate(codes):
        record = RankRecord(rank, "h", 1, 1, 0.0, ended=1.0, exit_code=code, by_request=asked)
        write_record(folder, record)
    code = attempt._exit_code()
    attempt._report(code, Printer(folder))
    return code, capfd.readouterr().err


@pytest.mark.parametrize("codes", [(), (143,), (130, 143)])
def test_a_stop_before_the_first_step_has_a_sentence_and_its_command(codes, tmp_path, capfd):
    code, text = _report(tmp_path, capfd, *codes)
    assert code == EXIT_STOPPED
    assert "nothing had to be saved" in text
    assert text.endswith("  diablo-ds launch --output 'runs/a b'\n")


def test_a_stop_that_ranks_have_told_of_needs_no_more(tmp_path, capfd):
    assert _report(tmp_path, capfd, EXIT_STOPPED) == (EXIT_STOPPED, "")


def test_ranks_that_were_killed_while_they_stopped_are_told_from_a_stop(tmp_path, capfd):
    code, text = _report(tmp_path, capfd, EXIT_STOPPED, 137)
    assert code == EXIT_CUT_SHORT
    assert "its last checkpoint, from which it continues with:\n  diablo-ds launch" in text
