from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from diablo_ds.config import RunConfig
from diablo_ds.run_folder import choose_run_folder, own_run_folder, reserve_run_folder


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_runs_without_a_name_that_start_together_get_a_folder_each():
    with ThreadPoolExecutor(8) as pool:
        owners = list(pool.map(lambda _: own_run_folder(RunConfig(model="a/tiny")), range(8)))
    folders = {owner.folder for owner in owners}
    assert len(folders) == 8
    assert all(folder.name.startswith("tiny-2") for folder in folders)
    for owner in owners:
        owner.release()


def test_a_reserved_folder_is_created_and_one_that_is_only_chosen_is_not(tmp_path):
    assert not choose_run_folder(RunConfig()).exists()
    assert not (tmp_path / "runs").exists()
    reserved = reserve_run_folder(RunConfig())
    assert list(reserved.iterdir()) == []
    owner = own_run_folder(RunConfig(output=str(reserved)))
    owner.release()


def test_a_folder_in_use_is_refused_with_its_owner_and_nothing_in_it_changes(tmp_path):
    config = RunConfig(output=str(tmp_path / "run"))
    owner = own_run_folder(config)
    half_written = owner.folder / "checkpoints" / ".step-000004.abcd.tmp"
    half_written.mkdir(parents=True)
    run_file = (owner.folder / "run.json").read_bytes()
    for start in (choose_run_folder, own_run_folder):
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()} of"):
            start(RunConfig(output=str(tmp_path / "run"), save_every=7))
    assert half_written.is_dir()
    assert (owner.folder / "run.json").read_bytes() == run_file
    owner.release()
    own_run_folder(config).release()
    assert not half_written.exists()


def test_a_refused_run_leaves_the_folder_to_the_next(tmp_path):
    config = RunConfig(output=str(tmp_path / "run"))
    own_run_folder(config).release()
    with pytest.raises(ValueError, match="must not hold another run"):
        own_run_folder(RunConfig(output=str(tmp_path / "run"), seed=1))
    own_run_folder(config).release()
