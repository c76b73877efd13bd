"""Source options to files: what a file name, folder, glob or name on the hub stands for."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_json
from diablo_ds.files.hub import find_repository, hub_folder, hub_hint
from diablo_ds.files.strict_json import is_one_line

TEXT_FORMATS = (".txt", ".md")
FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", *TEXT_FORMATS)
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
_PATTERNS = [f"*{suffix}{end}" for suffix in FORMATS for end in ("", *COMPRESSIONS)]
_ENDINGS = "(s|set|ing)?"
_VALIDATION = re.compile(rf"(valid|val|validation|dev|eval|evaluation|heldout){_ENDINGS}\d*")
_TEST = re.compile(rf"test{_ENDINGS}\d*")
"""Words in the names of files and folders that are meant for evaluation."""
_DESCRIPTIONS = re.compile(
    r"(dataset_infos?|dataset_dict|state)\.json|(readme|licen[cs]e|notice|changelog)\b.*", re.I
)
"""Files that are about the data of a folder."""
_STATE_FILE = "state.json"
"""Of a dataset that the library `datasets` saved; it names the files of the rows."""


class SourceFile(NamedTuple):
    """One file of a source, and the name under which its rows are counted and mixed."""

    name: str
    path: Path


def find_sources(
    texts: Sequence[str], *, may_be_tests: bool = False
) -> tuple[list[SourceFile], list[Path]]:
    """Find the files that source options name.

    Args:
        texts: each a file, folder, glob or ``hf://owner/name``, or NAME=one of them. Without a
            name, a file called train is named after its task's folder, a text file among others
            after the folder that was given or that it is in, any other file after itself.
        may_be_tests: whether a folder may contain only test files.

    Returns:
        The files in a fixed order, and the skipped files of folders: those for evaluation, and
        texts beside rows.

    Raises:
        UserError: if one matches no file, or a file's format is not known.
    """
    sources: list[SourceFile] = []
    skipped: list[Path] = []
    for text in texts:
        name, rest = split_name(text)
        files, held_back = _find_files(rest)
        if not files and not (held_back and may_be_tests):
            note = f"; {len(held_back)} files look like test data: name them to use them"
            is_folder = Path(rest).expanduser().is_dir()
            what = "hold files of data" if is_folder else "be an existing file, folder or glob"
            hint = note if held_back else "" if is_folder else hub_hint(rest)
            raise UserError(f"source must {what}; got source={text!r}{hint}")
        skipped += held_back
        sources += [SourceFile(name or _default_name(file, rest), file) for file in files]
    if twice := sorted(
        {str(s.path) for s in sources if [t.path for t in sources].count(s.path) > 1}
    ):
        raise UserError(f"each source file must be named once; got {twice[0]} twice")
    return sources, skipped


def split_name(text: str) -> tuple[str, str]:
    """Return the name in NAME=SOURCE, empty where there is none, and the source."""
    name, equals, rest = text.partition("=")
    named = bool(name and equals) and "/" not in name and not Path(text).exists()
    return (name, rest) if named else ("", text)


def choose_heldout(skipped: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return which skipped files of `find_sources` are held-out data, and the others.

    Those are the files for validation or, if there are none, the test files.
    """
    validation = [path for path in skipped if _is_named(path, _VALIDATION)]
    heldout = validation or [path for path in skipped if _is_named(path, _TEST)]
    return heldout, [path for path in skipped if path not in heldout]


def choose_evaluated(skipped: Sequence[Path]) -> list[Path]:
    """Return which skipped files of `find_sources` a model is judged by, if there are any.

    Those are the test files or, if there are none, the files for validation. The names of folders
    count only where those of files do not tell.
    """
    by_name = {path: Path(_stem(path)) for path in skipped}
    for names in (by_name, {path: path for path in skipped}):
        for pattern in (_TEST, _VALIDATION):
            if chosen := [path for path, name in names.items() if _is_named(name, pattern)]:
                return chosen
    return []


def name_sources(paths: Sequence[Path]) -> list[SourceFile]:
    """Return files under the names that they have if the user gives none."""
    return [SourceFile(_default_name(path), path) for path in paths]


def _find_files(text: str) -> tuple[list[Path], list[Path]]:
    path = Path(text).expanduser()
    skipped: list[Path] = []
    repository = find_repository(text, "dataset")
    if path.is_file():
        files = [path]
    elif repository is not None or path.is_dir():
        folder = path if repository is None else hub_folder(repository, _PATTERNS)
        found = _files_of(folder)
        has_rows = any(format_of(file) not in TEXT_FORMATS for file in found)
        skipped = [
            file
            for file in found
            if _is_for_evaluation(file.relative_to(folder))
            or (has_rows and format_of(file) in TEXT_FORMATS)
        ]
        files = [file for file in found if file not in skipped]
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
    return files, skipped


def _files_of(folder: Path) -> list[Path]:
    """Return the data files of a folder, without files about them, caches and hidden ones."""
    found = sorted({file for pattern in _PATTERNS for file in folder.rglob(pattern)})
    return [
        file
        for file in found
        if not _DESCRIPTIONS.fullmatch(file.name)
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and _is_of_dataset(file)
    ]


def _is_of_dataset(file: Path) -> bool:
    """Return whether a file is no cache beside the rows of a saved dataset."""
    state = file.parent / _STATE_FILE
    if not state.is_file():
        return True
    try:
        described = read_json(state)["_data_files"]
        return file.name in [entry["filename"] for entry in described]
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"saved dataset must name its files; got {state} without them; save it again"
        ) from None


def format_of(path: Path) -> str:
    """Return a file's format by its name: one of `FORMATS`, or another ending."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def _is_for_evaluation(path: Path) -> bool:
    """Return whether the name of a file, or of one of its folders, is that of a held-out split."""
    return _is_named(path, _VALIDATION) or _is_named(path, _TEST)


def _is_named(path: Path, pattern: re.Pattern[str]) -> bool:
    names = [*path.parent.parts[-2:], _stem(path)]
    text = " ".join(names).lower().replace("held-out", "heldout").replace("held_out", "heldout")
    return any(pattern.fullmatch(word) for word in re.split(r"[ _-]", text))


def _default_name(path: Path, given: str = "") -> str:
    """Return the name of a file's rows; see `find_sources`.

    Args:
        path: the file.
        given: what it was found by, if that is known.
    """
    if given and format_of(path) in TEXT_FORMATS and not Path(given).expanduser().is_file():
        is_pattern = glob.has_magic(given)
        return path.resolve().parent.name if is_pattern else Path(given).resolve().name
    stem = re.sub(r"-\d+-of-\d+$", "", _stem(path))
    repository = find_repository(given, "dataset")
    # A bare file name has no parent, and the hub's cache folders that tell nothing.
    folder = path.resolve().parent.name if repository is None else Path(repository.name).name
    is_split = stem.startswith("train") or _is_for_evaluation(Path(stem)) or stem == "data"
    return folder if folder and is_split else stem
