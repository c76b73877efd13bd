"""Strict loading of adapters, where PEFT lets a method look at what is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from diablo_ds.errors import UserError
from diablo_ds.model.finding import fingerprint
from diablo_ds.peft.config import DiaBloConfig
from diablo_ds.peft.layer import DiaBloTunerLinear

_WRAPPED = "base_model.model."


def check_base(config: DiaBloConfig, model: nn.Module) -> None:
    """Check that a model is the one that an adapter was trained on, if it was read from a folder.

    Raises:
        UserError: if the folder's files have another fingerprint.
    """
    folder = Path(getattr(model, "name_or_path", None) or "")
    if not config.base_fingerprint or not list(folder.glob("*.safetensors")):
        return
    if (found := fingerprint(folder)) != config.base_fingerprint:
        raise UserError(
            "adapter must be loaded on the base model it was trained on; got an adapter of "
            f"{config.base_model_name_or_path!r} (fingerprint {config.base_fingerprint[:12]}) on "
            f"{folder} (fingerprint {found[:12]}); to load it nevertheless, pass a config whose "
            "base_fingerprint is None"
        )


def check_tensors(model: nn.Module, adapter_name: str, tensors: Mapping[str, Tensor]) -> None:
    """Check that a file has each delta of an adapter, and nothing that the model has no place for.

    PEFT itself leaves missing deltas at zero with a warning, and unknown tensors out in silence.
    Wrong shapes are torch's errors, unless PEFT is told to ignore them.

    Args:
        model: has the adapter.
        adapter_name: its name.
        tensors: from the file, under the model's names.

    Raises:
        UserError: if a tensor is missing or unknown, or a value is infinite or not a number.
    """
    wanted = {
        f"{name.removeprefix('_fsdp_wrapped_module.')}.diablo_delta.{adapter_name}"
        for name, module in model.named_modules()
        if isinstance(module, DiaBloTunerLinear) and adapter_name in module.diablo_delta
    }
    names = {name.removeprefix(_WRAPPED): name for name in tensors}
    missing = sorted(name for name in wanted if name.removeprefix(_WRAPPED) not in names)
    known = {name.removeprefix(_WRAPPED) for name in model.state_dict(keep_vars=True)}
    unknown = sorted(names[name] for name in names.keys() - known)
    if missing or unknown:
        raise UserError(
            "an adapter's file must have exactly the deltas of its layers in the model; got "
            f"{len(missing)} missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]}"
        )
    broken = sorted(n for n in wanted & tensors.keys() if not torch.isfinite(tensors[n]).all())
    if broken:
        raise UserError(
            f"deltas must be finite; got NaN or Inf in {len(broken)}, the first {broken[0]}"
        )
