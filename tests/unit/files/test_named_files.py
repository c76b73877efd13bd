"""Files that a user names: one's own pipe is waited for, a stranger's never."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_json, sha256_file
from diablo_ds.files.named_files import check_no_pipes, open_named
from diablo_ds.files.tensor_files import read_header
from tests.strangers import needs_root, users

__all__ = ["users"]  # pytest finds the fixture here


def test_a_pipe_of_ones_own_is_read_to_its_end(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=['{"a": 1}'])
    writer.start()
    assert read_json(tmp_path / "pipe") == {"a": 1}
    writer.join()
    read_end, write_end = os.pipe()  # as a shell makes for <(command)
    os.write(write_end, b"text")
    os.close(write_end)
    with open_named(Path(f"/dev/fd/{read_end}")) as file:
        assert file.read() == b"text"
    os.close(read_end)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(IsADirectoryError):
        open_named(tmp_path)


@needs_root
def test_a_strangers_pipe_is_refused_and_not_waited_for(users):
    folder = users.project / "model"

    def plant() -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        os.mkfifo(folder / "model.safetensors", 0o644)

    users.stranger.run(plant)
    users.victim.run(check_no_pipes, users.victim.home)
    for read in (open_named, sha256_file, read_json, read_header):
        with pytest.raises(UserError, match=f"model.safetensors, owner={users.stranger.name}"):
            users.victim.run(read, folder / "model.safetensors")
    with pytest.raises(UserError, match="must be a regular file"):
        users.victim.run(check_no_pipes, folder)
