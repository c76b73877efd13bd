from __future__ import annotations

import json

import pytest

from diablo_ds.files.layout import (
    ADAPTER_CONFIG_FILE,
    CHECKSUMS_FILE,
    EARLY_CONFIG_FILE,
    Kind,
    RunFolder,
    checksums_file,
    kind_of,
)

LISTED = json.dumps({"format": 1, "files": {}})
RECORD = json.dumps({"parts": {}})


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"run.json": "{}", "adapter/adapter_config.json": "{}"}, Kind.RUN),
        (
            {"checksums.json": LISTED, "adapter_config.json": "{}", "state.json": "{}"},
            Kind.CHECKPOINT,
        ),
        ({"manifest.json": LISTED, "adapter.json": "{}"}, Kind.CHECKPOINT),
        ({"optimizer.safetensors": "", "adapter.json": "{}"}, Kind.CHECKPOINT),
        ({"manifest.json": RECORD, "train/state.json": "{}"}, Kind.DATASET),
        ({"manifest.json": "damaged", "train/state.json": "{}"}, Kind.DATASET),
        ({"dataset_info.json": "{}", "state.json": "{}"}, Kind.DATASET),
        ({"adapter.safetensors": ""}, Kind.ADAPTER),
        ({"adapter.json": "{}", "generation_config.json": "{}"}, Kind.ADAPTER),
        ({"adapter_model.safetensors": ""}, Kind.ADAPTER),
        ({"adapter_config.json": "{}", "README.md": ""}, Kind.ADAPTER),
        ({"step-000004/checksums.json": LISTED}, Kind.CHECKPOINTS),
        ({"attempt-001/rank-00000.json": "{}"}, Kind.LOGS),
        ({"config.json": "{}", "model.safetensors": ""}, Kind.BASE_MODEL),
        ({"plan.json": "{}"}, Kind.PLAN),
        ({"train.jsonl": "{}"}, Kind.OTHER),
        ({}, Kind.EMPTY),
    ],
)
def test_a_folder_is_told_by_what_is_in_it(files, kind, tmp_path):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert kind_of(tmp_path) is kind


def test_a_path_that_is_no_folder_is_told_too(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    assert kind_of(tmp_path / "run.json") is Kind.FILE
    assert kind_of(tmp_path / "none") is Kind.NOTHING


def test_checksums_have_one_name_and_are_read_under_the_early_one(tmp_path):
    assert checksums_file(tmp_path).name == CHECKSUMS_FILE
    (tmp_path / "manifest.json").write_text(LISTED)
    assert checksums_file(tmp_path).name == "manifest.json"
    (tmp_path / CHECKSUMS_FILE).write_text(LISTED)
    assert checksums_file(tmp_path).name == CHECKSUMS_FILE


@pytest.mark.parametrize("progress", [None, "garbage", "{}", "[]"])
@pytest.mark.parametrize("has_adapter", [False, True])
def test_a_run_of_an_early_version_is_done_when_it_has_its_adapter(progress, has_adapter, tmp_path):
    run_folder = RunFolder(tmp_path)
    if progress is not None:
        run_folder.progress.write_text(progress)
    if has_adapter:
        run_folder.adapter.mkdir()
        (run_folder.adapter / "adapter.json").write_text("{}")
    assert run_folder.is_done() == has_adapter
    assert run_folder.num_steps() is None


@pytest.mark.parametrize("adapter_file", [None, ADAPTER_CONFIG_FILE, EARLY_CONFIG_FILE])
@pytest.mark.parametrize("done", [False, True])
def test_a_run_is_done_when_it_says_so_and_has_its_adapter(adapter_file, done, tmp_path):
    run_folder = RunFolder(tmp_path / "a b")
    run_folder.adapter.mkdir(parents=True)
    if adapter_file:
        (run_folder.adapter / adapter_file).write_text("{}")
    run_folder.write_progress(9, 3, done=done)
    assert run_folder.num_steps() == 9
    assert run_folder.is_done() == (bool(adapter_file) and done)
