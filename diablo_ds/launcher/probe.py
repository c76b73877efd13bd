"""What a host has, as JSON on standard output: `python -m diablo_ds.launcher.probe '{...}'`.

Only the standard library is used, so that an answer comes within a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from diablo_ds.launcher.devices import count_devices
from diablo_ds.ranks.software import code_digest, path_digest, versions


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
