"""Loading under ZeRO-3: each rank reads its own shards, gets the right values, holds little."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import diablo_ds.model
from diablo_ds.files.tensor_files import find_tensors
from diablo_ds.model import checkpoint_contents
from diablo_ds.model.architecture import BaseSizes
from diablo_ds.ranks import distributed
from diablo_ds.zero import joining, sharded_loading
from diablo_ds.zero.ds_config import complete_ds_config, load_ds_config
from diablo_ds.zero.loading import load_base
from tests.distributed.runner import run_distributed
from tests.distributed.training import CONFIG, DS_CONFIGS
from tests.tiny import save_model

pytestmark = pytest.mark.distributed


def _complete(precision: str = "fp32", **zero: Any) -> dict[str, Any]:
    complete = complete_ds_config(
        load_ds_config(DS_CONFIGS / "zero3.json"),
        dataclasses.replace(CONFIG, precision=precision, global_batch=24),
        world_size=distributed.world_size(),
        base=BaseSizes(8, 10_000, 1_000, 1_000),
        source="zero3.json",
    )
    complete["zero_optimization"].update(zero)
    return complete


def _check_values(rank: int, folder: Path, precision: str, zero: dict[str, Any]) -> None:
    """Compare each rank's shards with what transformers loads unsharded."""
    joining.init_process_group()
    reports = []
    load = sharded_loading.load_shards  # the real one; its report is kept

    def load_and_report(*args: Any) -> Any:
        model, report = load(*args)
        reports.append(report)
        return model, report

    diablo_ds.zero.loading.load_shards = load_and_report
    model = load_base(folder, precision, _complete(precision, **zero))
    full = dict(load_base(folder, precision).named_parameters())
    parameters = dict(model.named_parameters())
    assert parameters.keys() == full.keys()
    first = next(iter(parameters.values()))
    first.all_gather(list(parameters.values()))
    for name, parameter in parameters.items():
        assert parameter.dtype == full[name].dtype
        assert torch.equal(parameter.cpu(), full[name]), name
    for (name, buffer), (_, wanted) in zip(
        model.named_buffers(), load_base(folder, precision).named_buffers(), strict=True
    ):
        assert torch.equal(buffer.cpu(), wanted), name
    (report,) = reports
    share = report.bytes_read / report.checkpoint_bytes
    if "zero_hpz_partition_size" in zero:
        # A half each; ranks 1 and 2 keep a quarter that lies in the other half.
        assert share == pytest.approx([0.5, 0.75, 0.75, 0.5][rank], abs=0.001)
    else:
        assert share <= 1.05 / distributed.world_size()
        read = distributed.gather_floats([report.bytes_read], torch.device("cpu"))
        assert sum(row[0] for row in read) == report.checkpoint_bytes


def _check_families(rank: int, folders: list[Path]) -> None:
    for folder in folders:
        _check_values(rank, folder, "fp32", {})


def test_each_rank_reads_its_shards_and_no_more(tmp_path):
    # Odd sizes: no tensor divides evenly by three ranks.
    families = ("llama", "mistral", "qwen2")
    folders = [save_model(tmp_path / family, family, vocab_size=263) for family in families]
    run_distributed(_check_families, 3, tmp_path, folders)


def test_a_checkpoint_in_several_files_and_another_dtype(tmp_path):
    folder = save_model(tmp_path / "model", "mistral")
    tensors = load_file(folder / "model.safetensors")
    weight_map = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
        file = f"model-{number}.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    # A second copy in its authors' own format, as hubs have it: not in the index, so not read.
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    run_distributed(_check_values, 2, tmp_path, folder, "bf16", {})


def test_with_secondary_shards_inside_a_node_nothing_is_read_twice(tmp_path):
    # Two nodes of two ranks: each rank needs its quarter and its half; half of its quarters lie in
    # the half it holds already.
    folder = save_model(tmp_path / "model")
    run_distributed(_check_values, 4, tmp_path, folder, "fp32", {"zero_hpz_partition_size": 2})


def _check_renamed(rank: int, folder: Path) -> None:
    joining.init_process_group()
    model = load_base(folder, "fp32", _complete())
    names = dict(model.named_parameters())
    # Without the head's prefix: transformers adds it.
    assert not checkpoint_contents.fits_checkpoint(model, find_tensors(folder))
    norm = names["model.norm.weight"]
    norm.all_gather([norm])
    assert torch.equal(norm, torch.full((32,), 3.0))


def test_a_checkpoint_that_needs_conversion_is_left_to_transformers(tmp_path):
    folder = save_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.full((32,), 3.0)
    renamed = {name.removeprefix("model."): value for name, value in tensors.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    run_distributed(_check_renamed, 2, tmp_path, folder)


def _own_memory_bytes() -> int:
    """Memory of this process alone: without files that are only mapped."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon in /proc/self/status")


def _measure_loading(rank: int, small: Path, folder: Path, model_bytes: int) -> None:
    joining.init_process_group()
    complete = _complete()
    load_base(small, "fp32", complete)  # so that what is imported on the way counts for nothing
    samples, done = [_own_memory_bytes()], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            samples.append(_own_memory_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = load_base(folder, "fp32", complete)
    done.set()
    watcher.join()
    assert sum(p.ds_numel for p in model.parameters()) * 4 == model_bytes
    # Half of the model is this rank's shard; besides it, room for one tensor and a buffer.
    share = (max(samples) - samples[0]) / model_bytes
    assert 0.45 < share < 0.8, f"{share:.2f} of the model was held at once"


def test_no_rank_ever_holds_the_full_model(tmp_path):
    folder = tmp_path / "model"
    save_model(folder, hidden_size=1024, intermediate_size=2048, num_hidden_layers=6)
    model_bytes = sum(tensor.num_bytes for tensor in find_tensors(folder).values())
    assert model_bytes > 100e6
    small = save_model(tmp_path / "small")
    run_distributed(_measure_loading, 2, tmp_path, small, folder, model_bytes)
