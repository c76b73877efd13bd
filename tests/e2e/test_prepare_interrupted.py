"""Preparations that are killed, interrupted, or run out of disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from diablo_ds.files.work_folders import find_work_folder
from tests.e2e.commands import BIN, assert_user_error, environment
from tests.forked import diablo_ds
from tests.tiny import write_pairs
from tests.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.e2e


def _prepare(family, *args, check=True):
    return diablo_ds("prepare", family, *args, check=check)


def _files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name != ".file_times.json"
    }


@pytest.fixture(scope="module")
def long_source(tmp_path_factory):
    """A source that takes some seconds: 30 chunks."""
    path = tmp_path_factory.mktemp("source") / "long.jsonl"
    row = json.dumps({"prompt": "p{}", "completion": "word " * 60})
    path.write_text("".join(row.replace("{}", str(i)) + "\n" for i in range(30_000)))
    return path


def _start(*args):
    command = [str(BIN / "diablo-ds"), "prepare", "auto", *map(str, args)]
    return subprocess.Popen(
        command,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores control-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def _children(pid):
    """The worker processes of a process: multiprocessing's resource tracker is none."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        command = Path(f"/proc/{child}/cmdline").read_bytes()
        if b"spawn_main" in command:
            found.append(int(child))
    return found


def _is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def long_options(long_source, model):
    return ["--source", long_source, "--tokenizer", model, "--max-length", 600]


@pytest.fixture(scope="module")
def undisturbed(long_options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    _prepare("auto", *long_options, "--output", folder, "--num-proc", 2)
    return _files(folder)


def _start_and_wait_for_chunks(options, output):
    process = _start(*options, "--output", output, "--num-proc", 2)
    try:
        wait_until(lambda: len((find_work_folder(output) or ("", ()))[1]) > 5, "chunks")
        workers = wait_until(lambda: _children(process.pid), "workers")
    except BaseException:
        process.kill()
        raise
    assert len(workers) == 2
    return process, workers


def _assert_continues_to(expected, options, output):
    result = _prepare("auto", *options, "--output", output, "--num-proc", 1)
    assert "Continuing an interrupted run" in result.stderr
    assert _files(output) == expected
    assert [path.name for path in output.parent.iterdir()] == ["out"]


def test_a_killed_worker_is_named_and_its_work_continues_later(long_options, undisturbed, tmp_path):
    options, output = long_options, tmp_path / "out"
    process, workers = _start_and_wait_for_chunks(options, output)
    os.kill(workers[0], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=WAIT_S)
    result = subprocess.CompletedProcess([], process.returncode, stdout, stderr)
    assert_user_error(result, "a worker process ended before its work was done", "run the same")
    assert not output.exists()
    wait_until(lambda: not any(map(_is_alive, workers)), "the other worker's end")
    _assert_continues_to(undisturbed, options, output)


def test_a_killed_command_leaves_no_worker_and_nothing_half_written(
    long_options, undisturbed, tmp_path
):
    options, output = long_options, tmp_path / "out"
    process, workers = _start_and_wait_for_chunks(options, output)
    process.kill()
    process.communicate()
    wait_until(lambda: not any(map(_is_alive, workers)), "the workers' end")
    assert not output.exists()
    _assert_continues_to(undisturbed, options, output)


def test_control_c_ends_without_a_traceback(long_options, tmp_path):
    process, workers = _start_and_wait_for_chunks(long_options, tmp_path / "out")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=WAIT_S)
    assert process.returncode != 0
    assert "Traceback" not in stdout + stderr
    wait_until(lambda: not any(map(_is_alive, workers)), "the workers' end")


def test_a_full_disk_leaves_nothing_half_written(model, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        source = write_pairs(tmp_path / "d.jsonl", 4000)
        options = ["--source", source, "--tokenizer", model, "--output", disk / "out"]
        (disk / "ballast").write_bytes(bytes(800_000))
        for num_proc in (1, 2):
            result = _prepare("auto", *options, "--num-proc", num_proc, check=False)
            assert_user_error(result, "No space left on device")
            assert not (disk / "out").exists()
            assert not [p for p in disk.rglob("*") if p.name.endswith(".tmp")]
        (disk / "ballast").unlink()
        assert "Continuing" in _prepare("auto", *options).stderr
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
