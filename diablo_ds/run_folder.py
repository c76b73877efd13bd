"""The folder of a run: what may be in it, and where a run goes on."""

from __future__ import annotations

import dataclasses
import shutil
from datetime import datetime
from pathlib import Path

from diablo_ds import trust
from diablo_ds.checkpoint import find_checkpoint
from diablo_ds.config import RunConfig, differing_fields
from diablo_ds.default_model import DEFAULT_MODEL_NAME

RUN_CONFIG_FILE = "run.json"
LOGS = "logs"


def choose_run_folder(config: RunConfig) -> Path:
    """Decide the run folder and refuse one that holds something else. Creates nothing.

    Raises:
        ValueError: if the folder holds another run or other files, or is not a folder.
    """
    if not config.output:
        name = DEFAULT_MODEL_NAME if config.model == "default" else Path(config.model).name
        return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = Path(config.output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output must be a folder; got a file: output={config.output!r}")
    if folder.exists():
        trust.check_folder(folder, "run folder", shared=config.shared_folders)
    if not folder.exists() or all(path.name == LOGS for path in folder.iterdir()):
        return folder
    if not (folder / RUN_CONFIG_FILE).is_file():
        raise ValueError(
            "output folder must be new, empty or hold this run; got other files in "
            f"output={config.output!r}; choose another folder"
        )
    differing = differing_fields(RunConfig.load(folder / RUN_CONFIG_FILE), config)
    if differing:
        raise ValueError(
            f"output folder must not hold another run; got output={config.output!r} with "
            f"{'; '.join(differing)}; choose another folder, or the old settings to resume"
        )
    return folder


def recorded_config(config: RunConfig) -> RunConfig | None:
    """Return the run config that the output folder holds, as it was chosen; None where it is new.

    Raises:
        ValueError: if it cannot be read.
    """
    path = Path(config.output) / RUN_CONFIG_FILE
    return RunConfig.load(path) if config.output and path.is_file() else None


def open_run_folder(config: RunConfig, folder: Path) -> tuple[Path | None, list[str]]:
    """Create the run folder with `run.json`, and find the checkpoint to resume from.

    Returns:
        The latest whole checkpoint or None, and a message for each damaged one passed over.

    Raises:
        ValueError: if the folder cannot be written, or holds damaged checkpoints only.
    """
    try:
        trust.make_folder(folder, "run folder", shared=config.shared_folders)
        dataclasses.replace(config, output=str(folder)).save(folder / RUN_CONFIG_FILE)
    except OSError as error:
        raise ValueError(
            f"output folder must be writable; got output={str(folder)!r}: {error}"
        ) from None
    for half_written in checkpoints_folder(folder).glob(".step-*.tmp"):  # by a killed process
        shutil.rmtree(half_written, ignore_errors=True)
    return find_checkpoint(checkpoints_folder(folder))


def logs_folder(folder: Path) -> Path:
    """Return where the launcher keeps the logs of all ranks."""
    return folder / LOGS


def checkpoints_folder(folder: Path) -> Path:
    """Return where a run keeps its checkpoints."""
    return folder / "checkpoints"
