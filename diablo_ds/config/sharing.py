"""Whom a command makes its files for: this user alone, or a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from diablo_ds.config.setting import check_settings, setting
from diablo_ds.files import modes

ALLOW_GROUP_WRITE = (
    "Share folders and files with a group (0770, 0660): its members may write them, and are "
    "trusted with what this command makes and, through caches, with your account."
)
GROUP_READABLE = "Make folders and files that their group can read (0750, 0640)."


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """The choice, as an option of each command that writes.

    Raises:
        UserError: if a value is illegal.
    """

    allow_group_write: bool = setting(False, ALLOW_GROUP_WRITE, "run", on_resume="free")
    group_readable: bool = setting(False, GROUP_READABLE, "run", on_resume="free")

    def __post_init__(self) -> None:
        check_settings(self)


class _HasSharing(Protocol):
    @property
    def allow_group_write(self) -> bool: ...
    @property
    def group_readable(self) -> bool: ...


def share_files(chosen: _HasSharing) -> None:
    """Make files for whom it says, in this process and those that it starts."""
    modes.share(allow_group_write=chosen.allow_group_write, group_readable=chosen.group_readable)
