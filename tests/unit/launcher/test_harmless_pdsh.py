"""The pdsh that DeepSpeed's launcher finds: it runs all but what ends other runs."""

from __future__ import annotations

import os
import subprocess
import sys

from deepspeed.launcher.multinode_runner import PDSHRunner

from diablo_ds.launcher.starting import write_harmless_pdsh


class _Arguments:
    ssh_port = venv_script = save_pid = enable_each_rank_log = None
    no_python = module = no_local_rank = False
    launcher_args, user_args = "", ["--output", "a b"]
    master_addr, master_port, user_script = "h", 1, "train.py"


def test_all_is_passed_on_but_the_end_of_other_runs(tmp_path):
    real, programs, called = tmp_path / "it's", tmp_path / "programs", tmp_path / "called"
    real.mkdir()
    programs.mkdir()
    (real / "pdsh").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {called}\nexit 7\n')
    (real / "pdsh").chmod(0o700)
    write_harmless_pdsh(programs, f"{real}{os.pathsep}/usr/bin")
    environment = {"PATH": f"{programs}{os.pathsep}{real}"}
    command, kill_command, _ = PDSHRunner(_Arguments(), "e30=").get_cmd({}, {"h1": [0]})
    assert subprocess.run(kill_command, env=environment, check=False).returncode == 0
    assert not called.exists()
    assert subprocess.run(command, env=environment, check=False).returncode == 7
    assert called.read_text().splitlines() == command[1:]
    assert sys.executable in command


def test_where_there_is_no_pdsh_none_is_written(tmp_path):
    write_harmless_pdsh(tmp_path, str(tmp_path))
    assert list(tmp_path.iterdir()) == []
