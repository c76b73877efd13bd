from __future__ import annotations

import re

import pytest

from diablo_ds.cli.run_options import DEFAULT_DS_CONFIG, RunFiles, build_run_config, find_ds_config
from diablo_ds.cli.run_options import settings_text as text_of
from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import load_settings, save_run_config
from diablo_ds.config.setting import settings_of
from diablo_ds.config.starts import BY_COMMAND_ALONE
from diablo_ds.files.atomic import write_text

GIVEN = {
    "nothing": {},
    "words": {
        "targets": ("q_proj", "re:.*(v|k)_proj$", "null", "1", "a: b", "- c", "#d", "ä\u00a0😀"),
        "layers": "0-3,8",
        "output": 'runs/it\'s "mine"\\x',
        "model": "hf://owner/name",
        "num_blocks": "64",
    },
    "long lists": {"data": tuple(f"part-{n}=some/long/folder/{n}.jsonl" for n in range(9))},
    "numbers": {"learning_rate": 1e-08, "seed": 2**63 - 1, "micro_batch": 2, "global_batch": 8},
    "flags": {"recompute": True, "packing": True, "keep_attention": True, "base_dropout": False},
    "words for open": {"precision": "fp32", "delta_path": "summed", "compile": "on"},
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_the_file_gives_the_same_settings(tmp_path, given):
    file = tmp_path / "mine.yaml"
    write_text(file, text_of(given, 1))
    assert build_run_config({"config": file}, 1) == build_run_config(given, 1)
    assert find_ds_config({"config": file}) == DEFAULT_DS_CONFIG
    assert text_of({"config": file}, 1) == file.read_text()  # also of a file that gives all


def test_what_a_start_decides_is_left_open(tmp_path):
    file = tmp_path / "mine.yaml"
    given = {"micro_batch": 2, "gradient_accumulation_steps": 3, "ds_config": tmp_path / "a b.json"}
    write_text(file, text_of(given, 2))
    assert build_run_config({"config": file}, 8).global_batch == 48
    assert find_ds_config({"config": file}) == tmp_path / "a b.json"
    lines = file.read_text().splitlines()
    assert {"learning-rate: auto", "delta-path: auto", "# num-blocks:", "# recompute:"} <= {*lines}
    assert "# global-batch:" in lines


def test_a_record_becomes_a_file_without_trust(tmp_path):
    recorded = RunConfig(seed=3, micro_batch=2, global_batch=8, trust_remote_code=True)
    ds_config = {"zero_optimization": {"stage": 1}}
    starts = [{"version": "1"}]
    save_run_config(recorded, tmp_path / "run.json", ds_config=ds_config, starts=starts)
    file = tmp_path / "mine.yaml"
    write_text(file, text_of({"config": tmp_path}, 1))
    settings = load_settings(file)
    assert (settings.settings["seed"], settings.settings["micro_batch"]) == (3, 2)
    assert not {*BY_COMMAND_ALONE} & settings.settings.keys()
    assert settings.ds_config == tmp_path / "run.json"


def test_each_setting_is_there_with_its_help_in_its_group():
    text = text_of({}, 1)
    shown = " ".join(text.replace("\n# ", " ").split())
    for setting in settings_of(RunConfig):
        if setting.name not in BY_COMMAND_ALONE:
            assert " ".join(setting.help.split()) in shown
            assert re.search(rf"^(# )?{setting.option[2:]}:", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 100
    assert text.index("--- model ") < text.index("\nmodel: ") < text.index("--- data ")
    assert "# Default: linear. Allowed: linear, cosine, constant\nschedule: linear\n" in text
    assert settings_of(RunFiles)[0].help in text
