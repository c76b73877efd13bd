"""What a merged model folder takes over besides weights: settings, tokenizer, code, licence.

The tokenizer and the tokens that end an answer are the adapter's where it has them, since with
those it was trained; the rest is the base's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diablo_ds.conversion.merging.plan import PlannedShard
from diablo_ds.data.text.end_tokens import GENERATION_CONFIG_FILE
from diablo_ds.data.text.tokenization import TOKENIZER_FILES
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_json
from diablo_ds.files.tensor_files import INDEX_FILE

_CONFIG_FILE = "config.json"
_CARRIED = (".json", ".jinja", ".txt", ".model", ".py", ".tiktoken", ".spm", ".bpe", ".vocab")
"""Ends of names of files that belong to a model besides its weights."""
_DTYPE_KEYS = {"dtype", "torch_dtype"}
_LEGAL = ("license", "licence", "notice", "use_policy", "copying")
_TEMPLATE_FOLDER = "additional_chat_templates"
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def carry_over(base: Path, adapter: Path, target: Path, dtype: str | None) -> list[str]:
    """Copy what belongs to a merged model besides its weights.

    Args:
        base: the base model's folder; only read.
        adapter: the adapter's folder; only read.
        target: an existing folder.
        dtype: PyTorch's name of the weights' new dtype, for the model config; None if it is the
            base's.

    Returns:
        Lines that say what was taken from the adapter.
    """
    base_files = {path.name: path for path in base.iterdir() if _is_carried(path)}
    own = {path.name: path for path in adapter.iterdir() if path.is_file()}
    taken = {name: path for name, path in own.items() if name in TOKENIZER_FILES}
    if any(name in taken for name in _VOCABULARIES) and "tokenizer_config.json" in taken:
        # A complete tokenizer: files of the base's would be mixed with it.
        base_files = {n: path for n, path in base_files.items() if n not in TOKENIZER_FILES}
    notes = ["Tokenizer: the adapter's, with which it was trained"] if taken else []
    if GENERATION_CONFIG_FILE in own:
        taken[GENERATION_CONFIG_FILE] = own[GENERATION_CONFIG_FILE]
        notes.append(f"{GENERATION_CONFIG_FILE}: the adapter's, with the end tokens it learnt")
    for name, path in {**base_files, **taken}.items():
        shutil.copyfile(path, target / name)
    templates = base / _TEMPLATE_FOLDER
    if templates.is_dir() and "tokenizer_config.json" not in taken:
        shutil.copytree(templates, target / _TEMPLATE_FOLDER)
    if dtype is not None:
        _write_json(target / _CONFIG_FILE, _with_dtype(_read_object(base / _CONFIG_FILE), dtype))
    return notes


def write_index(base: Path, target: Path, shards: Sequence[PlannedShard]) -> None:
    """Write the index of the new files, if the base has one or there are several of another name.

    Args:
        base: the base model's folder.
        target: the new folder.
        shards: the new files.
    """
    has_index = (base / INDEX_FILE).is_file()
    names = {shard.name for shard in shards}
    if names == {"model.safetensors"} or not (has_index or len(names) > 1):
        return
    old = _read_object(base / INDEX_FILE) if has_index else {}
    total = sum(tensor.num_bytes for shard in shards for tensor in shard.tensors)
    weight_map = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
    metadata = old.get("metadata")
    known = metadata if isinstance(metadata, dict) else {}
    _write_json(
        target / INDEX_FILE,
        {
            **old,
            "metadata": {**known, "total_size": total},
            "weight_map": dict(sorted(weight_map.items())),
        },
    )


def size_of_carried(base: Path, adapter: Path) -> int:
    """Return an upper bound of the bytes that `carry_over` writes."""
    paths = [*(p for p in base.iterdir() if _is_carried(p)), *adapter.iterdir()]
    return sum(p.stat().st_size for p in paths if p.is_file() and p.suffix != ".safetensors")


def _is_carried(path: Path) -> bool:
    if not path.is_file() or path.name.startswith(".") or path.name.endswith(".index.json"):
        return False
    name = path.name.lower()
    return name.endswith(_CARRIED) or name.startswith(_LEGAL)


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return a model config whose own dtype, and that of each of its parts, is another one."""
    new = _replace_dtypes(config, dtype)
    return new if _DTYPE_KEYS & new.keys() else {**new, "dtype": dtype}


def _replace_dtypes(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    new: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            new[key] = _replace_dtypes(value, dtype)
        else:
            new[key] = dtype if key in _DTYPE_KEYS else value
    return new


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"file must be a JSON object; got {path}")
    return value


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
