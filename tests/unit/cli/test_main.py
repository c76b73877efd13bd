from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from diablo_ds import __version__
from diablo_ds.cli.main import main


def _invoke(*args):
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_the_version_is_the_packages_own():
    assert __version__ in _invoke("--version").output


@pytest.mark.parametrize(
    "words", ["launch --gpus-per-node 2 --dry-run", "slurm --dry-run --nodes 2 --gpus-per-node 2"]
)
def test_what_starts_ranks_needs_no_torch(words, tmp_path):
    """On a login node that takes seconds, and there may be none."""
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'numpy', 'deepspeed')));"
        "from diablo_ds.cli.main import entry_point; entry_point()"
    )
    command = [sys.executable, "-c", program, *words.split(), "--output", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "deepspeed" in done.stdout
