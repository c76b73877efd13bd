from __future__ import annotations

import json
import subprocess

import pytest

from diablo_ds.ranks import source_commit
from diablo_ds.ranks.source_commit import BUILT_FILE, SourceCommit, checkout_commit


@pytest.fixture
def checkout(tmp_path):
    """A repository with a package in it, and its commit."""
    package = tmp_path / "repository" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    identity = ["-c", "user.name=me", "-c", "user.email=me@localhost"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=package.parent, check=True)
    words = ["git", "rev-parse", "HEAD"]
    head = subprocess.run(words, cwd=package, capture_output=True, text=True, check=True).stdout
    return package, head.strip()


def test_a_checkout_has_its_commit_and_says_whether_files_differ(checkout, monkeypatch, tmp_path):
    package, head = checkout
    monkeypatch.setenv("GIT_DIR", str(tmp_path))  # as in a hook of another repository
    assert checkout_commit(package) == SourceCommit(head, False)
    (package.parent / "notes.txt").write_text("not of the package")
    assert checkout_commit(package) == SourceCommit(head, False)
    (package / "new.py").write_text("")
    assert checkout_commit(package) == SourceCommit(head, True)


def test_a_package_in_an_environment_within_another_checkout_is_not_of_its_commit(checkout):
    installed = checkout[0].parent / ".venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert checkout_commit(installed) is None


def test_without_git_nothing_is_known(checkout, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checkout_commit(checkout[0]) is None


def test_a_built_package_knows_what_it_was_built_from(tmp_path):
    values = {"commit": "abc", "is_modified": True}
    (tmp_path / BUILT_FILE).write_text(json.dumps(values))
    assert source_commit._built_commit(tmp_path) == SourceCommit("abc", True)
    (tmp_path / BUILT_FILE).write_text("{}")
    assert source_commit._built_commit(tmp_path) is None
