"""Model cards: what is in them, and that nothing private is."""

from __future__ import annotations

import json
import math

import pytest
import yaml
from huggingface_hub import ModelCard

from diablo_ds.adapter.storage import AdapterConfig
from diablo_ds.config.run import RunConfig
from diablo_ds.conversion.card import Training, base_licence, model_card
from diablo_ds.conversion.public_names import base_hub_name, hub_name, without_folders
from diablo_ds.files.layout import CARD_FILE, LOSS_PLOT, MANIFEST_FILE

CONFIG = AdapterConfig(
    "org/base",
    "f" * 64,
    {"model.layers.0.q_proj": 4, "model.layers.0.up_proj": 2},
    step=30,
    heldout_loss=1.25,
    library_versions={"torch": "2.13"},
    parent={"folder": "/secret/runs/first/adapter", "digest": "abc"},
)


def _training(tmp_path, **changes) -> Training:
    values = {
        "data": (str(tmp_path / "deep" / "pairs.jsonl"),),
        "output": str(tmp_path / "run"),
        "num_blocks": "4",
        "global_batch": 6,
    }
    counts = {"examples": 1234, "tokens": 56789, "files": {str(tmp_path / "pairs.jsonl"): [1, ""]}}
    return Training(
        run_config=RunConfig(**{**values, **changes}),
        ds_config_file=tmp_path / "zero3.json",
        world_size=2,
        num_steps=30,
        losses=[(step, 3 - step / 20) for step in range(1, 31)],
        heldout=[(0, math.nan), (30, 1.25)],
        data={"train": counts, "heldout": None},
        has_plot=True,
    )


def test_a_card_tells_of_base_results_data_and_training(tmp_path):
    text = model_card(CONFIG, 4096, _training(tmp_path), "mit")
    front = ModelCard(text).data
    assert front.base_model == "org/base"
    assert (front.library_name, front.license) == ("peft", "mit")
    assert yaml.safe_load(text.split("---")[1])["base_model_relation"] == "adapter"
    for part in (
        "4,096",
        "| 0 | not finite |",
        "| 30 | 1.2500 |",
        "| 30 | 1.5000 |",
        f"({LOSS_PLOT})",
        "1,234 examples; 56,789 tokens; read from `pairs.jsonl`",
        "deepspeed --num_gpus 2 launch/train.py --ds_config zero3.json --data pairs.jsonl",
        "--global-batch 6",
        "torch 2.13",
        "| folder | adapter |",
        'from_pretrained("org/base"',
    ):
        assert part in text, part
    assert text.count("| 1 | 2.9500 |") == 1  # a few points, the first and the last among them
    assert len([line for line in text.splitlines() if line.startswith("| ")]) < 100


def test_a_card_names_no_folder_of_the_machine(tmp_path):
    text = model_card(CONFIG, 1, _training(tmp_path, model=str(tmp_path / "base")))
    assert str(tmp_path) not in text
    assert "/secret" not in text
    assert "--output run" not in text


def test_a_base_without_a_name_on_the_hub_is_left_open(tmp_path):
    config = AdapterConfig(str(tmp_path), "f", {"a": 2})
    text = model_card(config, 1)
    assert ModelCard(text).data.base_model is None
    assert 'from_pretrained("BASE_MODEL"' in text
    assert "## Training" not in text


def test_the_default_base_and_data_have_names_on_the_hub(tmp_path):
    config = AdapterConfig("default", "f", {"a": 2})
    front = ModelCard(model_card(config, 1, _training(tmp_path, data=("default",)))).data
    assert front.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert front.datasets == ["openai/gsm8k"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("org/base", "org/base"),
        ("gpt2", "gpt2"),
        ("/cache/hub/models--org--my-base/snapshots/0a1/x.safetensors", "org/my-base"),
        ("/models/org/base", ""),
        ("./base", ""),
        ("~/base", ""),
        ('x"); import os; os.system("id") #', ""),
        ("hf://owner/$(id)", ""),
        ("owner/name\nevil: true", ""),
        ("", ""),
    ],
)
def test_a_hub_name_is_told_from_a_path(name, found):
    assert hub_name(name) == base_hub_name(name) == found


def test_a_relative_folder_that_exists_is_no_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "base").mkdir(parents=True)
    assert hub_name("models/base") == ""
    assert without_folders("models/base") == "models/base"
    assert without_folders("../base") == without_folders("~/x/base") == "base"


@pytest.mark.parametrize(
    ("text", "licence"),
    [("---\nlicense: mit\n---\n", "mit"), ("no front matter", ""), ("---\n: [\n---\n", "")],
)
def test_the_licence_is_that_of_the_base_models_card(text, licence, tmp_path):
    (tmp_path / CARD_FILE).write_text(text)
    assert base_licence(str(tmp_path), tmp_path) == licence
    assert base_licence(str(tmp_path), tmp_path / "none") == ""
    assert base_licence("default", tmp_path) == "apache-2.0"


def test_a_prepared_dataset_is_told_of_by_its_manifest(tmp_path):
    cached = "/cache/hub/datasets--org--pairs/snapshots/0a1/train.jsonl"
    part = dict.fromkeys(("rows", "cut", "tokens", "target_tokens", "longest", "largest_id"), 7)
    counts = dict.fromkeys(("bad", "too_long", "duplicates", "not_in_mix"), 0)
    manifest = {
        "tokenizer": {"name": str(tmp_path), "fingerprint": "f", "probe": [1]},
        "sources": [
            {"name": "pairs", "sha256": "s", "file": cached},
            {"name": "own", "sha256": "s", "file": str(tmp_path / "own.jsonl")},
        ],
        "val_sources": [],
        "excluded": [],
        "rows_in": {"pairs": 5, "own": 4},
        "rows_left_out": {**counts, "in_tests": {}},
        "licences": ["pairs: MIT"],
        "parts": {"train": {**part, "length_histogram": {"bin_width": 1, "counts": [7]}}},
    }
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(manifest))
    text = model_card(CONFIG, 1, _training(tmp_path, data=(str(tmp_path),)))
    assert "- 9 rows read: 5 pairs, 4 own" in text
    assert "- Licence, by the fields of the rows: pairs: MIT" in text
    assert str(tmp_path) not in text
    assert ModelCard(text).data.datasets == ["org/pairs"]
    (tmp_path / MANIFEST_FILE).write_text("{}")  # of another program
    assert "by its manifest" not in model_card(
        CONFIG, 1, _training(tmp_path, data=(str(tmp_path),))
    )
