"""Base models, tokenizers, adapters and checkpoints: what is read from weights of other people."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import torch

from benchmarks.fuzz import hostile
from benchmarks.fuzz.target import Target, files_below
from benchmarks.fuzz.valid import EARLY_ADAPTER


def model_targets(folder: Path) -> list[Target]:
    """Return the readers of weights and tokenizers.

    Args:
        folder: to make valid files in.
    """
    return [
        *_base_models(folder),
        *_tokenizers(folder),
        *_adapters(folder),
        _checkpoint(folder),
        _published(),
    ]


def _base_models(folder: Path) -> list[Target]:
    from diablo_ds.files.tensor_files import TensorReader, find_tensors
    from diablo_ds.files.tensor_rows import read_rows, row_ranges
    from diablo_ds.model.architecture import build_meta_model, load_model_config
    from diablo_ds.model.finding import fingerprint
    from tests.tiny import build_model

    build_model(num_hidden_layers=1).save_pretrained(folder / "model", max_shard_size="40KB")
    files = files_below(folder / "model")
    weights = [path for path in files if path.endswith(".safetensors")]
    index = "model.safetensors.index.json"

    def read_weights(place: Path) -> None:
        tensors = find_tensors(place)
        fingerprint(place)
        reader = TensorReader(tensors)
        for name, tensor in tensors.items():
            if tensor.num_elements < 1_000_000 and tensor.dtype.is_floating_point:
                reader.read(name, torch.empty(tensor.num_elements))
                for rows in row_ranges(tensor):
                    read_rows(tensor, rows)
        reader.close()

    def read_config(place: Path) -> None:
        build_meta_model(load_model_config(place))

    large = [
        files["config.json"].replace(b'"num_hidden_layers": 1', b'"num_hidden_layers": 1000000000'),
        files["config.json"].replace(b'"vocab_size": 264', b'"vocab_size": 9223372036854775807'),
        files["config.json"].replace(b"{", b'{"auto_map": {"AutoConfig": "a.B"},', 1),
    ]
    return [
        Target(
            "safetensors and index",
            files,
            [*weights, index],
            read_weights,
            {
                weights[0]: hostile.safetensors_files(),
                index: [*hostile.JSON, files[index].replace(b"model-", b"../model-", 1)],
            },
        ),
        Target(
            "config.json of a model",
            files,
            ["config.json"],
            read_config,
            {"config.json": [*hostile.JSON, *large]},
        ),
    ]


def _tokenizers(folder: Path) -> list[Target]:
    from diablo_ds.data.text import tokenization
    from tests.tokenizers_for_tests import save_metaspace, save_sentencepiece

    def load(name: str) -> object:
        def read(place: Path) -> None:
            tokenization._auto_tokenizer.cache_clear()
            tokenization.load_tokenizer(place / name if name.endswith(".model") else place)

        return read

    files = files_below(save_metaspace(folder / "metaspace"))
    model = save_sentencepiece(folder / "a.model").read_bytes()
    names = ["tokenizer.json", "tokenizer.json", "tokenizer_config.json"]
    made = {"tokenizer.json": hostile.JSON, "tokenizer_config.json": hostile.JSON}
    return [
        Target("tokenizer.json", files, names, load("tokenizer.json"), made),  # type: ignore[arg-type]
        Target("SentencePiece model", {"a.model": model}, ["a.model"], load("a.model")),  # type: ignore[arg-type]
    ]


def _adapters(folder: Path) -> list[Target]:
    from diablo_ds.adapter.config_file import ConfigFile
    from diablo_ds.adapter.layer_names import TargetRule
    from diablo_ds.adapter.storage import load_adapter
    from diablo_ds.files.layout import (
        ADAPTER_CONFIG_FILE,
        ADAPTER_TENSOR_FILE,
        EARLY_CONFIG_FILE,
        EARLY_TENSOR_FILE,
    )
    from diablo_ds.files.whole_tensors import save_tensors

    delta = torch.zeros(4, 2, 2)
    present, early = folder / "present", folder / "early"
    present.mkdir()
    early.mkdir()
    save_tensors(present / ADAPTER_TENSOR_FILE, {"base_model.model.a.q_proj.diablo_delta": delta})
    config = ConfigFile("m", TargetRule(("q_proj",)), 4, num_deltas=1).as_json()
    (present / ADAPTER_CONFIG_FILE).write_text(json.dumps(config))
    save_tensors(early / EARLY_TENSOR_FILE, {"a.q_proj.delta": delta})
    (early / EARLY_CONFIG_FILE).write_text(json.dumps(EARLY_ADAPTER))
    slow = json.dumps({**config, "target_modules": "(a+)+$|" * 3 + "(.*.*)*x"}).encode()
    return [
        Target(
            "adapter",
            files_below(present),
            [ADAPTER_CONFIG_FILE, ADAPTER_TENSOR_FILE],
            load_adapter,
            {
                ADAPTER_CONFIG_FILE: [*hostile.JSON, slow],
                ADAPTER_TENSOR_FILE: hostile.safetensors_files(),
            },
        ),
        Target(
            "adapter of an early version",
            files_below(early),
            [EARLY_CONFIG_FILE, EARLY_TENSOR_FILE],
            load_adapter,
            {EARLY_TENSOR_FILE: hostile.safetensors_files()},
        ),
    ]


def _checkpoint(folder: Path) -> Target:
    from diablo_ds.adapter.storage import AdapterConfig
    from diablo_ds.training.checkpoint import (
        Checkpoint,
        load_checkpoint,
        save_checkpoint,
        verify_checkpoint,
    )
    from diablo_ds.training.inspection import describe

    names = ("master", "exp_avg", "exp_avg_sq")
    state = {"a.q_proj.delta": {name: torch.zeros(4, 2, 2) for name in names}}
    saved = Checkpoint(2, 8, 0, 2, AdapterConfig("m", "", {"a.q_proj": 4}), state)
    files = files_below(save_checkpoint(folder / "checkpoints", saved, 1))

    def read(place: Path) -> None:
        load_checkpoint(place)  # whose checksums a stranger has made to fit
        describe(place)
        verify_checkpoint(place)

    tensors = [path for path in files if path.endswith(".safetensors")]
    made = {path: hostile.safetensors_files() for path in tensors}
    return Target("checkpoint", files, list(files), read, {**made, "state.json": hostile.JSON})


def _published() -> Target:
    from diablo_ds.conversion.published_files import load_published

    packed = io.BytesIO()
    torch.save({"model.layers.0.self_attn.q_proj.block_A": torch.zeros(4, 2, 2)}, packed)
    name = "adapter.chkpt"
    return Target(
        "adapter.chkpt",
        {name: packed.getvalue()},
        [name],
        lambda place: load_published(place / name),
        {name: [_with_zeros(packed.getvalue()), _expanded()]},
    )


def _with_zeros(content: bytes) -> bytes:
    """Return the same archive with its data replaced by 200 MB of compressed zeros."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for entry in old.infolist():
            if entry.filename.endswith("data/0"):
                with new.open(zipfile.ZipInfo(entry.filename), "w") as _:
                    pass
                new.filelist.pop()
                new.NameToInfo.clear()
                info = zipfile.ZipInfo(entry.filename)
                info.compress_type = zipfile.ZIP_DEFLATED
                new.writestr(info, b"\0" * 200_000_000)
            else:
                new.writestr(entry.filename, old.read(entry))
    return made.getvalue()


def _expanded() -> bytes:
    """Return a tensor of one number that says it has 2^40, each the same."""
    packed = io.BytesIO()
    tensor = torch.zeros(1).expand(1 << 20, 1 << 10, 1 << 10)
    torch.save({"model.layers.0.self_attn.q_proj.block_A": tensor}, packed)
    return packed.getvalue()
