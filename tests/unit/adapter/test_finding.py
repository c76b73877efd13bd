"""The adapter that a path leads to."""

from __future__ import annotations

import pytest

from diablo_ds.adapter.finding import find_adapter
from diablo_ds.errors import UserError
from diablo_ds.files.layout import (
    ADAPTER_CONFIG_FILE,
    OPTIMIZER_FILE,
    RunFolder,
    checkpoint_folder,
)


def _touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run")
    _touch(run.run_config)
    for step in (2, 4):
        _touch(checkpoint_folder(run.checkpoints, step) / OPTIMIZER_FILE)
    _touch(run.adapter / ADAPTER_CONFIG_FILE)
    return run


def test_an_adapter_a_checkpoint_and_a_run_lead_to_one(run):
    checkpoint = checkpoint_folder(run.checkpoints, 2)
    assert find_adapter(run.adapter) == run.adapter
    assert find_adapter(run.path) == run.adapter
    assert find_adapter(checkpoint) == checkpoint


def test_a_run_that_is_not_done_names_its_last_checkpoint(run):
    (run.adapter / ADAPTER_CONFIG_FILE).unlink()
    with pytest.raises(UserError, match=r"not done; name a checkpoint, such as .*step-000004"):
        find_adapter(run.path)
    with pytest.raises(UserError, match=r"a folder of checkpoints; .*step-000004"):
        find_adapter(run.checkpoints)


def test_a_folder_of_adapters_that_peft_saved_names_one(tmp_path):
    for name in ("math", "code"):
        _touch(tmp_path / name / ADAPTER_CONFIG_FILE)
    _touch(tmp_path / "README.md")
    with pytest.raises(UserError, match=r"holds code, math; name one of them, such as .*code"):
        find_adapter(tmp_path)


def test_anything_else_is_refused_by_what_it_is(tmp_path):
    _touch(tmp_path / "base" / "config.json")
    with pytest.raises(UserError, match=r"got .*base, a base model"):
        find_adapter(tmp_path / "base")
    with pytest.raises(UserError, match=r"got .*none, which does not exist"):
        find_adapter(tmp_path / "none")
