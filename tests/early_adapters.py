"""Adapters and checkpoints as early versions wrote them."""

from __future__ import annotations

import json
from pathlib import Path

from diablo_ds.adapter.storage import load_adapter
from diablo_ds.files.atomic import sha256_file
from diablo_ds.files.layout import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_TENSOR_FILE,
    CHECKSUMS_FILE,
    EARLY_CONFIG_FILE,
    EARLY_TENSOR_FILE,
)
from diablo_ds.files.whole_tensors import save_tensors


def make_early(folder: Path) -> None:
    """Rewrite the adapter in a folder, which may be a checkpoint, in the early form."""
    tensors, config = load_adapter(folder)
    values = {
        "base_model": config.base_model,
        "base_fingerprint": config.base_fingerprint,
        "num_blocks": config.num_blocks,
        "dropout": config.dropout,
        "format": 1,
    }
    for name in (ADAPTER_CONFIG_FILE, ADAPTER_TENSOR_FILE):
        (folder / name).unlink()
    (folder / EARLY_CONFIG_FILE).write_text(json.dumps(values))
    save_tensors(folder / EARLY_TENSOR_FILE, tensors)
    if (folder / CHECKSUMS_FILE).is_file():
        renew_checksums(folder)


def renew_checksums(checkpoint: Path) -> None:
    """Make the checksums of a checkpoint those of its files."""
    file = checkpoint / CHECKSUMS_FILE
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in checkpoint.iterdir()
        if path != file
    }
    file.write_text(json.dumps({**json.loads(file.read_text()), "files": files}))
