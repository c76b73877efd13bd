"""Two ordinary users of one machine, for tests of what one can do to the other.

Only root can make users. They get random names, for several suites may run beside each other, and
are removed together with their group and their folders.
"""

from __future__ import annotations

import contextlib
import encodings.utf_8_sig  # noqa: F401 - forked processes cannot read it
import multiprocessing
import os
import pwd
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import WAIT_S

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("useradd") is None, reason="only root can make users"
)
"""For tests that use `two_users`."""


@dataclass(frozen=True)
class User:
    """An ordinary user, in a group of the user's own and in the project's."""

    name: str
    uid: int
    gid: int
    project: int
    """The group that both users are in."""
    home: Path

    def run(self, function: Callable[..., Any], *args: Any, umask: int = 0o022) -> Any:
        """Return what a function returns in a forked process of this user; raise what it raises.

        It finds everything imported, also what lies in a folder that this user cannot read. It must
        not use torch's threads, which a forked process does not have.
        """
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=self._be, args=(theirs, umask, function, args))
        with warnings.catch_warnings():  # of threads, which the forked process does without
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        theirs.close()
        try:
            has_returned, value = ours.recv()
        except EOFError:
            process.join()
            raise AssertionError(f"{self.name} ended with {process.exitcode}") from None
        process.join(WAIT_S)
        if not has_returned:
            raise value
        return value

    def command(
        self, words: Sequence[Any], *, umask: int = 0o022, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as this user. Skips the test where Python is closed to other users."""
        check_reachable(Path(sys.executable).resolve())
        environment = {**os.environ, "HOME": str(self.home), "USER": self.name}
        environment["LOGNAME"] = self.name
        return subprocess.run(
            [str(word) for word in words],
            user=self.uid,
            group=self.gid,
            extra_groups=[self.project],
            umask=umask,
            env=environment | options.pop("env", {}),
            cwd=options.pop("cwd", self.home),
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            **options,
        )

    def _be(self, answers: Any, umask: int, function: Callable[..., Any], args: Any) -> None:
        os.setgroups([self.project])
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        os.umask(umask)
        os.environ.update(HOME=str(self.home), USER=self.name, LOGNAME=self.name)
        os.environ.pop("XDG_CACHE_HOME", None)
        os.chdir(self.home)
        try:
            answers.send((True, function(*args)))
        except BaseException as error:
            answers.send((False, error))


@dataclass(frozen=True)
class TwoUsers:
    """A victim, a stranger, and a project's folder that both can write."""

    victim: User
    stranger: User
    project: Path
    """Root's, of the project's group, mode 2775: without the sticky bit, as such folders are."""


@contextlib.contextmanager
def two_users() -> Iterator[TwoUsers]:
    """Make two users, and a project's folder; remove all of it when the block ends."""
    tag = secrets.token_hex(3)
    group = f"dds-proj-{tag}"
    with contextlib.ExitStack() as stack:
        # Not pytest's own folder, which other users cannot enter.
        root = Path(tempfile.mkdtemp(prefix="dds-users-"))
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        root.chmod(0o755)
        _administer("groupadd", group)
        stack.callback(_administer, "groupdel", group)
        users = [
            stack.enter_context(_user(f"dds-{part}-{tag}", group, root))
            for part in ("victim", "stranger")
        ]
        project = root / "project"
        project.mkdir()
        os.chown(project, 0, users[0].project)
        project.chmod(0o2775)
        yield TwoUsers(users[0], users[1], project)


@pytest.fixture(scope="module")
def users() -> Iterator[TwoUsers]:
    """Two users for the tests of a module, which import this fixture."""
    with two_users() as made:
        yield made


@contextlib.contextmanager
def _user(name: str, group: str, root: Path) -> Iterator[User]:
    home = root / name
    _administer("useradd", "--create-home", "--home-dir", home, "--user-group", "-G", group, name)
    try:
        entry = pwd.getpwnam(name)
        project = int(subprocess.check_output(["getent", "group", group], text=True).split(":")[2])
        home.chmod(0o700)
        yield User(name, entry.pw_uid, entry.pw_gid, project, home)
    finally:
        _administer("userdel", name)


def _administer(*words: Any) -> None:
    """Run a command that changes the list of users, which others may have locked for a moment."""
    deadline = time.monotonic() + WAIT_S
    while True:
        done = subprocess.run([*map(str, words)], capture_output=True, text=True)
        if not done.returncode:
            return
        is_locked = "lock" in done.stderr and time.monotonic() < deadline
        assert is_locked, f"{words}: {done.stderr}"
        time.sleep(0.2)


def check_reachable(path: Path) -> None:
    """Skip the test if other users cannot read a file."""
    for part in (path, *path.parents):
        if not part.stat().st_mode & (0o001 if part.is_dir() else 0o004):
            pytest.skip(f"other users cannot reach {part}")
