"""A run in a folder, and on a machine, that other users share."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cluster.watching import SECRET, Observer, hostile_folder, output_of, steps_taken
from tests.e2e.commands import ZERO3, environment
from tests.tiny import save_model, write_pairs

pytestmark = [pytest.mark.e2e, pytest.mark.distributed]
ANY_ADDRESS = ("00000000:", "00000000000000000000000000000000:")


def _open_ports(folder: Path) -> list[str]:
    """Return where the processes of a run listen on all interfaces."""
    inodes = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() not in (process / "cmdline").read_bytes():
                continue
            links = [os.readlink(link) for link in (process / "fd").iterdir()]
        except OSError:
            continue
        inodes |= {link[8:-1] for link in links if link.startswith("socket:[")}
    tables = (Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6"))
    sockets = [line.split() for table in tables for line in table]
    return [
        s[1] for s in sockets if s[3] == "0A" and s[9] in inodes and s[1].startswith(ANY_ADDRESS)
    ]


def test_a_local_run_imports_nothing_planted_shows_no_secret_and_opens_no_port(tmp_path):
    hostile = hostile_folder(tmp_path)
    folder = tmp_path / "run"
    options = (
        f"--gpus-per-node 2 --env DS_ACCELERATOR=cpu --env OMP_NUM_THREADS=1 --env HF_TOKEN "
        f"--ds-config {ZERO3} --model {save_model(tmp_path / 'model')} "
        f"--data {write_pairs(tmp_path / 'pairs.jsonl')} --heldout-share 0 --num-blocks 4 "
        f"--precision fp32 --micro-batch 1 --global-batch 2 --max-steps 8 --output {folder}"
    )
    run = subprocess.Popen(
        ["diablo-ds", "launch", *options.split()],
        cwd=hostile,
        env={**environment(), "HF_TOKEN": SECRET},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    observer = Observer(folder)
    ports: set[str] = set()

    def is_over() -> bool:
        ports.update(_open_ports(folder))
        return run.poll() is not None

    observer.watch(is_over)
    output = output_of(run)
    assert run.returncode == 0, output
    assert steps_taken(folder) == 8
    assert not (tmp_path / "executed").exists(), (tmp_path / "executed").read_text()
    assert len(observer.reached) >= 2  # a rank may fork
    assert observer.seen == set()
    assert observer.files_with_secret() == []
    assert SECRET not in output
    assert ports == set()
    assert {p.stat().st_mode & 0o777 for p in (folder / "logs").rglob("*")} <= {0o700, 0o600}
