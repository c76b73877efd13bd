"""What a model card says of the data that a run trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diablo_ds.config.run import RunConfig
from diablo_ds.conversion.public_names import hub_name
from diablo_ds.data.corpora.sources import split_name
from diablo_ds.data.prepare.manifest import describe, load_manifest
from diablo_ds.errors import UserError
from diablo_ds.files.layout import MANIFEST_FILE


def describe_data(run_config: RunConfig, data: Mapping[str, Any]) -> str:
    """Return the section on the data, in Markdown.

    Args:
        run_config: the run's.
        data: the identity of its data, as a checkpoint saves it.
    """
    lines = ["## Data"]
    for part, words in (("train", "Training"), ("heldout", "Held out")):
        counts = data.get(part)
        if not counts:
            continue
        numbers = [f"{counts[n]:,} {n}" for n in ("examples", "tokens") if n in counts]
        files = sorted({Path(name).name for name in counts.get("files", {})})
        shown = ", ".join(f"`{name}`" for name in files[:5])
        more = f" and {len(files) - 5} more files" if len(files) > 5 else ""
        numbers += [f"read from {shown}{more}"] if files else []
        lines.append(f"{words}: {'; '.join(numbers)}.")
    for manifest in _manifests(run_config):
        lines.append("The prepared dataset, by its manifest:")
        lines.append("\n".join(f"- {line}" for line in describe(manifest).splitlines()))
    return "\n\n".join(lines)


def hub_datasets(run_config: RunConfig, data: Mapping[str, Any]) -> list[str]:
    """Return the datasets on the hub that were trained on, as far as they are known."""
    if run_config.has_default_data:
        return ["openai/gsm8k"]
    sources = [source for m in _manifests(run_config) for source in m["sources"]]
    names = [str(source.get("file", "")) for source in sources]
    counts: Mapping[str, Any] = data.get("train") or {}
    found = [hub_name(name) for name in (*names, *counts.get("files", {})) if "--" in name]
    return sorted({*found, *(hub_name(split_name(text)[1]) for text in run_config.data)} - {""})


def _manifests(run_config: RunConfig) -> list[dict[str, Any]]:
    """Return the manifests of the prepared datasets that a run config names."""
    manifests = []
    for text in run_config.data:
        folder = Path(split_name(text)[1])
        if (folder / MANIFEST_FILE).is_file():
            try:
                manifests.append(load_manifest(folder))
            except (UserError, OSError):  # of another program
                continue
    return manifests
