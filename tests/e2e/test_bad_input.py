"""Each mistake a user can make: a message that names it, no traceback, exit code not 0."""

from __future__ import annotations

import gzip
import json
import shutil
import socket

import pytest

from diablo_ds.ranks.exit_codes import EXIT_PORT_IN_USE
from tests import forked
from tests.e2e.commands import ROOT, assert_user_error, deepspeed, losses
from tests.tiny import save_model

pytestmark = pytest.mark.e2e


def _fails(options, *changes, parts, command="train"):
    assert_user_error(forked.diablo_ds(command, *options, *changes, check=False), *parts)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ("--targets w1", ["each target must match", "target='w1'", "q_proj"]),
        ("--num-blocks 64", ["num_blocks must divide", "k_proj", "nearest that work: 16"]),
        ("--layers 0-5", ["layers must be ranges of existing decoder layers"]),
        ("--micro-batch 3", ["global_batch must be a multiple", "micro_batch may be 1, 2, 4"]),
        ("--precision fp16", ["fp16", "needs a GPU", "use bf16 or fp32"]),
        ("--max-length 3", ["at least one example of at most 3 tokens"]),
        ("--max-length 9 --overlong error", ["must fit max_length", "longer than max_length=9"]),
        ("--model ./nowhere", ["model must be an existing folder", "./nowhere"]),
        ("--data nowhere.jsonl", ["data must be an existing file", "nowhere.jsonl"]),
        ("--ds-config nowhere.json", ["nowhere.json"]),
        ("--config nowhere.json", ["nowhere.json"]),
        ("--learning-rate -1", ["learning_rate must be >= 0"]),
        ("--gradient-accumulation-steps 2", ["not both", "global_batch=4"]),
        ("--memory-budget 1e-6", ["memory_budget must hold the run", "the least is 0.00 GB"]),
    ],
)
def test_wrong_settings_are_named(changes, parts, options, tmp_path):
    if "fp16" in changes:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("fp16 works on a GPU")
    _fails(options, *changes.split(), "--output", tmp_path / "run", parts=parts)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("{\n  'stage': 3\n}", ["bad.json, line 2, column 3"]),
        ('{"zero_optimization": {"stge": 3}}', ["known keys only", "stge", "bad.json"]),
        ('{"gradient_clipping": 0.1}', ["must agree", "gradient_clipping=0.1", "1.0"]),
        ('{"optimizer": {"type": "Adam"}}', ["policy only", "optimizer", "remove optimizer"]),
        ('{"bf16": true}', ["bf16 must be a JSON object", "got True", "bad.json"]),
        (
            '{"zero_optimization": {"stage": 3, "reduce_bucket_size": "5e8"}}',
            ["values that DeepSpeed takes", "reduce_bucket_size='5e8'", "bad.json", "integer"],
        ),
        ('{"csv_monitor": {"output_path": "/tmp"}}', ["must not write metrics elsewhere"]),
    ],
)
def test_wrong_deepspeed_configs_are_named(text, parts, options, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(text)
    _fails(options, "--ds_config", path, "--output", tmp_path / "run", parts=parts)


def test_wrong_run_config_keys_are_named(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"modle": "x"}))
    parts = ["known keys only", "modle", str(path)]
    _fails([], "--config", path, parts=parts)


def test_a_row_that_cannot_be_text_does_not_end_a_stream(options, tmp_path):
    rows = [json.dumps({"prompt": f"{i}+1=", "completion": f"{i + 1}"}) for i in range(12)]
    rows[5] = '{"prompt": "\\ud800", "completion": "x"}'
    rows[7] = '{"prompt": "x", "completion": "y", "n": ' + "7" * 5000 + "}"
    rows[9] = "[" * 100_000
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(rows))
    parts = ["must be at most max_bad_rows=0.01; got 3 of 12", f"{path}, line 6", "surrogate"]
    _fails(options, "--data", path, parts=parts)
    run = ["--data", path, "--stream", "--max-bad-rows", 0.25, "--max-steps", 4]
    result = forked.diablo_ds("train", *options, *run, "--output", tmp_path / "run")
    assert "rows of the stream skipped" in result.stderr


def test_a_truncated_file_is_named(options, tmp_path):
    path = tmp_path / "d.jsonl.gz"
    rows = "".join(f'{{"prompt": "{i}", "completion": "{i * i}"}}\n' for i in range(2000))
    path.write_bytes(gzip.compress(rows.encode())[:-500])
    _fails(options, "--data", path, parts=["source file must be undamaged", str(path)])


def test_an_empty_dataset_is_named(options, tmp_path):
    path = tmp_path / "empty.jsonl"
    path.touch()
    _fails(options, "--data", path, parts=["at least one row; got none", str(path)])


def test_a_wrong_model_folder_is_named(options, model, tmp_path):
    (tmp_path / "empty").mkdir()
    _fails(options, "--model", tmp_path / "empty", parts=["must hold a config.json"])
    shutil.copytree(model, tmp_path / "headless")
    (tmp_path / "headless" / "model.safetensors").unlink()
    _fails(options, "--model", tmp_path / "headless", parts=["must hold *.safetensors files"])


def test_a_checkpoint_without_a_tensor_of_the_model_is_refused(options, model, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(model, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for ds_file in ("zero2.json", "zero3.json"):
        ds_config = ROOT / "ds_configs" / ds_file
        parts = ["checkpoint must hold every tensor", "model.layers.1.mlp.up_proj.weight"]
        _fails(options, "--model", folder, "--ds_config", ds_config, parts=parts)


def test_an_output_folder_of_another_run_is_left_alone(options, tmp_path):
    folder = tmp_path / "run"
    forked.diablo_ds("train", *options, "--max-steps", 2, "--output", folder)
    before = losses(folder)
    parts = ["must not hold another run", "with seed: 0, now 1; ", "leave out --seed"]
    _fails(options, "--seed", 1, "--output", folder, parts=parts)
    assert losses(folder) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    _fails(options, "--output", tmp_path / "other", parts=["must be new, empty or hold this run"])
    parts = ["output must be a folder; got a file"]
    _fails(options, "--output", tmp_path / "other" / "thesis.txt", parts=parts)
    parts = ["output folder must be writable"]
    _fails(options, "--output", "/proc/nowhere/run", parts=parts)


def test_resuming_with_another_model_of_the_same_shape_is_refused(options, model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "model")
    run = ["--model", copy, "--output", tmp_path / "run", "--max-steps", 2]
    forked.diablo_ds("train", *options, *run)
    shutil.rmtree(copy)
    shutil.rmtree(tmp_path / "run" / "adapter")  # the run is not done
    save_model(copy, initializer_range=1.0)  # other weights under the same name
    parts = ["must be loaded on the base model it was trained on", "fingerprint"]
    _fails(options, *run, parts=parts)


def test_inspecting_nothing_is_named(tmp_path):
    for path, part in (
        (tmp_path / "nowhere", "nowhere, which does not exist"),
        (
            tmp_path,
            "path must be a run folder, a checkpoint, an adapter, a prepared dataset",
        ),
    ):
        _fails([], path, command="inspect", parts=[part])


def test_one_message_is_said_by_all_ranks_which_end(options, tmp_path):
    words = [*options, "--targets", "w1", "--output", tmp_path]
    result = forked.ranks(*words, num_ranks=2, check=False)
    assert_user_error(result, "each target must match")
    assert (result.stdout + result.stderr).count("Error: each target must match") == 1


def test_under_the_launcher_a_master_port_in_use_is_named_once(options):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        # In containers, which may have no folder in common, ranks meet at the port.
        result = deepspeed(*options, "--wrap", "env", num_ranks=2, check=False, port=port)
    assert result.returncode == EXIT_PORT_IN_USE
    assert_user_error(result, "master port must be free", f"MASTER_PORT={port}")
    assert (result.stdout + result.stderr).count("Error: master port must be free") == 1
