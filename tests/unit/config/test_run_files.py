from __future__ import annotations

import json
from pathlib import Path

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import (
    load_parent,
    load_run_config,
    load_settings,
    read_ds_config,
    save_run_config,
)
from diablo_ds.errors import UserError


def test_saved_and_loaded_config_is_the_same(tmp_path):
    config = RunConfig(targets=("q_proj", "v_proj"), learning_rate=1e-4, recompute=True)
    save_run_config(config, tmp_path / "run.json")
    assert load_run_config(tmp_path / "run.json") == config


def test_settings_by_their_former_names_are_read(tmp_path):
    former = {"gradient_checkpointing": True, "checkpointed_layers": 2}
    (tmp_path / "run.json").write_text(json.dumps(former))
    now = RunConfig(recompute=True, recomputed_layers=2)
    assert load_run_config(tmp_path / "run.json") == now


@pytest.mark.parametrize(
    "text",
    [
        '{"seed": 1, "seed": 2}',
        '{"learning_rate": NaN}',
        '{"learning_rate": 1e999}',
        '{"seed": ' + "7" * 5000 + "}",
        '{"data": ["\\ud800"]}',
        '{"data": "\\ud800"}',
        '{"targets": "q_proj"}',
        '{"targets": [1]}',
        '{"seed": null}',
        '{"seed": {}}',
        '{"targets": null}',
        '{"precision": ["bf16"]}',
        '{"seed": 1.0}',
        "null",
        "",
        "7",
        '{"a": ' * 100_000,
        "\0",
        '{"max_steps": "8"}',
        '{"stream": 1}',
        '{"": 1}',
    ],
    ids=lambda text: text[:30],
)
def test_run_configs_of_any_shape_are_refused_by_name(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"must|seed=") as caught:
        load_run_config(tmp_path / "run.json")
    assert type(caught.value) is UserError


def test_a_byte_order_mark_is_no_error_and_utf16_is_named(tmp_path):
    (tmp_path / "run.json").write_text('{"seed": 3}', encoding="utf-8-sig")
    assert load_run_config(tmp_path / "run.json").seed == 3
    (tmp_path / "run.json").write_text('{"seed": 3}', encoding="utf-16")
    with pytest.raises(UserError, match=r"run\.json, line 1, .* it is UTF-16"):
        load_run_config(tmp_path / "run.json")


def test_unknown_keys_and_malformed_files_are_named(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"lerning_rate": 1e-4}))
    with pytest.raises(UserError, match=r"lerning_rate in .*run\.json; did you mean learning_rate"):
        load_run_config(path)
    path.write_text(json.dumps({"Xyz": 1}))
    with pytest.raises(UserError, match=r"Xyz in .*run\.json; known are .*learning_rate"):
        load_run_config(path)
    path.write_text('{\n  "seed": 1,\n}')
    with pytest.raises(UserError, match=r"run\.json, line 3, column 1"):
        load_run_config(path)
    path.write_text("[]")
    with pytest.raises(UserError, match="must be an object"):
        load_run_config(path)
    with pytest.raises(UserError, match=r"missing\.json"):
        load_run_config(tmp_path / "missing.json")


def test_the_record_of_an_initial_adapter_is_no_setting(tmp_path):
    run_config, parent = RunConfig(init_adapter="runs/first"), {"folder": "runs/first/adapter"}
    save_run_config(run_config, tmp_path / "run.json", parent)
    assert load_parent(tmp_path / "run.json") == parent
    assert load_run_config(tmp_path / "run.json") == run_config
    save_run_config(run_config, tmp_path / "run.json")
    assert load_parent(tmp_path / "run.json") is None
    assert load_parent(tmp_path / "none.json") is None


@pytest.mark.parametrize("former", ["", "jsonl"])
def test_the_former_names_of_the_corpus_auto_are_read(former, tmp_path):
    (tmp_path / "run.json").write_text(
        json.dumps({"data": "d", "heldout_data": "", "corpus": former, "column": ["prompt=Q"]})
    )
    run_config = load_run_config(tmp_path / "run.json")
    assert (run_config.corpus, run_config.column) == ("auto", ("prompt=Q",))
    assert (run_config.data, run_config.heldout_data) == (("d",), ())


YAML = """\
# as a user writes it
learning-rate: 1e-4
targets: [q_proj, "v_proj"]
num_blocks: 32
compile: on
gradient-accumulation-steps: 4
ds_config:
  zero_optimization: {stage: 2}
"""


def test_a_file_of_a_user_may_be_yaml_with_dashes_and_hold_the_deepspeed_config(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(YAML)
    found = load_settings(path)
    assert found.settings == {
        "learning_rate": 1e-4,
        "targets": ("q_proj", "v_proj"),
        "num_blocks": "32",
        "compile": "on",
    }
    assert (found.ds_config, found.gradient_accumulation_steps) == (path, 4)
    assert not found.is_record
    assert read_ds_config(path) == {"zero_optimization": {"stage": 2}}
    path.write_text("ds-config: ds_configs/zero2.json\n")
    assert load_settings(path).ds_config == Path("ds_configs/zero2.json")


def test_auto_stands_for_a_number_that_is_left_open(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("learning-rate: auto\nmicro-batch: auto\n")
    assert load_settings(path).settings == {"learning_rate": 0.0, "micro_batch": 0}
    path.write_text("warmup-steps: auto\n")
    with pytest.raises(UserError, match="warmup_steps must be int; got warmup_steps='auto'"):
        load_settings(path)


def test_a_run_folder_stands_for_its_file(tmp_path):
    starts = [{"version": "1"}]
    save_run_config(RunConfig(seed=3), tmp_path / "run.json", ds_config={}, starts=starts)
    found = load_settings(tmp_path)
    assert (found.settings["seed"], found.is_record) == (3, True)
    assert found.ds_config == tmp_path / "run.json"
    assert read_ds_config(tmp_path) == {}
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"must be a run folder; got .*other without run\.json"):
        load_settings(tmp_path / "other")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning-rate: 1\nlearning_rate: 2", "given once; got learning_rate twice"),
        ("lr: 1", r"got lr in .*; did you mean learning_rate\?"),
        ("seed: many", r"seed must be int; got seed='many', in .*mine\.yaml"),
        ("ds_config: 3", "ds_config must be a DeepSpeed config or the path of its file"),
        ("gradient_accumulation_steps: 0", "gradient_accumulation_steps must be an integer >= 1"),
        ("- seed", "must be an object; got list"),
    ],
)
def test_files_of_users_are_checked(text, message, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_settings(tmp_path / "mine.yaml")


def test_a_record_finds_its_inputs_from_another_working_folder(tmp_path, monkeypatch):
    there, here = tmp_path / "there", tmp_path / "here"
    for folder, names in ((there, ("pairs.jsonl", "both.jsonl")), (here, ("both.jsonl",))):
        folder.mkdir()
        for name in names:
            (folder / name).touch()
    run_config = RunConfig(
        data=("pairs.jsonl", "mine=pairs.jsonl", "both.jsonl"),
        model="org/name",
        eval_tasks=("jsonl",),
        eval_task_data=("jsonl=pairs.jsonl",),
    )
    starts = [{"working_folder": str(there)}]
    save_run_config(run_config, there / "run.json", starts=starts)
    monkeypatch.chdir(here)
    found = load_settings(there).settings
    pairs = f"{there}/pairs.jsonl"
    assert found["data"] == (pairs, f"mine={pairs}", "both.jsonl")
    assert found["eval_task_data"] == (f"jsonl={pairs}",)
    assert found["model"] == "org/name"
