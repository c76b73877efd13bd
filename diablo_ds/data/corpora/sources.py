"""Source options to files: what a file name, folder, glob or hub name stands for."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from diablo_ds.errors import UserError
from diablo_ds.files.hub import hub_folder, looks_like_hub_name
from diablo_ds.files.strict_json import is_one_line

FORMATS = (".jsonl", ".json", ".csv", ".parquet")
COMPRESSIONS = (".gz", ".zst")
_PATTERNS = [f"*{suffix}{end}" for suffix in FORMATS for end in ("", *COMPRESSIONS)]
_HELD_BACK = ("test", "valid", "val", "dev", "eval", "heldout")
"""Beginnings of the names of files that are meant for evaluation."""


class SourceFile(NamedTuple):
    """One file of a source, and the name under which its rows are counted and mixed."""

    name: str
    path: Path


def find_sources(
    texts: Sequence[str], *, may_be_tests: bool = False
) -> tuple[list[SourceFile], list[Path]]:
    """Find the files that source options name.

    Args:
        texts: each a file, folder, glob or hub name, or name=one of them. Without a name, a file
            called train is named after its task's folder, any other after itself.
        may_be_tests: whether a folder may contain only test files.

    Returns:
        The files in a fixed order, and the skipped files of folders: test files.

    Raises:
        UserError: if one matches no file, or a file's format is not known.
    """
    sources: list[SourceFile] = []
    skipped: list[Path] = []
    for text in texts:
        name, equals, rest = text.partition("=")
        named = bool(name and equals) and "/" not in name and not Path(text).exists()
        files, held_back = _find_files(rest if named else text)
        if not files and not (held_back and may_be_tests):
            note = f"; {len(held_back)} files look like test data: name them to use them"
            raise UserError(
                f"source must be an existing file, folder, glob or hub name; got source={text!r}"
                f"{note if held_back else ''}"
            )
        skipped += held_back
        sources += [SourceFile(name if named else _default_name(file), file) for file in files]
    if twice := sorted(
        {str(s.path) for s in sources if [t.path for t in sources].count(s.path) > 1}
    ):
        raise UserError(f"each source file must be named once; got {twice[0]} twice")
    return sources, skipped


def _find_files(text: str) -> tuple[list[Path], list[Path]]:
    path = Path(text).expanduser()
    held_back: list[Path] = []
    if path.is_file():
        files = [path]
    elif path.is_dir() or (not glob.has_magic(text) and looks_like_hub_name(text)):
        folder = path if path.is_dir() else hub_folder(text, "dataset", _PATTERNS)
        found = sorted({file for pattern in _PATTERNS for file in folder.rglob(pattern)})
        files = [file for file in found if not _is_held_back(file)]
        held_back = [file for file in found if _is_held_back(file)]
    else:
        files = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    for file in files:
        if not is_one_line(str(file)):
            raise UserError(
                "source file must have a name without control characters, in UTF-8; got "
                f"{str(file)!a}"
            )
        if format_of(file) not in FORMATS:
            raise UserError(
                f"source file must be one of {', '.join(FORMATS)}, plain or compressed as "
                f"{', '.join(COMPRESSIONS)}; got {file}"
            )
    return files, held_back


def format_of(path: Path) -> str:
    """Return a file's format by its name: one of `FORMATS`, or another ending."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def _is_held_back(path: Path) -> bool:
    words = _stem(path).lower().replace("-", "_").split("_")
    return any(word.startswith(_HELD_BACK) for word in words)


def _default_name(path: Path) -> str:
    stem = _stem(path)
    folder = path.resolve().parent.name  # a bare file name has no parent
    return folder if folder and stem.startswith(("train", *_HELD_BACK)) else stem
