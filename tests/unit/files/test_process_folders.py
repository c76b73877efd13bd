"""A process's folder is kept while a process has it, and is gone with the next one after that."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import pytest

from diablo_ds.files.process_folders import process_folder, shared_process_folder

PREFIX = "diablo-ds-test-"
_OWN = (
    "import sys\n"
    "from diablo_ds.files.process_folders import process_folder\n"
    f"with process_folder({PREFIX!r}) as folder:\n"
    "    (folder / 'kernel').write_text('code')\n"
    "    print(folder, flush=True)\n"
    "    sys.stdin.read()\n"
)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """An empty folder for temporary files, also of processes that are started."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_one_that_is_alive_keeps_its_folder_and_one_that_was_killed_does_not(temporary):
    process = subprocess.Popen(
        [sys.executable, "-c", _OWN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    folder = process.stdout.readline().strip()
    with process_folder(PREFIX) as own:
        assert sorted(map(str, temporary.iterdir())) == sorted([folder, str(own)])
        assert own.stat().st_mode & 0o777 == 0o700
        (own / "deep").mkdir()
    assert list(map(str, temporary.iterdir())) == [folder]
    process.kill()
    process.communicate()
    assert os.path.exists(f"{folder}/kernel")
    with process_folder(PREFIX) as own:
        assert list(temporary.iterdir()) == [own]
    assert not list(temporary.iterdir())


def test_one_that_was_handed_over_stays_until_both_processes_have_ended(temporary):
    reader, writer = os.pipe()
    taken, taking = os.pipe()
    with process_folder(PREFIX) as folder:
        pid = os.fork()
        if not pid:
            with shared_process_folder(folder, PREFIX):
                os.write(taking, b".")
                os.read(reader, 1)
                os._exit(0)
        os.read(taken, 1)
    with process_folder(PREFIX) as other:
        assert sorted(temporary.iterdir()) == sorted([folder, other])
    os.write(writer, b".")
    os.waitpid(pid, 0)
    with process_folder(PREFIX) as other:
        assert list(temporary.iterdir()) == [other]
