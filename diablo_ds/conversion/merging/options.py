"""The options of a merge; light, so that a command can name them without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diablo_ds.config.setting import REQUIRED, check_settings, setting
from diablo_ds.errors import UserError

FP32_IS_ROUNDED_TO_NEAREST = (
    "rounding must be nearest where weights are stored in fp32 or fp64, which swallow next to "
    "nothing; got rounding='stochastic'; leave it out, or give --dtype bf16 or fp16"
)
KEPT = "base"
"""The dtype option's word for the dtype of the base files."""


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """What is merged, and to where.

    Raises:
        UserError: if a value is illegal.
    """

    adapter: Path = setting(
        REQUIRED,
        "Adapter to merge: its folder, a checkpoint, or the folder of a run that is done.",
        "sources",
    )
    base: str = setting(
        "",
        "Base model: a folder, hf://owner/name, or default.",
        "sources",
        shown_default="as the adapter records",
    )
    output: Path = setting(REQUIRED, "New folder for the merged model.", "run")
    dtype: Literal["base", "bf16", "fp16", "fp32"] = setting(
        KEPT, "Dtype of the merged weights; base keeps that of the base files.", "model"
    )
    rounding: Literal["nearest", "stochastic"] = setting(
        "nearest",
        "How sums of weights and deltas become numbers of the dtype; stochastic keeps, on average, "
        "deltas that are too small for it.",
        "model",
    )
    max_shard_size: str = setting(
        "",
        "Size up to which a new file is filled, such as 5GB or 500MiB.",
        "model",
        shown_default="the files of the base",
    )
    force: bool = setting(
        False, "Merge although the base is not the one that the adapter was trained on.", "start"
    )
    verify: bool = setting(
        False, "Compare the merged model with base and adapter, as diablo-ds verify does.", "start"
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.rounding == "stochastic" and self.dtype == "fp32":
            raise UserError(FP32_IS_ROUNDED_TO_NEAREST)
