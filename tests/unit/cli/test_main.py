from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import diablo_ds
from diablo_ds import __version__
from diablo_ds.adapter.blocks import check_num_blocks
from diablo_ds.cli.console import run_command
from diablo_ds.cli.main import build_run_config, clean_errors, main
from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import save_run_config
from diablo_ds.errors import UserError
from diablo_ds.model.default_model import converted_model
from diablo_ds.ranks.exit_codes import EXIT_USER_ERROR


def _invoke(*args):
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_the_version_is_the_packages_own():
    assert __version__ in _invoke("--version").output


def test_options_override_the_file(tmp_path):
    path = tmp_path / "run.json"
    save_run_config(RunConfig(seed=3, learning_rate=1e-4), path)
    config = build_run_config({"config": path, "seed": 5, "targets": (), "layers": None}, 1)
    assert config == RunConfig(seed=5, learning_rate=1e-4)


def test_a_setting_can_be_put_back_to_zero(tmp_path):
    path = tmp_path / "run.json"
    save_run_config(RunConfig(dropout=0.1, max_steps=5, gradient_checkpointing=True), path)
    given = {"dropout": 0.0, "max_steps": 0, "gradient_checkpointing": False}
    assert build_run_config({"config": path, **given}, 1) == RunConfig(gradient_checkpointing=False)


def test_accumulation_steps_set_the_global_batch():
    given = {"micro_batch": 2, "gradient_accumulation_steps": 3}
    assert build_run_config(given, 4).global_batch == 24
    with pytest.raises(UserError, match="not both"):
        build_run_config({"global_batch": 8, "gradient_accumulation_steps": 3}, 4)


def test_a_users_mistake_is_a_message_and_a_full_disk_too(capsys):
    with pytest.raises(SystemExit) as caught, clean_errors():
        check_num_blocks(5, 12, 8)
    assert caught.value.code == EXIT_USER_ERROR
    assert capsys.readouterr().err.startswith("Error: num_blocks must be positive and divide")
    with pytest.raises(SystemExit) as caught, clean_errors():
        raise OSError(28, "No space left on device")
    assert caught.value.code == 1


DEFECTS = {
    "numpy's": "from diablo_ds.data.packing import pack; pack([5, -1], 8)",
    "torch's": "import torch; from diablo_ds.adapter.blocks import diagonal_blocks\n"
    "diagonal_blocks(torch.zeros(4, 4).to_sparse(), 2)",
    "zip's": "from diablo_ds.planning.report import _table; _table([['a'], ['b', 'c']], ())",
}
"""Errors out of libraries and of Python itself, raised by the package's own code."""


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_keeps_its_traceback_and_an_exit_code_of_its_own(name):
    lines = ["from diablo_ds.cli.console import clean_errors", "with clean_errors():"]
    lines += [f"    {line}" for line in DEFECTS[name].splitlines()]
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert f"{Path(diablo_ds.__file__).parent}{os.sep}" in done.stderr


@pytest.mark.parametrize("home", [None, "relative", "~"])
def test_without_a_home_nothing_is_made_in_the_working_folder(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", home) if home else monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 4_000_000)  # without an entry, as in containers
    with pytest.raises(SystemExit) as end, clean_errors():
        raise AssertionError
    assert end.value.code == 2
    assert "HOME must be set to an absolute path" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_finds_no_home_says_so_without_a_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "diablo_ds", "inspect", str(tmp_path)],
        env={**os.environ, "HOME": "~", "XDG_CACHE_HOME": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: HOME must be set to an absolute path")


def test_a_cache_that_cannot_be_written_names_the_option(tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "home").touch()
    with pytest.raises(UserError, match=r"cache folder must be writable; .*--cache-folder"):
        converted_model(tmp_path / "home" / ".cache" / "diablo_ds")


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


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "20000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_waiting_threads_share_their_core_unless_told_otherwise(monkeypatch, given, expected):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is put back as it was
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["x"])
    seen = []
    with pytest.raises(SystemExit):
        run_command(
            click.Command("x", callback=lambda: seen.append(os.environ.get("GOMP_SPINCOUNT")))
        )
    assert seen == [expected]
