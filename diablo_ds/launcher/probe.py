"""What a host has, as JSON on standard output: `python -m diablo_ds.launcher.probe '{...}'`.

Only the standard library is used, so that an answer comes within a second.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from diablo_ds.launcher.devices import count_devices

PACKAGES = ("torch", "deepspeed", "transformers", "diablo-ds")
"""Packages that every run needs."""
FURTHER_PACKAGES = ("tokenizers", "datasets", "numpy", "safetensors", "flash-attn", "flash-attn-3")
"""Packages that hosts have to agree on too: in their version, or in being without."""
WHOLE_FILE_BYTES = 1 << 20
"""Larger files are told apart by their size and their first bytes."""


def main() -> None:
    """Answer the question on the command line, a JSON object.

    Its keys: "paths", that have to be the same on all hosts; "folders", that have to be there;
    "shared", the folder for a mark; "host", this host's name; "port", to be listened on, or 0.
    """
    question = json.loads(sys.argv[1])
    answer = {
        "name": socket.gethostname(),
        "versions": versions(),
        "code": code_digest(),
        "paths": {path: path_digest(Path(path)) for path in question["paths"]},
        "folders": {path: folder_problem(Path(path)) for path in question["folders"]},
        "gpus": gpu_names(),
        "devices": count_devices(os.environ),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "shared": leave_mark(Path(question["shared"]), question["host"]),
        "port_problem": port_problem(question["port"]),
    }
    print(json.dumps(answer))  # noqa: T201


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that ranks have to agree on."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *FURTHER_PACKAGES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def code_digest() -> str:
    """Return a digest of this package's source files and their names."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
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


def folder_problem(folder: Path) -> str:
    """Return why a folder cannot be written; empty where it can."""
    if not folder.is_dir():
        return "is missing"
    return "" if os.access(folder, os.W_OK) else "cannot be written"


def gpu_names() -> list[str]:
    """Return the names of this host's NVIDIA GPUs."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=30, check=False
        )
        if done.returncode == 0:
            return [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return []


def leave_mark(folder: Path, host: str) -> str:
    """Write a file into the folder that all hosts should share; return what went wrong."""
    try:
        (folder / f"host-{host}").write_text(host, encoding="utf-8")
    except OSError as error:
        return str(error)
    return ""


def port_problem(port: int) -> str:
    """Return why a port cannot be listened on; empty where it can, or 0 was given."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
    except OSError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main()
