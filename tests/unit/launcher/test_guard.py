"""The guard around real processes: what it records, and what it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from diablo_ds.ranks.records import FAILED_FILE, STOP_FILE, describe_failure, log_file
from tests.unit.launcher.guarded import BEAT, GuardedRank
from tests.waiting import WAIT_S, wait_until


def _is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_an_end_is_recorded_with_code_phase_and_output(tmp_path):
    rank = GuardedRank(tmp_path, "beat(); print('hello'); sys.exit(7)", rank=0)
    assert rank.end() == 7
    assert rank.output.read_text() == "hello\n"
    assert rank.log() == "hello\n"
    record = rank.record()
    assert (record["exit_code"], record["phase"]) == (7, "forward of step 3")
    assert not record["by_request"]
    assert (tmp_path / FAILED_FILE).read_text() == "0\n"
    assert "rank 0 on" in describe_failure(tmp_path)
    assert "| hello" in describe_failure(tmp_path)


def test_only_rank_0_speaks_to_the_launcher(tmp_path):
    rank = GuardedRank(tmp_path, "print('hello')", rank=1)
    assert rank.end() == 0
    assert rank.output.read_text() == ""
    assert rank.log() == "hello\n"
    assert not (tmp_path / FAILED_FILE).exists()


def test_a_killed_rank_is_told_from_one_that_failed(tmp_path):
    rank = GuardedRank(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert rank.end() == 128 + signal.SIGKILL
    assert rank.record()["cause"] == "killed by SIGKILL"


def test_a_hanging_rank_prints_its_stacks_and_is_ended(tmp_path):
    rank = GuardedRank(tmp_path, "def lost():\n    beat(); time.sleep(600)\nlost()")
    assert rank.end() == 128 + signal.SIGKILL
    assert "no sign of life" in rank.record()["cause"]
    assert "in lost" in rank.log()


def test_a_stopped_rank_is_ended_and_named(tmp_path):
    rank = GuardedRank(tmp_path, "beat(); os.kill(os.getpid(), signal.SIGSTOP)")
    assert rank.end() == 128 + signal.SIGKILL
    assert "SIGSTOP" in rank.record()["cause"]


def test_a_rank_that_gives_signs_of_life_is_left_alone(tmp_path):
    code = """
        heartbeat.heart.limit_s = 3
        for _ in range(40):
            beat(); time.sleep(0.1)
        """
    rank = GuardedRank(tmp_path, code)
    assert rank.end() == 0


def test_a_rank_does_not_outlive_its_guard(tmp_path):
    rank = GuardedRank(tmp_path, "print('up'); time.sleep(600)")
    rank.wait_for_log("up")
    pid = rank.record()["pid"]
    rank.process.kill()
    rank.end()
    wait_until(lambda: not _is_alive(pid), "the rank's end")


def test_a_guard_does_not_outlive_its_launcher(tmp_path):
    code = "print('up'); time.sleep(600)"
    rank = f"r = GuardedRank(Path({str(tmp_path)!r}), {code!r})"
    imports = "from pathlib import Path; from tests.unit.launcher.guarded import GuardedRank"
    launcher = subprocess.Popen(
        [sys.executable, "-c", f"{imports}; {rank}; r.end()"], cwd=Path(__file__).parents[3]
    )
    log = log_file(tmp_path, 1)
    wait_until(lambda: log.exists() and "up" in log.read_text(), "the rank's output")
    launcher.kill()
    launcher.wait()
    record = tmp_path / "rank-00001.json"
    wait_until(lambda: '"exit_code": null' not in record.read_text(), "the rank's end")
    ended = json.loads(record.read_text())
    assert ended["by_request"]
    assert "gone" in ended["cause"]


# --- output that nobody takes ---------------------------------------------------------------------

MANY_LINES = "for i in range(20000): print(f'{i:0500}')\n"  # 10 MB, more than may wait


@pytest.fixture
def full_pipe():
    """A pipe that is full, as that of a launcher which was stopped."""
    source, end = os.pipe()
    os.set_blocking(end, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(end, b"." * 65536):
            pass
    os.set_blocking(end, True)
    yield source, end
    os.close(source)
    os.close(end)


def test_a_rank_is_not_held_up_by_a_launcher_that_reads_nothing(tmp_path, full_pipe):
    rank = GuardedRank(tmp_path, MANY_LINES, 0, stdout=full_pipe[1], stderr=full_pipe[1])
    assert rank.end() == 0
    assert rank.log().split() == [f"{i:0500}" for i in range(20000)]


def test_a_hanging_rank_is_ended_although_nobody_reads(tmp_path, full_pipe):
    code = f"def lost():\n    beat(); time.sleep(600)\n{MANY_LINES}lost()"
    rank = GuardedRank(tmp_path, code, 0, stdout=full_pipe[1], stderr=full_pipe[1])
    assert rank.end() == 128 + signal.SIGKILL
    assert "no sign of life" in rank.record()["cause"]
    assert "in lost" in rank.log()
    assert (tmp_path / FAILED_FILE).read_text() == "0\n"


def test_a_rank_that_writes_without_end_can_hang_and_be_stopped(tmp_path):
    rank = GuardedRank(tmp_path, "beat()\nwhile True: os.write(1, b'x' * 65536)")
    assert rank.end() == 128 + signal.SIGKILL
    assert "no sign of life" in rank.record()["cause"]


def test_a_full_disk_under_the_log_holds_up_nothing(tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
    code = f"{MANY_LINES}\nbeat(); time.sleep(600)"
    rank = GuardedRank(tmp_path, code, 1, before=limit)
    assert rank.end() == 128 + signal.SIGKILL
    assert len(rank.log()) == 4096
    assert "no sign of life" in rank.record()["cause"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_without_a_log_folder_streams_stay_apart_and_a_terminal_is_known(tmp_path, is_terminal):
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom diablo_ds.launcher.guard import Guard\n"
        "code = 'import sys; from diablo_ds.ranks.live_line import shows_progress\\n'\n"
        "code += 'print(shows_progress()); print(\"to stderr\", file=sys.stderr)'\n"
        "sys.exit(Guard(os.environ, None).run([sys.executable, '-c', code]))"
    )
    master, terminal = os.openpty()
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=terminal if is_terminal else subprocess.PIPE,
        timeout=WAIT_S,
    )
    assert done.returncode == 0
    assert done.stdout.decode() == f"{is_terminal}\n"
    assert b"to stderr" in (os.read(master, 1000) if is_terminal else done.stderr)
    os.close(master)
    os.close(terminal)


@pytest.mark.parametrize("name", [FAILED_FILE, STOP_FILE])
def test_the_log_folder_can_end_a_rank(tmp_path, name):
    rank = GuardedRank(tmp_path, "print('up'); time.sleep(600)")
    rank.wait_for_log("up")
    (tmp_path / name).touch()
    assert rank.end() == 128 + signal.SIGTERM
    assert rank.record()["by_request"]


@pytest.mark.parametrize("sign", ["beat()", "heartbeat.heart.tell_ready('evaluating')"])
def test_a_warning_signal_waits_until_the_rank_can_take_it(tmp_path, sign):
    rank = GuardedRank(
        tmp_path,
        """
        print('up'); time.sleep(1)
        signal.signal(signal.SIGUSR1, lambda *_: os._exit(85))
        SIGN; time.sleep(600)
        """.replace("SIGN", sign),
    )
    rank.wait_for_log("up")
    rank.process.send_signal(signal.SIGUSR1)
    assert rank.end() == 85
    assert not (tmp_path / FAILED_FILE).exists()


def test_a_rank_runs_in_its_venv_behind_the_words_of_a_container(tmp_path):
    wrap = tmp_path / "enter"
    wrap.write_text(f'#!/bin/sh\necho "$PATH" "$@" > {tmp_path}/words\nexec "$@"\n')
    wrap.chmod(0o755)
    venv = Path(sys.executable).parents[1]
    done = subprocess.run(
        [sys.executable, "launch/train.py", "--venv", venv, "--wrap", f"{wrap} -u", "--version"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    path, *words = (tmp_path / "words").read_text().split()
    assert path.startswith(f"{venv}/bin:")
    assert words == [
        "-u",
        f"{venv}/bin/python",
        "-P",
        "-u",
        "-m",
        "diablo_ds",
        "train",
        "--version",
    ]
    assert done.returncode != 0  # "-u" is no command


def test_without_a_guard_a_hanging_process_ends_itself_with_its_stacks():
    code = BEAT + "def lost():\n    beat(); time.sleep(600)\nlost()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S
    )
    assert done.returncode == 1
    assert "in lost" in done.stderr


def test_without_a_log_folder_the_guard_says_how_a_killed_rank_ended_and_how_to_go_on(tmp_path):
    code = BEAT + (
        "heartbeat.heart.tell_run_folder('runs/a b'); beat(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    main = (
        "import os, sys; from diablo_ds.launcher.guard import Guard\n"
        "environment = {**os.environ, 'DIABLO_COMMAND': 'deepspeed train.py'}\n"
        f"sys.exit(Guard(environment, None).run([sys.executable, '-c', {code!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", main], capture_output=True, text=True, timeout=WAIT_S
    )
    assert done.returncode == 128 + signal.SIGKILL
    assert "rank 0 was killed by SIGKILL" in done.stderr
    assert "checkpoint:\n  deepspeed train.py --output 'runs/a b'\n" in done.stderr
