"""Any file of settings or records: its content, or an error that names file and rule."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.fuzz.valid import EARLY_ADAPTER, MANIFEST
from diablo_ds.adapter.config_file import ConfigFile
from diablo_ds.adapter.layer_names import TargetRule
from diablo_ds.adapter.storage import load_adapter_config
from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import load_run_config, load_settings, save_run_config
from diablo_ds.data.prepare.manifest import load_manifest
from diablo_ds.data.text.tokenization import load_tokenizer
from diablo_ds.files.layout import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_TENSOR_FILE,
    EARLY_CONFIG_FILE,
    EARLY_TENSOR_FILE,
)
from diablo_ds.files.whole_tensors import save_tensors
from diablo_ds.launcher.cluster import read_hostfile
from diablo_ds.model.architecture import BaseSizes
from diablo_ds.zero.ds_config import complete_ds_config, load_ds_config
from diablo_ds.zero.ds_sections import SECTIONS
from tests.fuzz.errors import result_or_user_error
from tests.fuzz.mutations import VALUES, mutated
from tests.tokenizers_for_tests import save_metaspace, save_sentencepiece

CONFIG = '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}'
FIELDS = [field.name for field in dataclasses.fields(RunConfig)]
YAML = b"""learning-rate: 1e-4
targets: [q_proj, 'v_proj']
ds_config:
  zero_optimization: {stage: 2, overlap_comm: true}
"""
SHIPPED = sorted((Path(__file__).parents[2] / "ds_configs").glob("*.json"))
BASE = BaseSizes(hidden_size=32, total=10_000, layer=2_000, head=1_000)
ZERO_KEYS = [
    "stage",
    "reduce_bucket_size",
    "overlap_comm",
    "contiguous_gradients",
    "sub_group_size",
    "offload_param",
    "offload_optimizer",
    "stage3_prefetch_bucket_size",
    "leaf_module",
    "stage3_max_live_parameters",
    "zero_hpz_partition_size",
    "zero_quantized_weights",
    "stage3_param_persistence_threshold",
    "round_robin_gradients",
    "cpu_offload",
]
OFFLOAD_KEYS = ("device", "nvme_path", "pin_memory", "buffer_count", "ratio", "max_in_cpu")
SECTION_KEYS = [
    "enabled",
    "loss_scale",
    "initial_scale_power",
    "loss_scale_window",
    "hysteresis",
    "min_loss_scale",
    "verbose",
    "prof_ops",
    "profile_step",
    "module_depth",
    "block_size",
]
TOP_KEYS = [
    "train_batch_size",
    "gradient_clipping",
    "steps_per_print",
    "communication_data_type",
    "wall_clock_breakdown",
    "log_level",
    "tensorboard",
    "optimizer",
    "activation_checkpointing",
]


def _objects(keys, values):
    return st.dictionaries(st.sampled_from(keys), values, max_size=5)


ZERO = st.one_of(
    _objects(ZERO_KEYS, st.one_of(VALUES, _objects(OFFLOAD_KEYS, VALUES))),
    _objects(ZERO_KEYS, VALUES).map(lambda section: {**section, "stage": 3}),
)
DS_CONFIGS = st.one_of(
    st.fixed_dictionaries({"zero_optimization": st.one_of(ZERO, VALUES)}),
    _objects(SECTIONS, st.one_of(_objects(SECTION_KEYS, VALUES), VALUES)),
    _objects(TOP_KEYS, VALUES),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@given(values=st.one_of(_objects(FIELDS, VALUES), VALUES))
def test_any_values_in_a_run_config(values, folder):
    path = folder / "run.json"
    path.write_text(json.dumps(values))
    config = result_or_user_error(lambda: load_run_config(path))
    if config is not None:
        save_run_config(config, path)
        assert load_run_config(path) == config


@given(data=mutated([json.dumps(dataclasses.asdict(RunConfig()), indent=1).encode()]))
def test_damaged_run_configs(data, folder):
    path = folder / "run.json"
    path.write_bytes(data)
    result_or_user_error(lambda: load_run_config(path))


@given(data=mutated([YAML, b"seed: 3\ndata: &a [x]\n"]))
def test_damaged_run_configs_in_yaml(data, folder):
    path = folder / "run.yaml"
    path.write_bytes(data)
    result_or_user_error(lambda: load_settings(path))


def _read_ds_config(path):
    values = result_or_user_error(lambda: load_ds_config(path), path)
    run_config = RunConfig(micro_batch=2, global_batch=8)
    if values is not None:
        result_or_user_error(
            lambda: complete_ds_config(
                values, run_config, world_size=2, base=BASE, source="ds.json"
            )
        )


@given(values=DS_CONFIGS)
def test_any_values_in_a_deepspeed_config(values, folder):
    (folder / "ds.json").write_text(json.dumps(values))
    _read_ds_config(folder / "ds.json")


@given(data=mutated([path.read_bytes() for path in SHIPPED]))
def test_damaged_deepspeed_configs(data, folder):
    (folder / "ds.json").write_bytes(data)
    _read_ds_config(folder / "ds.json")


@given(data=mutated([b"# hosts\nnode-a slots=4\nnode-b slots=4 # old\n", b"10.0.0.1 slots=1"]))
def test_damaged_hostfiles(data, folder):
    (folder / "hosts").write_bytes(data)
    result_or_user_error(lambda: read_hostfile(folder / "hosts"), folder / "hosts")


ADAPTER = ConfigFile("m", TargetRule(("q_proj",)), 4, num_deltas=1).as_json()
ADAPTER_FORMS = {ADAPTER_CONFIG_FILE: ADAPTER, EARLY_CONFIG_FILE: EARLY_ADAPTER}


def _write_deltas(folder):
    delta = torch.zeros(4, 2, 2)
    save_tensors(folder / ADAPTER_TENSOR_FILE, {"base_model.model.a.q_proj.diablo_delta": delta})
    save_tensors(folder / EARLY_TENSOR_FILE, {"a.q_proj.delta": delta})


@pytest.mark.parametrize("name", ADAPTER_FORMS)
@given(values=_objects([*ADAPTER, "exclude_modules", "layers_to_transform"], VALUES))
def test_any_values_in_an_adapter_config(name, values, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    _write_deltas(folder)
    (folder / name).write_text(json.dumps({**ADAPTER_FORMS[name], **values}))
    result_or_user_error(lambda: load_adapter_config(folder), folder)


MANIFEST_FILE = json.dumps(MANIFEST).encode()


@given(data=mutated([MANIFEST_FILE]))
def test_damaged_manifests(data, folder):
    dataset = folder / "dataset"
    dataset.mkdir(exist_ok=True)
    (dataset / "manifest.json").write_bytes(data)
    result_or_user_error(lambda: load_manifest(dataset), dataset)


def test_the_valid_forms_are_valid(tmp_path):
    (tmp_path / "manifest.json").write_bytes(MANIFEST_FILE)
    assert load_manifest(tmp_path)["rows_in"] == {"n": 3}
    _write_deltas(tmp_path)
    for name in (EARLY_CONFIG_FILE, ADAPTER_CONFIG_FILE):
        (tmp_path / name).write_text(json.dumps(ADAPTER_FORMS[name]))
        assert load_adapter_config(tmp_path).num_blocks == {"a.q_proj": 4}


@pytest.fixture(scope="module")
def tokenizer_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    files = {
        "tokenizer.json": save_metaspace(folder / "meta") / "tokenizer.json",
        "a.model": save_sentencepiece(folder / "a.model"),
    }
    return {name: path.read_bytes() for name, path in files.items()}


def _load_tokenizer(folder, name, content):
    (folder / name).write_bytes(content)
    (folder / "tokenizer_config.json").write_text(CONFIG)
    path = folder / name if name == "a.model" else folder
    return result_or_user_error(lambda: load_tokenizer(path), path)


@pytest.mark.parametrize("name", ["tokenizer.json", "a.model"])
@given(data=st.data())
def test_damaged_tokenizers(name, data, tokenizer_files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")  # a new one, since a folder's tokenizer is cached
    _load_tokenizer(folder, name, data.draw(mutated([tokenizer_files[name]])))


def test_undamaged_tokenizers_are_loaded(tokenizer_files, tmp_path):
    for name, content in tokenizer_files.items():
        assert _load_tokenizer(tmp_path, name, content) is not None
