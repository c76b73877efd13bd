"""The record of a prepared dataset: its inputs, what was done, and what it contains."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diablo_ds import __version__
from diablo_ds.config.choices import FORMER_CORPORA
from diablo_ds.data.corpora.families import UNKNOWN_LICENCE
from diablo_ds.data.corpora.sources import SourceFile
from diablo_ds.data.counts import PartCounts, ReadCounts, describe_read, listed
from diablo_ds.data.text.conversations import EACH_ANSWER
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_json, sha256_file, write_json
from diablo_ds.files.layout import MANIFEST_FILE, Kind, kind_of
from diablo_ds.files.named_files import check_no_pipes

FILE_TIMES = ".file_times.json"
"""Sizes and times of the source files, so that unchanged files need not be read again."""
FORMAT_VERSION = 2
EXAMPLES_LEFT_OUT = "examples_left_out"
"""Only present if rows gave several examples, as is ``examples`` in each part: other manifests are
the same as those of earlier versions."""
FILES = "files"
"""SHA-256 of each file, by its path in the folder; not in manifests of earlier versions."""
_LIBRARIES = ("datasets", "pyarrow", "sentencepiece", "tokenizers", "transformers")


def library_versions() -> dict[str, str]:
    """Return the versions of the packages that determine a prepared dataset."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"diablo_ds": __version__, **versions}


class FileHashes:
    """SHA-256 of source files, known from an earlier run if size and time are unchanged.

    Args:
        known: a file written by `save`; it may be missing.
    """

    def __init__(self, known: Path) -> None:
        self._known = _load_file_times(known)
        self._seen: dict[str, list[Any]] = {}

    def __call__(self, path: Path) -> str:
        """Return the SHA-256 of a file, in hexadecimal."""
        name, stat = str(path.resolve()), path.stat()
        entry = self._known.get(name)
        if entry is None or entry[:2] != [stat.st_size, stat.st_mtime_ns]:
            entry = [stat.st_size, stat.st_mtime_ns, sha256_file(path)]
        self._seen[name] = entry
        return str(entry[2])

    def save(self, path: Path) -> None:
        """Write the hashes that were requested."""
        write_json(path, self._seen)


def _load_file_times(path: Path) -> dict[str, Any]:
    """Return what `FileHashes.save` wrote; nothing if the file is missing or damaged."""
    try:
        known = read_json(path)
    except ValueError:
        return {}
    if not isinstance(known, dict) or not all(
        isinstance(entry, list) and len(entry) == 3 for entry in known.values()
    ):
        return {}
    return known


def describe_files(sources: Iterable[SourceFile], sha256: FileHashes) -> list[dict[str, Any]]:
    """Return name, path, size and SHA-256 of each source file."""
    return [
        {
            "name": source.name,
            "file": str(source.path),
            "bytes": source.path.stat().st_size,
            "sha256": sha256(source.path),
        }
        for source in sources
    ]


_COUNT, _TEXT = int, str
_FILES = [{"name": _TEXT, "sha256": _TEXT}]
_PART = dict.fromkeys(("rows", "cut", "tokens", "target_tokens", "longest", "largest_id"), _COUNT)
_SHAPE = {
    "tokenizer": {"name": _TEXT, "fingerprint": _TEXT, "probe": [_COUNT]},
    **dict.fromkeys(("sources", "val_sources", "excluded"), _FILES),
    "rows_in": {...: _COUNT},
    "rows_left_out": {
        **dict.fromkeys(("bad", "too_long", "duplicates", "not_in_mix"), _COUNT),
        "in_tests": {...: _COUNT},
    },
    "licences": [_TEXT],
    "templates": {...: _TEXT},
    "notes": {...: _COUNT},
    FILES: {...: _TEXT},
    "parts": {...: {**_PART, "length_histogram": {"bin_width": _COUNT, "counts": [_COUNT]}}},
}
_SHAPE_BY_ROW = {
    EXAMPLES_LEFT_OUT: dict.fromkeys(("too_long", "duplicates", "not_in_mix"), _COUNT),
    "parts": {...: {"examples": _COUNT}},
}
"""The part of a manifest that is read: types, lists and objects; ... stands for any key."""


def load_manifest(folder: Path) -> dict[str, Any]:
    """Read the record of a prepared dataset.

    Raises:
        UserError: if it is missing or malformed, or another user's pipe stands for a file.
    """
    kind, path = kind_of(folder), folder / MANIFEST_FILE
    if kind is not Kind.DATASET or not path.is_file():
        without = f", without {MANIFEST_FILE}" if kind is Kind.DATASET else ""
        raise UserError(
            "path must be the folder of a dataset made by diablo-ds prepare; got "
            f"{folder}, {kind.value}{without}"
        )
    check_no_pipes(folder)
    manifest: dict[str, Any] = read_json(path)
    if isinstance(manifest, dict):
        for name in ("notes", "templates", FILES):  # not in those of earlier versions
            manifest.setdefault(name, {})
        options = manifest.get("options")
        if isinstance(options, dict) and isinstance(options.get("family"), str):
            options["family"] = FORMER_CORPORA.get(options["family"], options["family"])
            options.setdefault("column", [])
            options.setdefault("text", "row")
    wrong = _misfit(manifest, _SHAPE, "manifest")
    by_row = not wrong and EACH_ANSWER in manifest["notes"]
    if by_row and EXAMPLES_LEFT_OUT not in manifest:
        raise UserError(
            "prepared dataset must keep the answers of a conversation together; got one of an "
            f"earlier version in {folder}, whose parts may share conversations; prepare it again, "
            "into a new folder"
        )
    if by_row:
        wrong = _misfit(manifest, _SHAPE_BY_ROW, "manifest")
    if wrong:
        raise UserError(
            f"{wrong}; got another value in {path}; prepare it again with diablo-ds prepare"
        )
    return manifest


def digest_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a dataset, by its path in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def check_files(folder: Path, manifest: Mapping[str, Any], part: str = "") -> None:
    """Compare the files of a dataset with the digests in its manifest.

    Args:
        folder: the dataset's.
        manifest: its record.
        part: the part that is used; empty for all.

    Raises:
        UserError: if one is missing or different, or the manifest has no digests.
    """
    rule = f"a prepared dataset must have the files whose digests its {MANIFEST_FILE} holds"
    if not manifest[FILES]:
        raise UserError(f"{rule}; got none in {folder}; prepare it again, into a new folder")
    for name, sha256 in manifest[FILES].items():
        if part and "/" in name and not name.startswith(f"{part}/"):
            continue
        file = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute() or not file.is_file():
            raise UserError(f"{rule}; got no file {name!r:.80} in {folder}")
        if sha256_file(file) != sha256:
            raise UserError(
                f"{rule}; got other content in {file}; prepare it again, into a new folder"
            )


def count_examples(part: Mapping[str, Any]) -> int:
    """Return the number of examples of a part, as a manifest describes it."""
    number: int = part.get("examples", part["rows"])
    return number


def _misfit(value: Any, shape: Any, name: str) -> str:
    """Return the rule that a value breaks, or ""."""
    if shape is _COUNT:
        is_count = type(value) is int and value >= 0
        return "" if is_count else f"{name} must be an integer of at least 0"
    if shape is _TEXT:
        return "" if isinstance(value, str) else f"{name} must be text"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{name} must be a list"
        wrong = (_misfit(item, shape[0], f"{name}[{i}]") for i, item in enumerate(value))
        return next(filter(None, wrong), "")
    if not isinstance(value, dict):
        return f"{name} must be an object"
    keys = value if ... in shape else shape
    if missing := [key for key in keys if key not in value]:
        return f"{name} must have a field {missing[0]}"
    wrong = (_misfit(value[key], shape.get(key, shape.get(...)), f"{name}.{key}") for key in keys)
    return next(filter(None, wrong), "")


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Return the differences of two records, as "name: old value, now new value"."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted(old.keys() | new.keys())
            for line in differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        ]
    if isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            return [f"{name}: {len(old)}, now {len(new)}"]
        return [
            line
            for number, (a, b) in enumerate(zip(old, new, strict=True), start=1)
            for line in differences(a, b, f"{name}[{number}]")
        ]
    return [] if old == new else [f"{name}: {old!r:.60}, now {new!r:.60}"]


def without_paths(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return a record of inputs that is equal for equal files in other places."""

    def strip(files: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"name": file["name"], "sha256": file["sha256"]} for file in files]

    lists = ("sources", "val_sources", "excluded")
    tokenizer = {"fingerprint": inputs["tokenizer"]["fingerprint"]}
    return {**inputs, **{key: strip(inputs[key]) for key in lists}, "tokenizer": tokenizer}


def describe(manifest: dict[str, Any]) -> str:
    """Return the manifest's counts as lines of text."""
    skipped = manifest["rows_left_out"]
    left_out = {
        "bad": skipped["bad"],
        "too long": skipped["too_long"],
        **skipped["in_tests"],
        "duplicates": skipped["duplicates"],
        "not in the mix": skipped["not_in_mix"],
    }
    read = ReadCounts(manifest["rows_in"], notes=manifest["notes"], templates=manifest["templates"])
    lines = describe_read(read, left_out)
    if EXAMPLES_LEFT_OUT in manifest:
        counts = manifest[EXAMPLES_LEFT_OUT]
        numbers = {name.replace("_", " "): number for name, number in counts.items() if number}
        if numbers:
            lines.append(f"Skipped examples, several for some conversations: {listed(numbers)}")
    lines += [
        f"{part}: {count_part(described).describe()}"
        for part, described in manifest["parts"].items()
    ]
    lines.append(_describe_licences(manifest))
    return "\n".join(lines)


def count_part(part: Mapping[str, Any]) -> PartCounts:
    """Return the counts of a part, as a manifest describes it."""
    return PartCounts(
        examples=count_examples(part),
        rows=part["rows"],
        cut=part["cut"],
        tokens=part["tokens"],
        target_tokens=part["target_tokens"],
        longest=part["longest"],
    )


def _describe_licences(manifest: Mapping[str, Any]) -> str:
    """Return what is known of the licence: as it was given, or that of corpora with such rows."""
    licences: list[str] = manifest["licences"]
    options = manifest.get("options")
    known = [licence for licence in licences if licence != UNKNOWN_LICENCE]
    if not known or (isinstance(options, dict) and options.get("licence")):
        return f"Licence: {'; '.join(licences)}"
    others = "; of other rows not known" if len(known) < len(licences) else ""
    return f"Licence, by the fields of the rows: {'; '.join(known)}{others}"
