"""The file of settings that a person gave to a run, kept in the run folder with its comments."""

from __future__ import annotations

from pathlib import Path

from diablo_ds.files import owned
from diablo_ds.files.atomic import new_file, read_bytes
from diablo_ds.files.layout import GIVEN_CONFIG_FILES, RUN_CONFIG_FILE
from diablo_ds.files.settings_files import YAML_SUFFIXES, settings_file

MAX_KEPT_BYTES = 1 << 20
"""A larger file is not kept: its values are in the run's own record, and YAML is never as large."""


def keep_given_file(given: Path, folder: Path) -> None:
    """Copy the file that was given by `--config` to a run folder, in place of an earlier one.

    A run's own record is not copied: it has no comments, and each run folder has one.

    Args:
        given: the file, or a run folder.
        folder: the run folder; made where there is none.

    Raises:
        UserError: if the file cannot be read, or the folder is another user's.
        OSError: if the copy cannot be written.
    """
    file = settings_file(given)
    if file.name == RUN_CONFIG_FILE:
        return
    data = read_bytes(file)
    if len(data) > MAX_KEPT_BYTES:
        return
    yaml_name, json_name = GIVEN_CONFIG_FILES
    name, other = (yaml_name, json_name)
    if file.suffix.lower() not in YAML_SUFFIXES:
        name, other = (json_name, yaml_name)
    owned.make_folder(folder, "run folder")
    with new_file(folder / name) as temporary, owned.open_owned(temporary, "wb") as copy:
        copy.write(data)
    if file.resolve() != (folder / other).resolve():
        owned.remove_own(folder / other)
