from __future__ import annotations

import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from diablo_ds.config.continuation import keep_recorded
from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.training.run_folder import (
    choose_run_folder,
    own_run_folder,
    record_run,
    recorded_config,
    reserve_run_folder,
)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def _begin(run_config):
    """Own a folder and write its run.json, as a start does; return the owner."""
    owner = own_run_folder(run_config)
    record_run(owner.folder, run_config)
    return owner


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
    owner = _begin(config)
    half_written = owner.folder / "checkpoints" / ".step-000004.abcd.tmp"
    half_written.mkdir(parents=True)
    run_file = (owner.folder / "run.json").read_bytes()
    for start in (choose_run_folder, own_run_folder):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} of"):
            start(RunConfig(output=str(tmp_path / "run"), save_every=7))
    # A job that will wait in the queue until this one is over may be submitted.
    assert choose_run_folder(config, for_later=True) == owner.folder
    assert half_written.is_dir()
    assert (owner.folder / "run.json").read_bytes() == run_file
    owner.release()
    own_run_folder(config).release()
    assert not half_written.exists()


def test_a_refused_run_leaves_the_folder_to_the_next(tmp_path):
    config = RunConfig(output=str(tmp_path / "run"))
    _begin(config).release()
    with pytest.raises(UserError, match="must not hold another run"):
        own_run_folder(RunConfig(output=str(tmp_path / "run"), seed=1))
    own_run_folder(config).release()


def test_a_run_of_an_earlier_version_keeps_its_order_of_data(tmp_path):
    config = RunConfig(output=str(tmp_path / "run"))
    _begin(RunConfig(output=config.output, data_order="hashed")).release()
    assert recorded_config(config.output).data_order == "hashed"
    file = tmp_path / "run" / "run.json"
    values = json.loads(file.read_text())
    values.pop("data_order")
    file.write_text(json.dumps(values))
    recorded = recorded_config(config.output)
    assert recorded.data_order == "seed-plus-epoch"
    assert keep_recorded(config, recorded).data_order == "seed-plus-epoch"
    choose_run_folder(config)
    with pytest.raises(UserError, match="data_order: 'seed-plus-epoch', now 'hashed'"):
        choose_run_folder(RunConfig(output=config.output, data_order="hashed"))


def test_a_refused_run_says_how_a_new_one_starts_from_the_adapter(tmp_path):
    config = RunConfig(output=str(tmp_path / "run"))
    _begin(config).release()
    other = dataclasses.replace(config, seed=1)
    with pytest.raises(UserError, match=r"leave out --seed; .* another --output$"):
        choose_run_folder(other)
    adapter = tmp_path / "run" / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=f"--init-adapter {tmp_path}/run to start from what"):
        choose_run_folder(other)
    with pytest.raises(UserError, match=r"another --output$"):
        choose_run_folder(dataclasses.replace(config, targets=("q_proj",)))
