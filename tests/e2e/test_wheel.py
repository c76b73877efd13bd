"""The installed package works without the checkout: a wheel in an environment of its own."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from diablo_ds.ranks.software import code_digest
from diablo_ds.ranks.source_commit import BUILT_FILE
from tests.e2e.commands import ROOT, environment, losses
from tests.tiny import save_model
from tests.waiting import WAIT_S

pytestmark = pytest.mark.e2e
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
PARTS = ("diablo_ds", "ds_configs", "launch", *FILES)
COMMIT_FILE = f"diablo_ds/{BUILT_FILE}"


def _run(command: list[Any], cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**env, **variables},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result


def _copy(folder: Path) -> Path:
    """Copy what a wheel is built from: in the checkout itself a build would leave files behind."""
    folder.mkdir()
    for name in PARTS:
        path = ROOT / name
        if path.is_file():
            shutil.copy(path, folder)
        else:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, folder / name, symlinks=True, ignore=ignored)
    identity = ["-c", "user.name=me", "-c", "user.email=me@localhost"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"]):
        _run(["git", *words], folder)
    return folder


def _names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.startswith("diablo_ds-")}


def _build_wheel(source: Path, folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel"]
    _run([*pip, "--no-index", "--no-deps", "--no-build-isolation", "-w", folder, source], source)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return _copy(tmp_path_factory.mktemp("source") / "checkout")


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return _build_wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment that has the wheel and, by their folder alone, the packages that it needs."""
    venv = tmp_path_factory.mktemp("environment") / "venv"
    _run([sys.executable, "-m", "venv", "--without-pip", venv], venv.parent)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", venv]
    _run([*pip, "install", "--no-index", "--no-deps", wheel], venv.parent)
    (packages,) = venv.glob("lib/python*/site-packages")
    needed = [*site.getsitepackages(), *(path for path in sys.path if "-packages" in path)]
    (packages / "needed.pth").write_text("\n".join(dict.fromkeys(needed)) + "\n")
    return venv


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), max_position_embeddings=1024)


def test_a_source_archive_makes_the_same_wheel(source, wheel, tmp_path):
    code = "import setuptools.build_meta as b, sys; print(b.build_sdist(sys.argv[1]))"
    _run([sys.executable, "-c", code, tmp_path], source)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # from 3.11.4 on
        opened.extractall(tmp_path / "unpacked", **safe)
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert _names(_build_wheel(unpacked, tmp_path)) == _names(wheel)


def test_the_wheel_holds_every_file_of_the_package(wheel):
    found = {
        str(Path(folder, name).relative_to(ROOT))
        for folder, _, names in os.walk(ROOT / "diablo_ds", followlinks=True)
        for name in names
        if "__pycache__" not in folder
    }
    assert _names(wheel) == found | {COMMIT_FILE}
    assert {"diablo_ds/config/ds_configs/zero3.json", "diablo_ds/launcher/script/train.py"} <= found


def test_the_commands_work_in_an_empty_folder(installed, source, model, tmp_path):
    command, (packages,) = installed / "bin" / "diablo-ds", installed.glob("lib/python*/*-packages")
    script = packages / "diablo_ds" / "launcher" / "script" / "train.py"
    ds_config = packages / "diablo_ds" / "config" / "ds_configs" / "zero3.json"
    options = ["--model", model, "--num-blocks", "4", "--max-steps", "1", "--max-length", "1024"]

    code = (
        "import diablo_ds.ranks.software as s; import diablo_ds.ranks.source_commit as c; "
        "print(s.__file__, s.code_digest(), *c.find_commit())"
    )
    found = _run([installed / "bin" / "python", "-c", code], tmp_path).stdout.split()
    assert Path(found[0]).is_relative_to(packages)
    assert found[1] == code_digest()
    head = _run(["git", "rev-parse", "HEAD"], source).stdout.strip()
    assert found[2:] == [head, "False"]

    launch = _run([command, "launch", "--dry-run", *options], tmp_path).stdout
    assert f" {script} --ds_config {ds_config} " in launch
    slurm = [command, "slurm", "--no-check", "--ranks-per-node", "1", "--output", "run"]
    _run([*slurm, *options], tmp_path)
    batch_script = (tmp_path / "run" / "logs" / "job.sbatch").read_text()
    assert f"{script} --ds_config {ds_config} " in batch_script
    plan = [command, "plan", "--model", model, "--gpus-per-node", "1", "--gpu", "h100"]
    assert "tokens/s" in _run([*plan, "--num-blocks", "4"], tmp_path).stdout

    # What DeepSpeed's launcher starts as a rank, here alone: the guard, and `train` under it.
    python = installed / "bin" / "python"
    train = _run([python, script, *options, "--output", "trained"], tmp_path)
    assert "Done: 1 steps" in train.stdout
    assert list(losses(tmp_path / "trained")) == [1]
    assert {path.name for path in tmp_path.iterdir()} == {"run", "trained"}
