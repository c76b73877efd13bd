"""The folder of a run: its name, what may be in it, and its one owner."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from diablo_ds.adapter.finding import find_adapter
from diablo_ds.config.continuation import can_start_from, differing_fields, repair_fields
from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import load_recorded, save_run_config
from diablo_ds.config.starts import StartRecord, load_starts
from diablo_ds.errors import UserError
from diablo_ds.files import owned, trees
from diablo_ds.files.hub import recorded_revisions
from diablo_ds.files.layout import (
    GIVEN_CONFIG_FILES,
    LOGS_FOLDER,
    OWNER_FOLDER,
    RunFolder,
    list_checkpoints,
)
from diablo_ds.files.ownership import FolderOwner, claim, refuse_owned
from diablo_ds.model.default_model import DEFAULT_MODEL_NAME
from diablo_ds.training.pruning import remove_leftovers

_NOT_A_RUN = (LOGS_FOLDER, OWNER_FOLDER, *GIVEN_CONFIG_FILES)
"""What a folder may hold before its run has begun."""


def choose_run_folder(run_config: RunConfig, *, for_later: bool = False) -> Path:
    """Decide the run folder and refuse one that holds something else. Creates nothing.

    Args:
        run_config: the run config.
        for_later: whether the run waits in a queue, and the folder may be in use until then.

    Raises:
        UserError: if the folder holds another run or other files, is not a folder, or is in use.
    """
    if not run_config.output:
        folder = next(path for path in _new_names(run_config) if not path.exists())
        _check_writable(folder)
        return folder
    folder = Path(run_config.output)
    _refuse_other_content(run_config, folder)
    if not for_later:  # where a queued run starts, there may be other file systems
        _check_writable(folder)
        refuse_owned(folder, "run folder")
    return folder


def reserve_run_folder(run_config: RunConfig, *, for_later: bool = False) -> Path:
    """Return the run folder as `choose_run_folder` does, and create one that gets a new name.

    Two runs that start in the same second, on any hosts, get two folders.

    Raises:
        UserError: if the folder holds something else, is in use, or cannot be created.
    """
    folder = choose_run_folder(run_config, for_later=for_later)
    if run_config.output:
        return folder
    for folder in _new_names(run_config):
        with _naming_errors(folder):
            owned.make_parents(folder)
            if owned.new_folder(folder):
                return folder
    raise AssertionError


def find_initial_adapter(run_config: RunConfig) -> Path | None:
    """Return the folder of the adapter that a run starts from; None for a run that needs none.

    A run that has checkpoints continues from these: its initial adapter need not exist any more.

    Raises:
        UserError: if there is no adapter where the run config says.
    """
    checkpoints = RunFolder(Path(run_config.output)).checkpoints
    if not run_config.init_adapter or (run_config.output and list_checkpoints(checkpoints)):
        return None
    return find_adapter(Path(run_config.init_adapter))


def own_run_folder(run_config: RunConfig) -> FolderOwner:
    """Create the run folder where there is none, and become its owner.

    Nothing in it is written or removed before this process is the owner. What killed processes
    left half-written is removed.

    Raises:
        UserError: if the folder holds something else, is in use, or cannot be written.
    """
    folder = reserve_run_folder(run_config)
    with _naming_errors(folder):
        owned.make_folder(folder, "run folder")
        trees.close_tree(folder)
        owner = claim(folder, "run folder")
        try:
            _refuse_other_content(run_config, folder)  # another run may have been there meanwhile
            remove_leftovers(RunFolder(folder).checkpoints)
        except BaseException:
            owner.release()
            raise
    return owner


def record_run(
    folder: Path,
    run_config: RunConfig,
    start: StartRecord | None = None,
    *,
    ds_config: Mapping[str, Any] | None = None,
    parent: Mapping[str, Any] | None = None,
) -> None:
    """Write `run.json`: what the run is made from, and one start more.

    Args:
        folder: the run folder, which this process owns.
        run_config: the run config.
        start: this start.
        ds_config: the values of the DeepSpeed config file.
        parent: what is recorded of the initial adapter, if there is one.

    Raises:
        UserError: if the folder cannot be written.
    """
    file = RunFolder(folder).run_config
    starts = load_starts(file)
    if start is not None:
        starts.append(start.as_json())
    named = dataclasses.replace(run_config, output=str(folder))
    with _naming_errors(folder):
        save_run_config(named, file, parent, ds_config=ds_config, starts=starts)


def _check_writable(folder: Path) -> None:
    """Raise UserError if a folder cannot be written to or, where there is none, be created."""
    path = folder.absolute()
    existing = next(p for p in (path, *path.parents) if os.path.lexists(p))
    with _naming_errors(folder):
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(existing))
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(existing))


def _new_names(run_config: RunConfig) -> Iterator[Path]:
    """Yield names for a new run folder, the plainest first."""
    model = DEFAULT_MODEL_NAME if run_config.model == "default" else Path(run_config.model).name
    name = f"{model}-{datetime.now():%Y%m%d-%H%M%S}"
    yield Path("runs") / name
    for number in itertools.count(2):
        yield Path("runs") / f"{name}-{number}"


def check_run_folder(run_config: RunConfig) -> None:
    """Raise UserError if the output folder holds another run or other files, or is a file."""
    _refuse_other_content(run_config, Path(run_config.output))


def _refuse_other_content(run_config: RunConfig, folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output must be a folder; got a file: output={run_config.output!r}")
    if folder.exists():
        trees.check_tree(folder, "run folder", closed_is_enough=True)
    if not folder.exists() or all(path.name in _NOT_A_RUN for path in folder.iterdir()):
        return
    run_config_file = RunFolder(folder).run_config
    if not run_config_file.is_file():
        raise UserError(
            "output folder must be new, empty or hold this run; got other files in "
            f"output={run_config.output!r}; choose another folder"
        )
    recorded = load_recorded(run_config_file)
    differing = differing_fields(recorded, run_config)
    if differing:
        raise UserError(
            f"output folder must not hold another run; got output={run_config.output!r} with "
            f"{'; '.join(differing)}; to resume that run, {repair_fields(recorded, run_config)}; "
            f"for a new run, choose another --output{_from_its_adapter(recorded, run_config)}"
        )


def _from_its_adapter(recorded: RunConfig, run_config: RunConfig) -> str:
    """Say how a new run goes on from what a run has learnt, where it can."""
    files = RunFolder(Path(run_config.output))
    if not can_start_from(recorded, run_config):
        return ""
    for path in (files.path, *list_checkpoints(files.checkpoints)[:1]):
        with contextlib.suppress(UserError):
            find_adapter(path)
            return f", and --init-adapter {path} to start from what that run has learnt"
    return ""


def recorded_config(output: str) -> RunConfig | None:
    """Return the run config that an output folder holds, as it was chosen; None where it is new.

    Raises:
        UserError: if it cannot be read.
    """
    path = RunFolder(Path(output)).run_config
    return load_recorded(path) if output and path.is_file() else None


def read_record(output: str) -> tuple[RunConfig | None, dict[str, str]]:
    """Return what `recorded_config` does, and the revisions of what the run took from the hub.

    Raises:
        UserError: if it cannot be read.
    """
    recorded = recorded_config(output)
    if recorded is None:
        return None, {}
    return recorded, recorded_revisions(load_starts(RunFolder(Path(output)).run_config))


@contextlib.contextmanager
def _naming_errors(folder: Path) -> Iterator[None]:
    """Turn the system's errors into one that names the folder and the rule."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise UserError(
            f"output folder must be writable; got output={str(folder)!r}: {error}"
        ) from None
