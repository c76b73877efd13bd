"""Adapters of early versions: read with a note, converted, refused where they are damaged."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from diablo_ds.adapter import early_format
from diablo_ds.adapter.storage import AdapterConfig, load_adapter
from diablo_ds.errors import UserError
from diablo_ds.files.layout import ADAPTER_CONFIG_FILE, Kind, kind_of
from diablo_ds.ranks.log import logger
from diablo_ds.training.inspection import describe

CONFIG = {
    "base_model": "m",
    "base_fingerprint": "f",
    "num_blocks": {"a": 4, "b.c": 2},
    "dropout": 0.25,
    "format": 1,
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "early"
    folder.mkdir()
    (folder / "adapter.json").write_text(json.dumps(CONFIG))
    (folder / "generation_config.json").write_text('{"eos_token_id": [3]}')
    deltas = {"a.delta": torch.rand(4, 2, 3), "b.c.delta": torch.rand(2, 1, 1)}
    save_file(deltas, folder / "adapter.safetensors")
    return folder


def test_an_early_adapter_is_read_with_a_note(folder, monkeypatch):
    notes = []
    monkeypatch.setattr(logger, "warning", notes.append)
    tensors, config = load_adapter(folder)
    assert config == AdapterConfig("m", "f", {"a": 4, "b.c": 2}, 0.25)
    assert tensors["a.delta"].shape == (4, 2, 3)
    assert kind_of(folder) is Kind.ADAPTER
    assert "num_blocks=4" in describe(folder)
    assert len(notes) == 1
    assert f"python -m diablo_ds.adapter.early_format {folder} NEW" in notes[0]


def test_a_converted_adapter_is_the_same(folder, tmp_path):
    new = tmp_path / "new"
    early_format.main([str(folder), str(new)])
    assert (new / ADAPTER_CONFIG_FILE).is_file()
    assert not (new / "adapter.json").exists()
    assert json.loads((new / "generation_config.json").read_text()) == {"eos_token_id": [3]}
    (early, early_config), (present, config) = load_adapter(folder), load_adapter(new)
    assert config == early_config
    assert early.keys() == present.keys()
    assert all(torch.equal(early[name], present[name]) for name in early)
    for old, message in ((folder, "NEW must be a folder that does not exist"), (new, "OLD must")):
        with pytest.raises(SystemExit, match=message):
            early_format.main([str(old), str(new)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_blocks": [4]}, "num_blocks must be an integer from 1 for each layer"),
        ({"num_blocks": {"a": "4", "b.c": 2}}, "num_blocks must be an integer from 1"),
        ({"num_blocks": {"a": True, "b.c": 2}}, "num_blocks must be an integer from 1"),
        ({"num_blocks": {"a": 2, "b.c": 2}}, r"num_blocks, in_block, out_block.* for a "),
        ({"num_blocks": {"a": 4}}, r"1 unknown .*b\.c"),
        ({"num_blocks": {"a": 4, "b.c": 2, "d": 2}}, r"1 missing .*d\.delta"),
        ({"base_model": 7}, "base_model must be text"),
        ({"base_fingerprint": None}, "base_fingerprint must be text"),
        ({"dropout": "0"}, "dropout must be from 0 to 1"),
        ({"rank": 8}, r"must have the fields .*; got .*rank"),
        ({"format": [1]}, "must have format 1"),
    ],
)
def test_an_early_config_of_another_form_is_refused(folder, changes, message):
    (folder / "adapter.json").write_text(json.dumps({**CONFIG, **changes}))
    with pytest.raises(UserError, match=message):
        load_adapter(folder)
