"""Where the adapter is that a user's path leads to."""

from __future__ import annotations

from pathlib import Path

from diablo_ds.errors import UserError
from diablo_ds.files.layout import Kind, RunFolder, kind_of, list_checkpoints
from diablo_ds.files.named_files import check_no_pipes


def find_adapter(path: Path) -> Path:
    """Return the folder with the adapter's files that a path leads to.

    Args:
        path: an adapter, a checkpoint, whose files include an adapter's, or the folder of a run
            that is done, whose result is taken.

    Raises:
        UserError: if the path leads to something else, or the run has no result yet.
    """
    kind = kind_of(path)
    if kind in (Kind.ADAPTER, Kind.CHECKPOINT):
        check_no_pipes(path)
        return path
    if kind is Kind.RUN:
        files = RunFolder(path)
        if kind_of(files.adapter) is Kind.ADAPTER:
            check_no_pipes(files.adapter)
            return files.adapter
        raise UserError(
            f"a run folder must hold its result, {files.adapter.name}; got {path}, a run that is "
            f"not done; {_repair(files.checkpoints)}"
        )
    if kind is Kind.CHECKPOINTS:
        raise UserError(
            f"a path of an adapter must lead to a single one; got {path}, {kind.value}; "
            + _repair(path)
        )
    if kind is Kind.OTHER:  # PEFT saves adapters under names of their own as folders in one
        inside = sorted(p for p in path.iterdir() if kind_of(p) is Kind.ADAPTER)
        if inside:
            raise UserError(
                f"a path of an adapter must lead to a single one; got {path}, which holds "
                f"{', '.join(p.name for p in inside[:5])}; name one of them, such as {inside[0]}"
            )
    raise UserError(
        "a path of an adapter must lead to an adapter, a checkpoint or the folder of a run that is "
        f"done; got {path}, {kind.value}"
    )


def _repair(checkpoints: Path) -> str:
    found = list_checkpoints(checkpoints)
    return f"name a checkpoint, such as {found[0]}" if found else "it has no checkpoint yet either"
