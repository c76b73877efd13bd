"""Work folders are found again by their own command alone, and nothing else is removed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil

import pytest

from diablo_ds.errors import UserError
from diablo_ds.files import work_folders
from diablo_ds.files.work_folders import find_work_folder, open_work_folder
from tests.strangers import needs_root, users

__all__ = ["users"]  # pytest finds the fixture here


class _InterruptedError(Exception):
    pass


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _work(output, inputs, *, name="part"):
    """Continue an output up to an interruption; return what was noted before."""
    before = []
    with (
        contextlib.suppress(_InterruptedError),
        open_work_folder(output, inputs, "output") as work,
    ):
        before += work.notes
        (work.path / name).write_text("work")
        work.note(name)
        raise _InterruptedError
    return before


def test_finished_work_is_found_again_from_the_same_inputs(tmp_path):
    output = tmp_path / "out"
    assert _work(output, {"a": 1}) == []
    folder, notes = find_work_folder(output)
    assert notes == ["part"]
    assert folder.parent == tmp_path
    assert _work(output, {"a": 1}, name="second") == ["part"]
    assert find_work_folder(output) == (folder, ["part", "second"])
    assert _work(output, {"a": 2}, name="third") == []
    assert find_work_folder(output) == (folder, ["third"])
    assert not (folder / "part").exists()
    with open_work_folder(output, {"a": 2}, "output") as work:
        work.become(output)
    assert [path.name for path in output.iterdir()] == ["third"]
    assert find_work_folder(output) is None
    assert not folder.exists()


def test_nothing_remains_of_what_was_not_finished(tmp_path, cache):
    output = tmp_path / "out"
    with (
        contextlib.suppress(_InterruptedError),
        open_work_folder(output, {}, "output") as work,
    ):
        (work.path / "half").touch()
        raise _InterruptedError
    with (
        contextlib.suppress(UserError),
        open_work_folder(output, {}, "output", keep_after_mistake=False) as work,
    ):
        work.note("part")
        raise UserError
    with open_work_folder(output, {}, "output"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert not list((cache / "diablo_ds" / "work").glob("*.jsonl"))


def test_one_process_at_a_time(tmp_path):
    with (
        open_work_folder(tmp_path / "out", {}, "output that is made") as work,
        pytest.raises(UserError, match="output that is made must not be in use"),
        open_work_folder(tmp_path / "out", {}, "output that is made"),
    ):
        pass
    assert not work.path.exists()


def test_names_cannot_be_known_before_and_differ_by_output(tmp_path):
    folders = set()
    for name in ("a", "b", "a"):
        with open_work_folder(tmp_path / name, {}, "output") as work:
            folders.add(work.path)
    assert len(folders) == 3


def test_another_folder_of_the_users_that_gets_the_name_is_left_alone(tmp_path):
    output, thesis = tmp_path / "out", tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "thesis.tex").touch()
    _work(output, {})
    folder, _ = find_work_folder(output)
    folder.rename(tmp_path / "away")
    thesis.rename(folder)
    assert find_work_folder(output) is None
    with open_work_folder(output, {}, "output") as work:
        assert not work.is_continued
        assert work.path != folder
        hidden = work.path.with_name("hidden")
        work.path.rename(hidden)
        folder.rename(work.path)
    assert [path.name for path in work.path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"output": 1}', "{}\n{}\n"])
def test_a_damaged_record_costs_only_the_work(tmp_path, damage):
    _work(tmp_path / "out", {})
    work_folders._record_file(tmp_path / "out").write_text(damage)
    with open_work_folder(tmp_path / "out", {}, "output") as work:
        assert not work.is_continued


def test_a_note_that_was_cut_off_is_left_out(tmp_path):
    _work(tmp_path / "out", {})
    file = work_folders._record_file(tmp_path / "out")
    with file.open("a") as opened:
        opened.write('{"chunk')
    assert find_work_folder(tmp_path / "out")[1] == ["part"]


def test_without_a_cache_folder_there_is_only_nothing_to_continue(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with open_work_folder(tmp_path / "out", {}, "output") as work:
        work.note("part")
    assert not work.path.exists()


# --- with a stranger -----------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("old_name", [True, False])
def test_what_a_stranger_plants_is_neither_used_nor_removed(users, old_name):
    output = users.project / "math"
    thesis = users.victim.home / "thesis"

    def interrupt() -> None:
        thesis.mkdir(exist_ok=True)
        (thesis / "chunk-00000000.arrow").touch()
        _work(output, {"a": 1})

    def plant() -> None:
        found = list(users.project.glob(".math.*.partial"))
        for path in [users.project / ".math.partial"] if old_name else found:
            if path.exists():
                path.rename(users.project / f"{path.name}-away")
            path.symlink_to(thesis)

    def run() -> bool:
        with open_work_folder(output, {"a": 1}, "output") as work:
            return work.is_continued

    users.victim.run(interrupt)
    users.stranger.run(plant)
    assert users.victim.run(run) == old_name
    assert [path.name for path in thesis.iterdir()] == ["chunk-00000000.arrow"]
    for path in users.project.iterdir():
        path.unlink() if path.is_symlink() else shutil.rmtree(path)


@needs_root
def test_a_strangers_record_is_not_read(users):
    output = users.project / "math"

    def make_record() -> None:
        _work(output, {})

    users.victim.run(make_record)
    file = users.victim.run(work_folders._record_file, output)
    os.chown(file, users.stranger.uid, users.stranger.gid)
    assert json.loads(file.read_text().splitlines()[0])["output"] == str(output)
    assert users.victim.run(find_work_folder, output) is None
