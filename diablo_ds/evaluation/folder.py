"""The folder of an evaluation: its record, by which one that was begun is continued or refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diablo_ds.errors import UserError
from diablo_ds.evaluation.predictions import Predictions
from diablo_ds.files import owned, trees
from diablo_ds.files.atomic import read_json, write_json
from diablo_ds.files.layout import (
    EVALUATION_FILE,
    OWNER_FOLDER,
    PREDICTIONS_FILE,
    Kind,
    kind_of,
)
from diablo_ds.files.ownership import FolderOwner, claim, refuse_owned

_WHAT = "output folder"
FORMAT = 1
Record = dict[str, Any]
"""What answers depend on: "format", "precision", "judge", and by name "models" and "tasks".
Besides, "settings" and "working_folder" of the last start, and the number of "answers" by model and
task."""


def read_record(output: Path) -> Record | None:
    """Return the record of an evaluation that was begun in a folder; None where there is none.

    Raises:
        UserError: if the folder holds something else or is in use, or the record is not one.
    """
    kind = kind_of(output)
    if kind is Kind.NOTHING or kind is Kind.EMPTY:
        return None
    if kind is Kind.OTHER and {entry.name for entry in output.iterdir()} <= {OWNER_FOLDER}:
        refuse_owned(output, _WHAT)
        return None
    if kind is not Kind.EVALUATION:
        raise UserError(
            f"{_WHAT} must be new, empty, or of an evaluation; got {output}, {kind.value}"
        )
    refuse_owned(output, _WHAT)
    return load_record(output)


def load_record(output: Path) -> Record:
    """Return the record in the folder of an evaluation.

    Raises:
        UserError: if it is missing, or not one.
    """
    record = read_json(output / EVALUATION_FILE)
    parts = ("models", "tasks")
    if not isinstance(record, dict) or not all(isinstance(record.get(p), dict) for p in parts):
        raise UserError(
            f"the record of an evaluation must name its models and tasks; got other content in "
            f"{output / EVALUATION_FILE}; choose another folder"
        )
    if record.get("format") != FORMAT:
        raise UserError(
            f"the record of an evaluation must have the format {FORMAT}; got "
            f"{record.get('format')!r} in {output / EVALUATION_FILE}; choose another folder"
        )
    return record


def check_same(old: Record, new: Record, output: Path) -> None:
    """Raise UserError where an evaluation that is continued would answer otherwise than before.

    Models and tasks may be added or left out; those that are in both records must be the same.

    Args:
        old: the record in the folder.
        new: what is asked for.
        output: the folder.
    """
    differences = [
        *_differences({k: old.get(k) for k in _SHARED if old.get(k)}, new, ""),
        *(
            text
            for part in ("models", "tasks")
            for name, values in old[part].items()
            if name in new[part]
            for text in _differences(values, new[part][name], f" of {name}")
        ),
    ]
    if differences:
        raise UserError(
            "an evaluation that is continued must have the settings of its answers so far; got "
            f"{'; '.join(differences[:3])} in {output}; give the same, or another --output"
        )


_SHARED = ("precision", "judge")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], of: str) -> list[str]:
    found = []
    for key in old.keys() & new.keys():
        if isinstance(old[key], dict) and isinstance(new[key], dict):
            found += _differences(old[key], new[key], f" of {key}{of}")
        elif old[key] != new[key] and new[key] != "":
            found.append(f"{key}={_short(new[key])}{of} instead of {_short(old[key])}")
    return sorted(found)


def _short(value: Any) -> str:
    """Return a value as text; of a long digest its beginning."""
    text = str(value)
    return text if len(text) < 64 else f"{text[:12]}..."


def own_folder(output: Path, record: Record) -> tuple[FolderOwner, Predictions]:
    """Make or continue the folder of an evaluation, as its only owner.

    Args:
        output: the folder.
        record: what is asked for.

    Raises:
        UserError: if the folder holds something else, is in use or cannot be written, or its
            answers so far were made with other settings.
    """
    owned.make_writable_folder(output, _WHAT, "--output")
    trees.close_tree(output)
    trees.check_tree(output, _WHAT)
    owner = claim(output, _WHAT)
    try:
        old = read_record_of_owner(output)
        if old is not None:
            check_same(old, record, output)
            for part in ("models", "tasks", "answers"):
                record[part] = _joined(old.get(part, {}), record[part])
            record["judge"] = record["judge"] or old.get("judge", "")
        write_json(output / EVALUATION_FILE, record)
        return owner, Predictions(output / PREDICTIONS_FILE)
    except BaseException:
        owner.release()
        raise


def _joined(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return both, with the parts of what is in both joined."""
    joined = {**old, **new}
    for key in old.keys() & new.keys():
        if isinstance(old[key], dict) and isinstance(new[key], dict):
            joined[key] = _joined(old[key], new[key])
    return joined


def read_record_of_owner(output: Path) -> Record | None:
    """Return the record in a folder that this process owns."""
    file = output / EVALUATION_FILE
    return read_json(file) if file.exists() else None
