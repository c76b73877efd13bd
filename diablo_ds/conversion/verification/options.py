"""The options of `diablo-ds verify`; light, so that a command can name them without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diablo_ds.config.setting import REQUIRED, check_settings, setting

Method = Literal["auto", "files", "model"]


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """What is compared with what.

    Raises:
        UserError: if a value is illegal.
    """

    merged: Path = setting(REQUIRED, "Folder of the merged model.", "sources")
    adapter: Path = setting(
        REQUIRED,
        "Adapter that was merged: its folder, a checkpoint, or the folder of a run that is done.",
        "sources",
    )
    base: str = setting(
        "",
        "Base model: a folder, hf://owner/name, or default.",
        "sources",
        shown_default="as the adapter records",
    )
    method: Method = setting(
        "auto",
        "Compare the files alone, or the models' outputs too; auto: both where a model in fp32 "
        "fits into memory.",
        "memory and speed",
    )

    def __post_init__(self) -> None:
        check_settings(self)
