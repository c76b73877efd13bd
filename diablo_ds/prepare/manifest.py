"""The record beside a prepared dataset: what went in, what was done, what came out."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from diablo_ds import __version__
from diablo_ds.corpora.encoding import count_rows
from diablo_ds.corpora.sources import Source
from diablo_ds.files import read_json, sha256_file, write_json

MANIFEST_FILE = "manifest.json"
FILE_TIMES = ".file_times.json"
"""Sizes and times of the source files, so that unchanged ones need not be read again."""
FORMAT_VERSION = 2
_LIBRARIES = ("datasets", "pyarrow", "sentencepiece", "tokenizers", "transformers")


def library_versions() -> dict[str, str]:
    """Return the versions of what shapes a prepared dataset."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"diablo_ds": __version__, **versions}


class FileHashes:
    """SHA-256 of source files, taken from an earlier run where size and time are unchanged.

    Args:
        known: a file written by `save`; it may be absent.
    """

    def __init__(self, known: Path) -> None:
        self._known: dict[str, list[Any]] = read_json(known) if known.is_file() else {}
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
        """Write what was asked for."""
        write_json(path, self._seen)


def describe_files(sources: Iterable[Source], sha256: FileHashes) -> list[dict[str, Any]]:
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


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """List where two records differ, as "name: old value, now new value"."""
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
    """Return a record of inputs that is equal for equal files, wherever they lie."""

    def strip(files: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"name": file["name"], "sha256": file["sha256"]} for file in files]

    lists = ("sources", "val_sources", "excluded")
    tokenizer = {"fingerprint": inputs["tokenizer"]["fingerprint"]}
    return {**inputs, **{key: strip(inputs[key]) for key in lists}, "tokenizer": tokenizer}


def describe(manifest: dict[str, Any]) -> str:
    """Return the manifest's counts as lines of text."""
    left_out = manifest["rows_left_out"]
    rows_in = sum(manifest["rows_in"].values())
    lines = [f"{rows_in:,} rows read: " + _list(manifest["rows_in"])]
    numbers = {
        "bad": left_out["bad"],
        "too long": left_out["too_long"],
        **left_out["in_tests"],
        "duplicates": left_out["duplicates"],
        "not in the mix": left_out["not_in_mix"],
    }
    if shown := {name: number for name, number in numbers.items() if number}:
        lines.append(f"{sum(shown.values()):,} left out: " + _list(shown))
    lines += [count_rows(number, note) for note, number in manifest.get("notes", {}).items()]
    for part, described in manifest["parts"].items():
        cut = f", {described['cut']:,} cut" if described["cut"] else ""
        lines.append(
            f"{part}: {described['rows']:,} examples{cut}, {described['tokens']:,} tokens, "
            f"{described['target_tokens']:,} of them targets; longest {described['longest']:,}"
        )
    lines.append("Licence: " + "; ".join(manifest["licences"]))
    return "\n".join(lines)


def _list(numbers: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in numbers.items())
