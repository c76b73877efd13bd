"""The git commit that this package's source files are from.

Only the standard library is used here, and nothing of this package: `setup.py` runs this file, so
that a wheel built from a checkout knows its commit.
"""

from __future__ import annotations

import json
import os
import subprocess
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

BUILT_FILE = "source_commit.json"
"""In the package, where it was built from a checkout: the commit."""
_GIT_TIMEOUT_S = 20


class SourceCommit(NamedTuple):
    """A commit, and whether source files differ from it; None where that is not known."""

    commit: str | None
    is_modified: bool | None


def find_commit() -> SourceCommit:
    """Return the commit of the package that is imported.

    It is that of the checkout that the package lies in, else the one that was written down when the
    package was built, else the one that pip fetched it by.
    """
    package = Path(__file__).parents[1]
    return _built_commit(package) or checkout_commit(package) or _fetched_commit()


def checkout_commit(package: Path) -> SourceCommit | None:
    """Return the commit of the checkout that a package's folder lies in; None where it is in none.

    A folder that git does not track, such as a virtual environment in another project's checkout,
    lies in none. Nor does one that git does not trust, since it is another user's.

    Args:
        package: the folder with the package's source files.
    """
    package = package.resolve()
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "status", "--porcelain", "--", ".")
    if not commit:
        return None
    return SourceCommit(commit.strip(), None if changes is None else bool(changes.strip()))


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints about a folder; None where there is no git, or it fails."""
    # Variables of a hook or of another repository would have git look elsewhere.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _built_commit(package: Path) -> SourceCommit | None:
    try:
        values = json.loads((package / BUILT_FILE).read_bytes())
        return SourceCommit(values["commit"], values["is_modified"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fetched_commit() -> SourceCommit:
    """Return what pip wrote down of a package that it fetched by git (PEP 610)."""
    try:
        values = json.loads(distribution("diablo-ds").read_text("direct_url.json") or "{}")
        return SourceCommit(values["vcs_info"]["commit_id"], False)
    except (PackageNotFoundError, OSError, ValueError, KeyError, TypeError):
        return SourceCommit(None, None)
