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


def test_settings_are_written_to_a_new_yaml_file_alone(tmp_path):
    file = tmp_path / "mine.yaml"
    words = ["train", "--seed", 3, "--write-config", file]
    written = _invoke(*words)
    assert (written.exit_code, "seed: 3\n" in file.read_text()) == (0, True)
    assert f"--config {file}" in written.output
    again = _invoke(*words)
    assert (again.exit_code, "which exists" in again.output) == (2, True)
    for others in (["--write-config", tmp_path / "mine.json"], [*words[-2:], "--dry-run"]):
        refused = _invoke("train", *others)
        assert (refused.exit_code, "write_config" in refused.output) == (2, True)
