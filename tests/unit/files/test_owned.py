"""Folders that others can change are refused; files are this user's own, and nobody else's."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.files import modes, owned, owners, trees
from diablo_ds.model.default_model import FOLDER_NAME, converted_model
from diablo_ds.ranks.records import (
    FAILED_FILE,
    RankRecord,
    announce_failure,
    last_lines,
    log_file,
    read_records,
    record_file,
    write_record,
)
from diablo_ds.training.run_folder import choose_run_folder, own_run_folder
from diablo_ds.zero.build_lock import StaleLocks, check_extensions
from tests.unit.launcher.test_guard import GuardedRank

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")
RECORD = RankRecord(rank=1, host="h", pid=1, world_size=2, started=1.0)


def _mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    return path


@pytest.fixture
def open_umask():
    old = os.umask(0o002)
    yield
    os.umask(old)


# --- folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o2750])
def test_a_folder_of_ones_own_is_taken(folder, mode):
    folder.chmod(mode)
    owned.check_folder(folder, "run folder")


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o2777, 0o1777, 0o1757])
def test_a_folder_that_others_can_write_is_refused_with_its_owner_and_mode(folder, mode):
    folder.chmod(mode)
    text = re.escape(stat.filemode(folder.stat().st_mode))
    with pytest.raises(UserError, match=rf"run folder must .*owner=\w+ \(uid.*, mode={text};"):
        owned.check_folder(folder, "run folder")


def test_the_sticky_bit_is_enough_for_a_folder_above(folder):
    folder.chmod(0o1777)
    owned.check_parent(folder, "nvme_path")
    folder.chmod(0o777)
    with pytest.raises(UserError, match="nvme_path"):
        owned.check_parent(folder, "nvme_path")


@as_root
def test_a_group_counts_as_others_unless_it_is_the_users_own(folder):
    folder.chmod(0o775)
    owned.check_folder(folder, "run folder")  # the group root of root
    os.chown(folder, 0, NOBODY)
    with pytest.raises(UserError, match="group=nogroup, mode=drwxrwxr-x"):
        owned.check_folder(folder, "run folder")


@as_root
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o1777])
def test_a_folder_of_another_user_is_refused(folder, mode):
    os.chown(folder, NOBODY, NOBODY)
    folder.chmod(mode)
    with pytest.raises(UserError, match="owner=nobody"):
        owned.make_folder(folder, "run folder")


@as_root
def test_a_link_that_another_user_made_is_refused(folder, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(folder)
    owned.check_folder(link, "run folder")
    os.lchown(link, NOBODY, NOBODY)
    with pytest.raises(UserError, match="owner=nobody"):
        owned.check_folder(link, "run folder")


def test_where_no_modes_are_kept_a_team_may_still_be_trusted(folder, monkeypatch):
    folder.chmod(0o777)
    with pytest.raises(UserError, match="run folder must"):
        owned.check_folder(folder, "run folder")
    monkeypatch.setenv(modes.VARIABLE, modes.ALLOW_GROUP_WRITE)
    with pytest.raises(UserError, match="run folder must"):
        owned.check_folder(folder, "run folder")
    monkeypatch.setattr(owners, "keeps_modes", lambda folder: False)  # as on a network share
    owned.check_folder(folder, "run folder")


def test_what_an_earlier_version_left_open_in_a_closed_folder_is_closed(folder):
    inside = folder / "checkpoints" / "step-000001"
    inside.mkdir(parents=True)
    (inside / "state.json").touch(0o666)
    outside = folder.with_name("outside")
    outside.mkdir()
    (folder / "link").symlink_to(outside)
    for path in (folder, *folder.rglob("*"), outside):
        path.chmod(0o2777 if path.is_dir() else 0o666)
    folder.chmod(0o755)
    trees.close_tree(folder)
    assert _mode(inside) == 0o2777  # others may have written to it
    folder.chmod(0o700)
    trees.close_tree(folder)
    assert _mode(inside) == 0o2755
    assert _mode(inside / "state.json") == 0o644
    assert _mode(outside) == 0o2777


def test_what_is_made_is_private_whatever_the_umask(tmp_path, open_umask):
    made = tmp_path / "a" / "b" / "c"
    owned.make_folder(made, "run folder")
    assert {_mode(path) for path in (made, made.parent)} == {0o700}
    write_record(made, RECORD)
    announce_failure(made, 1)
    owned.append_to_own_file(log_file(made, 1)).close()
    assert {_mode(path) for path in made.iterdir()} == {0o600}


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture
def treasure(tmp_path):
    """A file of the user's that somebody wants to have changed."""
    path = tmp_path / "treasure"
    path.write_text("precious")
    return path


@pytest.mark.parametrize("plant", ["symlink_to", "hardlink_to"])
def test_links_in_a_log_folder_are_not_written_through(folder, treasure, plant):
    for name in (record_file(folder, 1), log_file(folder, 1), folder / FAILED_FILE):
        getattr(name, plant)(treasure)
    write_record(folder, RECORD)
    announce_failure(folder, 1)
    with pytest.raises(OSError, match=r"symbolic|regular file"):
        owned.append_to_own_file(log_file(folder, 1))
    assert treasure.read_text() == "precious"


def test_pipes_in_a_log_folder_stop_nobody(folder):
    for path in (record_file(folder, 1), log_file(folder, 1), folder / FAILED_FILE):
        os.mkfifo(path)
    assert read_records(folder) == []
    assert last_lines(log_file(folder, 1)) == ["(no log)"]
    assert not owned.is_own_file(folder / FAILED_FILE)
    write_record(folder, RECORD)


@pytest.mark.parametrize("number", ["1e999", "NaN", "1" + "0" * 400, "[" * 5000])
def test_a_damaged_record_is_skipped(number, folder):
    write_record(folder, RECORD)
    path = record_file(folder, RECORD.rank)
    assert read_records(folder) == [RECORD]
    values = json.loads(path.read_text())
    changed = json.dumps(values | {"started": "?"}).replace('"?"', number)
    path.write_text(changed)
    assert read_records(folder) == []


@as_root
@pytest.mark.parametrize("name", [FAILED_FILE, "stop"])
def test_what_another_user_leaves_in_a_log_folder_does_not_end_a_rank(tmp_path, name):
    for file in (tmp_path / name, record_file(tmp_path, 0)):
        file.write_text("{}")
        os.chown(file, NOBODY, NOBODY)
    rank = GuardedRank(tmp_path, "print('up'); time.sleep(2.5)")
    assert rank.end() == 0
    assert [record.rank for record in read_records(tmp_path)] == [1]


# --- who asks ------------------------------------------------------------------------------------


def test_a_run_folder_that_others_can_write_is_refused(folder):
    folder.chmod(0o777)
    config = RunConfig(output=str(folder))
    with pytest.raises(UserError, match="run folder must belong to you"):
        choose_run_folder(config)
    with pytest.raises(UserError, match="run folder must belong to you"):
        own_run_folder(config)


def test_a_guard_refuses_a_log_folder_that_others_can_write(folder):
    folder.chmod(0o777)
    done = subprocess.run(
        [sys.executable, "launch/train.py", "--log-folder", folder, "--version"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: log folder must belong to you")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("depth", ["", "py311_cpu", "py311_cpu/some_op"])
def test_compiled_ops_that_others_could_swap_are_refused(tmp_path, depth):
    op = tmp_path / "ops" / "py311_cpu" / "some_op"
    check_extensions(tmp_path / "ops")
    op.mkdir(parents=True)
    check_extensions(tmp_path / "ops")
    (tmp_path / "ops" / depth).chmod(0o777)
    with pytest.raises(UserError, match="folder of compiled ops must"):
        check_extensions(tmp_path / "ops")


@as_root
def test_a_compiled_op_of_another_user_is_refused(tmp_path):
    library = tmp_path / "some_op" / "some_op.so"
    library.parent.mkdir()
    library.touch()
    os.chown(library, NOBODY, NOBODY)
    with pytest.raises(UserError, match=r"some_op\.so, owner=nobody"):
        check_extensions(tmp_path)


def test_locks_are_not_looked_for_behind_links(tmp_path):
    outside = tmp_path / "keep" / "lock"
    outside.parent.mkdir()
    outside.touch()
    os.utime(outside, (1, 1))
    ops = tmp_path / "ops"
    (ops / "zz").mkdir(parents=True)
    (ops / "link").symlink_to(outside.parent)
    (ops / "zz" / "link").symlink_to(outside.parent)
    assert StaleLocks(ops).find() == []


def test_a_cache_folder_that_others_can_write_is_refused(tmp_path):
    converted = tmp_path / FOLDER_NAME
    converted.mkdir()
    (converted / "config.json").touch()
    assert converted_model(tmp_path) == converted
    converted.chmod(0o777)
    with pytest.raises(UserError, match="cache folder must belong to you"):
        converted_model(tmp_path)
