"""Files of settings: JSON, or YAML by the name's end, or the run folder that holds one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diablo_ds.errors import UserError
from diablo_ds.files import yaml_files
from diablo_ds.files.atomic import read_bytes, read_json
from diablo_ds.files.layout import RunFolder

YAML_SUFFIXES = (".yaml", ".yml")


def settings_file(path: Path) -> Path:
    """Return the file that a path names: itself, or that of a run folder's run config.

    Raises:
        UserError: if it is a folder of another kind.
    """
    if not path.is_dir():
        return path
    file = RunFolder(path).run_config
    if not file.is_file():
        raise UserError(
            f"a folder with settings must be a run folder; got {path} without {file.name}"
        )
    return file


def read_settings(path: Path) -> Any:
    """Return the value that a file of settings holds.

    Raises:
        UserError: if it cannot be read, or is neither JSON nor YAML; names the file and the place.
    """
    file = settings_file(path)
    if file.suffix.lower() not in YAML_SUFFIXES:
        return read_json(file)
    data = read_bytes(file)
    try:
        return yaml_files.loads(data)
    except UserError as error:
        raise UserError(f"file must be valid YAML; got {file}: {error}") from None
