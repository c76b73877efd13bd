"""What hosts must have alike: versions of packages, source files, and files of a model."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "deepspeed", "transformers", "diablo-ds")
"""Packages that every run needs."""


FURTHER_PACKAGES = ("tokenizers", "datasets", "numpy", "safetensors", "flash-attn", "flash-attn-3")
"""Packages that hosts have to agree on too: in their version, or in being without."""


WHOLE_FILE_BYTES = 1 << 20
"""Larger files are told apart by their size and their first bytes."""


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that ranks have to agree on."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *FURTHER_PACKAGES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    return {name: number for name, number in versions().items() if number != "missing"}


def code_digest() -> str:
    """Return a digest of this package's source files and their names."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    # Through links too, so that a checkout and a package installed from it are the same.
    folders = os.walk(package, followlinks=True)
    files = [Path(folder, name) for folder, _, names in folders for name in names]
    for path in sorted(file for file in files if file.suffix == ".py"):
        digest.update(f"{path.relative_to(package)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def path_digest(path: Path) -> str:
    """Return a digest of a file or a folder's files; empty where there is none."""
    if not path.exists():
        return ""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        with file.open("rb") as opened:
            digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
            digest.update(opened.read(WHOLE_FILE_BYTES))
    return digest.hexdigest()
