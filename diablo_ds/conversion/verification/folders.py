"""What a merged model's folder holds besides weights, against its base and its adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diablo_ds.data.text.end_tokens import GENERATION_CONFIG_FILE
from diablo_ds.data.text.tokenization import TOKENIZER_FILES
from diablo_ds.files.atomic import read_json
from diablo_ds.files.tensor_files import INDEX_FILE, StoredTensor

_CONFIG_FILE = "config.json"
_FREE_KEYS = {"dtype", "torch_dtype", "transformers_version", "_name_or_path"}
"""Keys of a model config that a merge may change."""


def folder_problems(base: Path, adapter: Path, merged: Path) -> list[str]:
    """Return how config, generation config and tokenizer differ from where they come from.

    The config is the base's but for its dtype. Each file of the tokenizer, and the generation
    config, is byte by byte the base's or the adapter's, and none is missing.
    """
    problems = []
    ours, theirs = (_settings(read_json(folder / _CONFIG_FILE)) for folder in (base, merged))
    differing = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
    if differing:
        problems.append(f"{_CONFIG_FILE} differs from the base's in {', '.join(differing[:5])}")
    for name in (*TOKENIZER_FILES, GENERATION_CONFIG_FILE):
        sources = [path for path in (base / name, adapter / name) if path.is_file()]
        file = merged / name
        if not file.is_file():
            # Where the adapter has a tokenizer, the base's other files are not mixed with it.
            is_replaced = name in TOKENIZER_FILES and _has_tokenizer(adapter)
            if (adapter / name).is_file() or (sources and not is_replaced):
                problems.append(f"{name} is missing")
        elif all(path.read_bytes() != file.read_bytes() for path in sources):
            problems.append(f"{name} is neither the base's nor the adapter's")
    return problems


def index_problems(
    base: Mapping[str, StoredTensor], merged: Mapping[str, StoredTensor], folder: Path
) -> list[str]:
    """Return how the tensors that a folder names differ from those that it has and should have."""
    problems = []
    if missing := sorted(base.keys() - merged.keys()):
        problems.append(f"{len(missing)} tensors are missing, e.g. {missing[0]}")
    if unknown := sorted(merged.keys() - base.keys()):
        problems.append(f"{len(unknown)} tensors are not in the base, e.g. {unknown[0]}")
    common = base.keys() & merged.keys()
    problems += [
        f"{name} has shape {list(merged[name].shape)}, not {list(base[name].shape)}"
        for name in sorted(common)
        if merged[name].shape != base[name].shape
    ]
    changed = {merged[n].dtype for n in common if merged[n].dtype != base[n].dtype}
    if len(changed) > 1 or any(not _is_float(dtype) for dtype in changed):
        names = sorted(str(dtype).removeprefix("torch.") for dtype in changed)
        problems.append(f"tensors were converted to {', '.join(names)}, not to one float dtype")
    problems += _map_problems(merged, folder / INDEX_FILE)
    return problems


def _map_problems(tensors: Mapping[str, StoredTensor], index: Path) -> list[str]:
    if not index.is_file():
        return []
    value = read_json(index)
    where: Any = value.get("weight_map") if isinstance(value, dict) else None
    found = {name: tensor.file.name for name, tensor in tensors.items()}
    if where != found:
        wrong = sorted(n for n in {*found, *(where or {})} if (where or {}).get(n) != found.get(n))
        return [f"{index.name} names another file than has it for {wrong[0]}"]
    metadata: Any = value.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    num_bytes = sum(tensor.num_bytes for tensor in tensors.values())
    if total not in (None, num_bytes):
        return [f"{index.name} has total_size {total}, and its tensors {num_bytes} bytes"]
    return []


def _settings(value: Any) -> dict[str, Any]:
    """Return a model config without what a merge may change, in its parts too."""
    if not isinstance(value, dict):
        return {}
    return {
        key: _settings(part) if isinstance(part, dict) else part
        for key, part in value.items()
        if key not in _FREE_KEYS
    }


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer_config.json").is_file()


def _is_float(dtype: torch.dtype) -> bool:
    return dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
