"""pytest-xdist keeps on one worker what belongs together."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict

import pytest

from tests.e2e.commands import ROOT

_TESTS = """\
import os
from pathlib import Path

import pytest


@pytest.mark.parametrize("number", range(6))
def test(number):
    with Path({log!r}).open("a") as log:
        log.write({name!r} + " " + os.environ["PYTEST_XDIST_WORKER"] + "\\n")
"""
_CLUSTER = ("suite/cluster/test_c.py", "suite/cluster/test_d.py")
_FILES = ("suite/unit/test_a.py", "suite/unit/test_b.py", *_CLUSTER)


def test_a_file_and_all_of_the_cluster_stay_on_one_worker(tmp_path):
    pytest.importorskip("xdist")
    log = tmp_path / "log"
    (tmp_path / "pytest.ini").touch()  # a root folder without this project's settings
    hook = "from tests.scheduling import pytest_xdist_make_scheduler\n"
    (tmp_path / "conftest.py").write_text(hook)
    for name in _FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(_TESTS.format(log=str(log), name=name))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", str(tmp_path)],
        cwd=ROOT,  # where the workers find `tests`
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    workers = defaultdict(list)
    for line in log.read_text().splitlines():
        name, worker = line.split()
        workers[name].append(worker)
    assert {name: len(found) for name, found in workers.items()} == dict.fromkeys(_FILES, 6)
    assert {name: len(set(found)) for name, found in workers.items()} == dict.fromkeys(_FILES, 1)
    assert workers[_CLUSTER[0]] == workers[_CLUSTER[1]]
    assert {worker for found in workers.values() for worker in found} == {"gw0", "gw1"}
