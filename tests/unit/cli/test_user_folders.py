"""Folders that the environment names: what is none, or another user's, is named in a sentence."""

from __future__ import annotations

import os
import signal
import tempfile

import pytest

from diablo_ds.cli.user_folders import (
    FOLDERS,
    INDUCTOR,
    check_user_folders,
    torch_kept_out_of_tmp,
)
from diablo_ds.errors import UserError
from tests.strangers import TwoUsers, needs_root, users

__all__ = ["users"]  # pytest finds the fixture here


@pytest.mark.parametrize("name", FOLDERS)
def test_a_variable_that_names_a_file_is_refused(name, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv(name, str(file))
    with pytest.raises(UserError, match=f"{name} must name a folder; got {file}, owner="):
        check_user_folders(os.environ)


def test_folders_that_are_there_or_can_be_made_are_taken(tmp_path, monkeypatch):
    for name in FOLDERS:
        (tmp_path / "there").mkdir(exist_ok=True)
        for folder in (tmp_path / "there", tmp_path / "to" / "be made"):
            monkeypatch.setenv(name, str(folder))
            check_user_folders(os.environ)


@needs_root
@pytest.mark.parametrize("name", ["HOME", "XDG_CACHE_HOME", "HF_HOME", INDUCTOR])
def test_a_closed_folder_of_another_user_is_refused(name, users: TwoUsers):
    home = users.stranger.home
    home.chmod(0o700)

    def check() -> None:
        if name == "HOME":
            os.environ[name] = str(home)
        check_user_folders({name: str(home)})

    with pytest.raises(UserError, match=f"{name} must name a folder that you can enter; got"):
        users.victim.run(check)


@needs_root
def test_compiled_code_needs_a_folder_that_can_be_written(users: TwoUsers):
    with pytest.raises(UserError, match=f"{INDUCTOR} must name a folder that you can write"):
        users.victim.run(check_user_folders, {INDUCTOR: "/etc/below"})


@needs_root
def test_without_a_cache_a_killed_process_leaves_no_folder_for_good(users: TwoUsers):
    temporary = users.victim.home / "temporary"

    def kill_some() -> list[tuple[bool, int, int]]:
        temporary.mkdir()
        os.environ |= {"XDG_CACHE_HOME": "/etc/cache", "TMPDIR": str(temporary)}
        os.environ.pop(INDUCTOR, None)
        tempfile.tempdir = None
        found = []
        for _ in range(3):
            pid = os.fork()
            if not pid:
                with torch_kept_out_of_tmp():
                    os.kill(os.getpid(), signal.SIGKILL)
            os.waitpid(pid, 0)
            (left,) = temporary.iterdir()  # those of the processes before are gone
            found.append((left.is_dir(), left.stat().st_mode & 0o777, left.stat().st_uid))
        with torch_kept_out_of_tmp():
            (folder,) = temporary.iterdir()
            assert os.environ[INDUCTOR] == str(folder)
            (folder / "kernel.py").write_text("")
        assert not list(temporary.iterdir())
        return found

    assert users.victim.run(kill_some) == [(True, 0o700, users.victim.uid)] * 3
