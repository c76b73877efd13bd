"""Which walls stand on this machine: found by trying them, not by asking."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from diablo_ds.errors import UserError
from diablo_ds.evaluation.sandbox import walled
from diablo_ds.evaluation.sandbox.program import Limits

WALLS = {
    "namespaces": "file system, network, users and processes of its own",
    "landlock": "files, TCP and signals given up by Landlock",
    "seccomp": "sockets, signals and foreign memory denied by a seccomp filter",
}
_LIMITS = Limits(cpu_s=10)


@dataclass(frozen=True)
class Walls:
    """The walls that stand."""

    names: tuple[str, ...]
    keep_files: bool
    """Whether files outside of the program's folder are out of reach."""
    keep_network: bool
    """Whether the network is out of reach."""
    missing: tuple[str, ...] = ()
    """Why the others do not stand."""

    def describe(self) -> str:
        """Return what stands and what does not, in words."""
        lines = [f"{name} ({WALLS[name]})" for name in self.names] or ["none"]
        text = f"Walls around programs that run: {'; '.join(lines)}."
        if self.missing:
            text += f" Not standing: {'; '.join(self.missing)}."
        for is_kept, what in ((self.keep_files, "your files"), (self.keep_network, "the network")):
            if not is_kept:
                text += f" Programs can reach {what}!"
        return text


@cache
def find_walls() -> Walls:
    """Try each wall in a process of its own, then all that stand together."""
    standing, missing = [], []
    for name in WALLS:
        held = _try((name,))
        if isinstance(held, str):
            missing.append(f"{name} ({held})")
        else:
            standing.append(name)
    together = _try(standing) if standing else {}
    if isinstance(together, str):
        return Walls((), False, False, (*missing, f"{' with '.join(standing)} ({together})"))
    keeps = (together.get("files", False), together.get("network", False))
    return Walls(tuple(standing), *keeps, tuple(missing))


def check_walls(*, may_be_weak: bool) -> Walls:
    """Return the walls that stand.

    Raises:
        UserError: if they do not keep files and network out of reach, unless that is allowed.
    """
    walls = find_walls()
    if not (walls.keep_files and walls.keep_network) and not may_be_weak:
        raise UserError(
            "programs that a model wrote must be kept from files and network; got no walls that "
            f"do it: {walls.describe()} Run on a kernel that permits user namespaces, or has "
            "Landlock (Linux 5.13) with pyseccomp installed, or add --weak-sandbox to run them "
            "in spite of that, in a container that you can lose"
        )
    return walls


def _try(names: Sequence[str]) -> dict[str, bool] | str:
    """Return what walls keep out of reach, or why they cannot be raised."""
    with (
        tempfile.TemporaryDirectory(prefix="diablo-walls-") as text,
        socket.socket() as server,
        socket.socket(socket.AF_UNIX) as local,
    ):
        folder = Path(text)
        secret = folder / "outside" / "secret"
        secret.parent.mkdir()
        secret.write_text("secret")
        (folder / "inside").mkdir()
        server.bind(("127.0.0.1", 0))
        server.listen()
        _bind(local, secret.with_name("local"))
        read_fd, write_fd = os.pipe()
        process = walled.start(
            "trial",
            folder / "inside",
            [write_fd],
            names,
            _LIMITS,
            secret=str(secret),
            local=str(secret.with_name("local")),
            port=server.getsockname()[1],
        )
        os.close(write_fd)
        with open(read_fd, "rb") as file:
            answer = file.read()
        assert process.stdout is not None
        said = process.stdout.read().decode(errors="replace").strip()
        walled.end(process)
    if not answer:
        return said.splitlines()[-1][:200] if said else f"exit code {process.returncode}"
    held: dict[str, bool] = json.loads(answer)
    return held


def _bind(server: socket.socket, path: Path) -> None:
    """Let a Unix socket be reached at a path, which may be longer than an address can be."""
    folder = os.open(path.parent, os.O_PATH)
    try:
        server.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
    server.listen()
