"""The model card of an adapter: `README.md` in its folder, with Hugging Face's front matter.

A card names no folder of the machine that it was written on: it is made to be published.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diablo_ds.adapter.storage import AdapterConfig, save_adapter
from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import settings_of
from diablo_ds.config.words import shell_text, train_words
from diablo_ds.conversion.card_data import describe_data, hub_datasets
from diablo_ds.conversion.markdown import markdown_table
from diablo_ds.conversion.public_names import (
    base_hub_name,
    public_words,
    without_folders,
)
from diablo_ds.files.layout import CARD_FILE, LOSS_PLOT

UNKNOWN_BASE = "BASE_MODEL"
"""What a card says in place of a base that has no name on the hub."""
_TAGS = ["diablo", "peft", "diablo-ds"]
_POINTS = 10
"""Training losses in the table of a card."""
_OF_MACHINE = (
    "output",
    "cache_folder",
    "allow_group_write",
    "group_readable",
    "hang_timeout",
    "log_every",
)
"""Settings that say nothing of the result."""
_USE = """\
`ADAPTER` is the folder of this file. With PEFT (`pip install 'diablo-ds[peft]'`):

```python
import diablo_ds.peft  # makes DiaBlo known to PEFT
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base}", dtype="auto")
model = PeftModel.from_pretrained(base, "ADAPTER")
```

Merged, for transformers and serving engines without further packages:

```sh
diablo-ds merge --adapter ADAPTER --base {base} --output merged
```

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("merged", dtype="auto")
```

With diablo_ds, without PEFT:

```python
import diablo_ds

model = diablo_ds.load("{base}", "ADAPTER")
```"""


@dataclass(frozen=True)
class Training:
    """What a card tells of the run that an adapter is of."""

    run_config: RunConfig
    """Without open values."""
    ds_config_file: Path
    world_size: int
    num_steps: int
    """Steps that were taken."""
    losses: Sequence[tuple[int, float]]
    """By step, in nats per target token."""
    heldout: Sequence[tuple[int, float]]
    data: Mapping[str, Any]
    """Counts and files of "train" and "heldout", as checkpoints keep them."""
    has_plot: bool = False
    """Whether the loss curve lies beside the card."""
    changes: Sequence[str] = ()
    """Settings that changed on the way, and after which step."""


def model_card(
    config: AdapterConfig, num_parameters: int, training: Training | None = None, licence: str = ""
) -> str:
    """Return the text of a card.

    Args:
        config: the adapter's.
        num_parameters: elements of all deltas.
        training: the run; None for an adapter of which no run is known.
        licence: of the base model, by its identifier on the hub; empty if not known.
    """
    from huggingface_hub import ModelCardData

    base = base_hub_name(config.base_model)
    datasets = hub_datasets(training.run_config, training.data) if training is not None else []
    front: dict[str, Any] = {"base_model": base or None, "datasets": datasets or None}
    if base:
        front["base_model_relation"] = "adapter"
    data = ModelCardData(
        library_name="peft", tags=_TAGS, pipeline_tag="text-generation", license=licence or None,
        **front,
    )  # fmt: skip
    title = f"DiaBlo adapter of {base or without_folders(config.base_model) or 'an unknown base'}"
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {title}",
        "Fine-tuned with [DiaBlo](https://arxiv.org/abs/2506.03230): of each target layer's weight "
        "only diagonal blocks are trained. The folder is one of PEFT's, of the type `DIABLO`.",
        _facts(config, num_parameters),
    ]
    if training is not None:
        sections += [
            _results(training),
            describe_data(training.run_config, training.data),
            _training(config, training),
        ]
    if config.parent:
        rows = _lineage(config.parent)
        sections += ["## Lineage", "What the adapter comes from:", markdown_table(rows)]
    sections += ["## Use", _USE.format(base=base or UNKNOWN_BASE)]
    if not base:
        sections.append(
            f"The base model, `{UNKNOWN_BASE}`, was a local folder; its files have the fingerprint "
            "above."
        )
    return "\n\n".join(sections) + "\n"


def save_with_card(folder: Path, tensors: Mapping[str, Tensor], config: AdapterConfig) -> None:
    """Save an adapter that no run made, with a short model card, as `save_adapter` does.

    Args:
        folder: created, or replaced entirely.
        tensors: deltas by parameter name, ``[num_blocks, in_block, out_block]``.
        config: what the deltas belong to.
    """
    card = model_card(config, sum(delta.numel() for delta in tensors.values()))
    save_adapter(folder, tensors, config, {CARD_FILE: card.encode()})


def _lineage(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the rows of a record inside others, none of which names a folder of the machine."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _lineage(part, f"{name} {key}".strip())
    elif isinstance(value, list):
        for number, part in enumerate(value, 1):
            yield from _lineage(part, f"{name} {number}")
    else:
        yield name, without_folders(str(value))


def base_licence(base_model: str, folder: Path) -> str:
    """Return the licence that a base model's own card names; empty if there is none.

    Args:
        base_model: as the adapter records it.
        folder: of the base files.
    """
    if base_model == "default":
        return "apache-2.0"
    from huggingface_hub import ModelCard

    try:
        licence = ModelCard.load(folder / CARD_FILE).data.get("license")
    except Exception:  # a card of another form must not end a run
        return ""
    return licence if isinstance(licence, str) else ""


def _local_base(config: AdapterConfig) -> str:
    name = without_folders(config.base_model)
    return f"{UNKNOWN_BASE}, a local folder `{name}`" if name else UNKNOWN_BASE


def _facts(config: AdapterConfig, num_parameters: int) -> str:
    counts = sorted(set(config.num_blocks.values()))
    ends = sorted({name.rpartition(".")[2] for name in config.num_blocks})
    rows = [
        ("base model", base_hub_name(config.base_model) or _local_base(config)),
        ("fingerprint of the base files", config.base_fingerprint or "not known"),
        ("target layers", f"{len(config.num_blocks)}: {', '.join(ends)}"),
        ("num_blocks", ", ".join(map(str, counts))),
        ("trained parameters", f"{num_parameters:,}"),
    ]
    if config.base_model == "default":
        rows.insert(1, ("its files", "converted from 4-bit weights, so not bit for bit the hub's"))
    if config.step is not None:
        rows.append(("optimizer steps", str(config.step)))
    if config.heldout_loss is not None:
        rows.append(("held-out loss", f"{config.heldout_loss:.4f} nats per target token"))
    return markdown_table(rows)


def _results(training: Training) -> str:
    lines = ["## Results"]
    if training.has_plot:
        lines.append(f"![Training and held-out loss by optimizer step]({LOSS_PLOT})")
    losses = training.losses
    if len(losses) > _POINTS:
        places = {round(n * (len(losses) - 1) / (_POINTS - 1)) for n in range(_POINTS)}
        losses = [losses[place] for place in sorted(places)]
    for title, points in (("held-out loss", training.heldout), ("training loss", losses)):
        if points:
            rows = ((str(step), _number(loss)) for step, loss in points)
            lines.append(
                markdown_table(rows, ("optimizer step", f"{title}, nats per target token"))
            )
    return "\n\n".join(lines)


def _training(config: AdapterConfig, training: Training) -> str:
    run_config = training.run_config
    defaults = {s.name: s.default for s in settings_of(RunConfig)}
    local = {name: defaults[name] for name in _OF_MACHINE}
    words = public_words(train_words(dataclasses.replace(run_config, **local)))
    ds_config = without_folders(str(training.ds_config_file))
    command = ["deepspeed", "--num_gpus", str(training.world_size), "launch/train.py"]
    settings = (
        (f"`{setting.name}`", _shown(getattr(run_config, setting.name)))
        for setting in settings_of(RunConfig)
        if setting.name not in _OF_MACHINE
    )
    changes = "\n".join(f"- {change}" for change in training.changes)
    ranks = f"{training.world_size} ranks" if training.world_size > 1 else "one rank"
    lines = [
        "## Training",
        f"{training.num_steps} steps on {ranks}. The command, with every setting that is not the "
        "default, and paths without their folders:",
        f"```sh\n{shell_text([*command, '--ds_config', ds_config, *words])}\n```",
        *(["Settings changed on the way:", changes] if changes else []),
        "<details><summary>All settings</summary>",
        markdown_table(settings, ("setting", "value")),
        "</details>",
    ]
    if config.library_versions:
        packages = (f"{name} {number}" for name, number in config.library_versions.items())
        lines.append(f"Software: {', '.join(packages)}.")
    return "\n\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    return without_folders(value) if isinstance(value, str) else str(value)


def _number(loss: float) -> str:
    return f"{loss:.4f}" if math.isfinite(loss) else "not finite"
