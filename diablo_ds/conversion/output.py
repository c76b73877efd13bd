"""The folder that a conversion writes, refused before any work where it exists."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from diablo_ds.errors import UserError


def check_new_folder(output: Path) -> None:
    """Raise UserError if something has the name of a folder that is to be written, or cannot.

    Args:
        output: the folder; its parents are made with it.
    """
    if output.exists() or output.is_symlink():
        raise UserError(
            f"output must be a new folder; got output={str(output)!r}, which exists; name another, "
            "or remove it"
        )
    parent = next(parent for parent in output.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise UserError(
            f"output must lie in a folder; got output={str(output)!r}, and {parent} is a file"
        )


def check_outside(output: Path, inputs: Iterable[Path]) -> None:
    """Raise UserError if a folder that is to be written lies in one that is read."""
    for folder in inputs:
        if output.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                "output must lie outside of the folders that are read; got "
                f"output={str(output)!r} in {folder}"
            )
