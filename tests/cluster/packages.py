"""The Debian packages that the cluster tests need: installed where that is possible."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from diablo_ds.files.owned import append_to_own_file

ALLOWED = "CLUSTER_TESTS"
"""Environment variable; 1 where tests may start daemons and, as root, install packages."""
_LOCK = Path("/run/diablo_ds-apt.lock")
"""In a folder of root's, where nobody else can have put a link of that name."""
_ENV = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}  # starts no service


def require(commands: tuple[str, ...], packages: tuple[str, ...]) -> None:
    """Install packages unless their commands are there; skip the test where that cannot be.

    The tests start daemons (slurmctld, slurmd, munged, sshd) and install their packages, so that
    nobody's machine is changed unasked.
    """
    if os.environ.get(ALLOWED) != "1":
        pytest.skip(
            f"starts daemons and, as root, installs {', '.join(packages)}: {ALLOWED}=1 allows it"
        )
    if all(_find(command) for command in commands):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip(f"needs {', '.join(packages)}, and root on Debian to install them")
    with append_to_own_file(_LOCK) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
        if not _run(install) and not (_run(["apt-get", "update", "-qq"]) and _run(install)):
            pytest.skip(f"needs {', '.join(packages)}, which could not be installed")


def _find(command: str) -> str | None:
    return shutil.which(command, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _run(command: list[str]) -> bool:
    done = subprocess.run(command, env=_ENV, capture_output=True, timeout=300, check=False)
    return done.returncode == 0
