"""The options of `diablo-ds generate`; light, so that a command can name them without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diablo_ds.config.choices import AUTO, Template
from diablo_ds.config.setting import REQUIRED, check_settings, setting
from diablo_ds.errors import UserError


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Which adapter answers what, and how long.

    Raises:
        UserError: if a value is illegal, or there is not exactly one source of prompts.
    """

    adapter: Path = setting(
        REQUIRED,
        "Adapter: its folder, a checkpoint, or the folder of a run that is done.",
        "sources",
    )
    base: str = setting(
        "",
        "Base model: a folder, hf://owner/name, or default.",
        "sources",
        shown_default="as the adapter records",
    )
    force: bool = setting(
        False, "Generate although the base is not the one of the adapter.", "sources"
    )
    prompt: tuple[str, ...] = setting((), "Text to answer; may be repeated.", "data")
    file: Path | None = setting(None, "File whose text is the prompt.", "data")
    chat: bool = setting(False, "Answer line by line from the terminal, as a conversation.", "data")
    template: Template = setting(
        AUTO, "Prompt template; auto takes that of the adapter's run, where it is known.", "data"
    )
    compare_base: bool = setting(False, "Show the answer of the base model first.", "run")
    max_new_tokens: int = setting(256, "Most tokens of an answer.", "run", minimum=1)

    def __post_init__(self) -> None:
        check_settings(self)
        if bool(self.prompt) + (self.file is not None) + self.chat != 1:
            raise UserError(
                "prompts must come from one of --prompt, --file and --chat; got "
                f"prompt={self.prompt!r:.60}, file={self.file}, chat={self.chat}"
            )
