"""What pyproject.toml cannot say of the build: a package built from a checkout knows its commit."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

PACKAGE = Path(__file__).parent.resolve() / "diablo_ds"
COMMIT = runpy.run_path(str(PACKAGE / "ranks" / "source_commit.py"))


def write_commit(package: Path) -> None:
    """Write the checkout's commit into a copy of the package; nothing where it is in none."""
    if found := COMMIT["checkout_commit"](PACKAGE):
        (package / COMMIT["BUILT_FILE"]).write_text(json.dumps(found._asdict()) + "\n")


class BuildWithCommit(build_py):
    """Builds the package, and writes down its commit."""

    def run(self) -> None:
        """Build it."""
        super().run()
        if not self.editable_mode:
            write_commit(Path(self.build_lib) / "diablo_ds")


class SourcesWithCommit(sdist):
    """Makes a source archive that knows its commit, as there is no checkout around it."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Copy the files, and write the commit beside them."""
        super().make_release_tree(base_dir, files)
        write_commit(Path(base_dir) / "diablo_ds")


setup(cmdclass={"build_py": BuildWithCommit, "sdist": SourcesWithCommit})
