from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from transformers.utils.import_utils import KERNELS_MIN_VERSION

import diablo_ds
from diablo_ds.adapter.blocks import check_num_blocks
from diablo_ds.cli.console import clean_errors, run_command
from diablo_ds.errors import UserError
from diablo_ds.ranks.exit_codes import EXIT_USER_ERROR
from diablo_ds.ranks.joining import StrangerError


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


@pytest.mark.parametrize(("error", "is_said"), [(StrangerError, True), (UserError, False)])
def test_a_rank_says_itself_that_a_stranger_came_in_the_place_of_rank_0(
    error, is_said, monkeypatch, capsys
):
    monkeypatch.setattr("diablo_ds.cli.console._is_main_process", lambda: False)
    with pytest.raises(SystemExit), clean_errors():
        raise error("every rank must have the secret; got one without")
    assert ("every rank must have the secret" in capsys.readouterr().err) == is_said


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
    # A rank ends its process at once, and another test may have made this one a rank.
    monkeypatch.setitem(sys.modules, "torch.distributed", None)
    seen = []
    with pytest.raises(SystemExit):
        run_command(
            click.Command("x", callback=lambda: seen.append(os.environ.get("GOMP_SPINCOUNT")))
        )
    assert seen == [expected]


PIPED = """
import os, sys
import click
from diablo_ds.cli.console import clean_errors, run_command
from diablo_ds.cli.main import main

@main.command("talk")
def talk():
    with clean_errors():
        for _ in range(100_000):
            click.echo("a line of text")

for words in [[name, "--help"] for name in main.commands] + [["--help"], ["talk"]]:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writing, 1)
        os.close(reading)
        os.close(writing)
        sys.argv = ["diablo-ds", *words]
        run_command(main)
    os.close(writing)
    if words == ["talk"]:
        assert os.read(reading, 1) == b"a"
    os.close(reading)
    _, status = os.waitpid(child, 0)
    print(*words, os.waitstatus_to_exitcode(status), flush=True)
"""
"""Every command, with output that nobody reads, or, like head, reads no further."""


def test_a_reader_that_leaves_ends_every_command_quietly():
    result = subprocess.run(
        [sys.executable, "-c", PIPED], check=False, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    codes = dict(line.rsplit(" ", 1) for line in result.stdout.splitlines())
    assert codes.pop("talk") == "0"
    assert set(codes.values()) <= {"0", "1"}  # the help of click's says 1
    assert "train --help" in codes


def test_a_package_that_fetches_kernels_is_hidden_from_transformers(tmp_path):
    """They are code, and configs and models ask for them without the user."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("raise SystemExit('imported')")
    about = tmp_path / f"kernels-{KERNELS_MIN_VERSION}.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {KERNELS_MIN_VERSION}\n")
    code = (
        "import click; from diablo_ds.cli.console import run_command\n"
        "def show():\n"
        "    from transformers.utils import import_utils as utils\n"
        "    print(utils.is_kernels_available())\n"
    )
    commands = ("run_command(click.command()(show))", "show()")
    shown = []
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-c", code + command],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        shown.append(done.stdout)
    assert shown == ["False\n", "True\n"]
