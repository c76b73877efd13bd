"""One user and what another one left: nothing of theirs is used, nothing of ours is theirs."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest

from diablo_ds.errors import UserError
from diablo_ds.files import modes, owned, trees
from diablo_ds.files.atomic import new_folder, write_json
from diablo_ds.files.ownership import claim
from tests.strangers import TwoUsers, needs_root, users

__all__ = ["users"]  # pytest finds the fixture here
pytestmark = needs_root


@pytest.fixture
def place(users: TwoUsers):
    """A new folder of the project, which both users can write."""
    path = users.project / "place"
    path.mkdir()
    os.chown(path, 0, users.victim.project)
    path.chmod(0o2775)
    yield path
    shutil.rmtree(path)


def _make(path: Path, mode: int) -> None:
    path.mkdir()
    path.chmod(mode)


def _make_file(path: Path, mode: int = 0o644) -> None:
    path.write_text("hers")
    path.chmod(mode)


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o777, 0o1777, 0o2770])
def test_a_strangers_folder_is_refused_by_name_and_mode(users, place, mode):
    folder = place / "run"
    users.stranger.run(_make, folder, mode)
    with pytest.raises(UserError) as refused:
        users.victim.run(owned.make_folder, folder, "run folder")
    shown = stat.filemode(folder.stat().st_mode)
    assert f"owner={users.stranger.name} (uid {users.stranger.uid})" in str(refused.value)
    assert f"mode={shown};" in str(refused.value)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_all_that_is_made_is_private_whatever_the_umask(users, place, umask):
    def make() -> None:
        owned.make_folder(place / "above" / "run", "run folder")
        write_json(place / "above" / "run" / "a.json", {})
        with new_folder(place / "above" / "run" / "made") as temporary:
            (temporary / "inside").mkdir()
            (temporary / "inside" / "by a library").write_text("")
        owned.append_to_own_file(place / "above" / "run" / "a.log").close()
        claim(place / "above" / "run", "run folder").release()

    users.victim.run(make, umask=umask)
    for path in (place / "above").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o2700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize(
    ("option", "folder_mode", "file_mode"),
    [("group_readable", 0o2750, 0o640), ("allow_group_write", 0o2770, 0o660)],
)
def test_a_group_gets_what_was_chosen(users, place, option, folder_mode, file_mode):
    def make() -> None:
        modes.share(**{option: True})
        with new_folder(place / "run") as temporary:
            (temporary / "by a library").write_text("")

    users.victim.run(make)
    assert stat.S_IMODE((place / "run").stat().st_mode) == folder_mode
    assert stat.S_IMODE((place / "run" / "by a library").stat().st_mode) == file_mode
    assert users.stranger.run((place / "run" / "by a library").read_text) == ""


def test_a_team_shares_a_run_on_purpose_and_nobody_else_does(users, place):
    def continue_run(number: int) -> None:
        modes.share(allow_group_write=True)
        owned.make_folder(place / "run", "run folder")
        trees.check_tree(place / "run", "run folder")
        owner = claim(place / "run", "run folder")
        write_json(place / "run" / "progress.json", {"steps": number})
        owner.release()

    users.victim.run(continue_run, 1)
    users.stranger.run(continue_run, 2)
    users.victim.run(continue_run, 3)
    with pytest.raises(UserError, match="run folder must belong to you"):
        users.victim.run(trees.check_tree, place, "run folder")
    (place / "run").chmod(0o777)
    with pytest.raises(UserError, match="run folder must belong to you"):
        users.victim.run(continue_run, 4)
    (place / "run").chmod(0o770)
    os.chown(place / "run", users.stranger.uid, users.stranger.gid)
    with pytest.raises((UserError, PermissionError)):
        users.victim.run(continue_run, 5)


@pytest.mark.parametrize("kind", ["file", "link", "pipe", "folder"])
def test_what_a_stranger_placed_in_a_folder_is_found(users, place, kind):
    folder = place / "run"
    makers = {
        "file": _make_file,
        "link": lambda path: path.symlink_to("/etc/passwd"),
        "pipe": os.mkfifo,
        "folder": Path.mkdir,
    }

    def place_it() -> None:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints").chmod(0o777)

    users.victim.run(_make, folder, 0o755)
    users.victim.run(place_it)
    users.stranger.run(makers[kind], folder / "checkpoints" / "step-000002")
    (folder / "checkpoints").chmod(0o755)  # as its owner would after a first refusal
    with pytest.raises(UserError, match=rf"step-000002, owner={users.stranger.name}"):
        users.victim.run(trees.check_tree, folder, "run folder")


def test_a_file_that_the_group_can_write_is_not_believed(users, place):
    def make() -> None:
        owned.make_folder(place / "run", "run folder")
        (place / "run").chmod(0o755)
        _make_file(place / "run" / "stop", 0o664)
        os.chown(place / "run" / "stop", -1, users.victim.project)

    users.victim.run(make)
    assert not users.victim.run(owned.is_own_file, place / "run" / "stop")
    with pytest.raises(PermissionError, match="must be yours"):
        users.victim.run(owned.read_own_file, place / "run" / "stop")


def test_nothing_of_a_stranger_and_nothing_behind_a_link_is_removed(users, place):
    def plant() -> None:
        _make(place / "hers", 0o777)
        _make_file(place / "hers" / "data", 0o666)
        (place / "link").symlink_to(users.victim.home)

    users.victim.run(_make_file, users.victim.home / "thesis")
    users.stranger.run(plant)
    for name in ("hers", "link"):
        with pytest.raises(PermissionError, match="must be yours"):
            users.victim.run(owned.remove_own, place / name)
    assert (place / "hers" / "data").exists()
    users.victim.run((place / "own link").symlink_to, place / "hers")
    users.victim.run(owned.remove_own, place / "own link")
    assert (place / "hers" / "data").exists()
    assert (users.victim.home / "thesis").exists()


def test_a_folder_is_not_put_in_place_of_a_strangers(users, place):
    def replace() -> None:
        with new_folder(place / "adapter") as temporary:
            (temporary / "file").write_text("")

    users.stranger.run(_make, place / "adapter", 0o777)
    with pytest.raises(UserError, match="a folder that is replaced must belong to you"):
        users.victim.run(replace)
    assert [path.name for path in place.iterdir()] == ["adapter"]


def test_buffers_in_shared_memory_that_a_stranger_made_are_refused(users, monkeypatch, tmp_path):
    from diablo_ds.zero import joining

    monkeypatch.setattr(joining, "_SHARED_MEMORY", tmp_path)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    buffer = tmp_path / f"deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_29500_1"
    buffer.touch()
    joining._check_shared_memory()
    os.chown(buffer, users.stranger.uid, users.stranger.gid)
    with pytest.raises(UserError, match=rf"_29500_1, owner={users.stranger.name}.*--master-port"):
        joining._check_shared_memory()


def test_caches_of_code_that_a_stranger_made_are_refused(users, place, monkeypatch):
    from diablo_ds.zero.build_lock import check_code_caches

    cache = place / "triton"
    users.stranger.run(_make, cache, 0o755)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    with pytest.raises(UserError, match=f"{cache}, owner=.*set TRITON_CACHE_DIR to another"):
        check_code_caches()


def test_offload_goes_to_a_folder_of_the_users_own(users, place):
    from diablo_ds.zero.offload_folders import offload_folder, private_offload

    nvme, run = place / "nvme", Path("/runs/a")
    _make(nvme, 0o1777)

    def offload() -> str:
        section = {"device": "nvme", "nvme_path": str(nvme)}
        with private_offload({"zero_optimization": {"offload_param": section}}, run):
            folder = Path(section["nvme_path"])
            assert folder.is_relative_to(nvme / f"diablo-ds-{os.getuid()}")
            assert {stat.S_IMODE(p.stat().st_mode) & 0o777 for p in nvme.rglob("*")} == {0o700}
            (folder / "weights").touch()
        assert list(nvme.iterdir()) == []
        return section["nvme_path"]

    first, second = users.victim.run(offload), users.stranger.run(offload)
    assert first != second
    assert offload_folder(nvme, run, 0) != offload_folder(nvme, Path("/runs/b"), 0)
    users.stranger.run(_make, nvme / f"diablo-ds-{users.victim.uid}", 0o777)
    with pytest.raises(UserError, match="folder for NVMe offload must belong to you"):
        users.victim.run(offload)


def _check_temporary(folder: Path) -> None:
    tempfile.tempdir = str(folder)
    trees.check_temporary_folder()


def test_a_folder_of_code_cannot_be_replaced_from_above(users, place):
    from diablo_ds.zero.build_lock import check_extensions

    folder = place / "cache" / "torch_extensions"
    for mode in (0o777, 0o1777, 0o755):  # a stranger's, whatever its mode
        users.stranger.run(_make, place / "cache", mode)
        with pytest.raises(UserError):
            users.victim.run(check_extensions, folder)
        shutil.rmtree(place / "cache")
    with pytest.raises(UserError, match=f"below {place}, owner=root"):  # the group can rename it
        users.victim.run(check_extensions, folder)
    place.chmod(0o3775)
    with pytest.raises(UserError, match=f"below {users.project}, owner=root"):
        users.victim.run(check_extensions, folder)
    users.project.chmod(0o3775)
    try:
        users.victim.run(check_extensions, folder)
        users.stranger.run(_make, place / "tmp", 0o1777)
        with pytest.raises(UserError, match=f"tmp, owner={users.stranger.name}.*set TMPDIR"):
            users.victim.run(_check_temporary, place / "tmp")
        users.victim.run(_check_temporary, Path("/tmp"))
    finally:
        users.project.chmod(0o2775)
