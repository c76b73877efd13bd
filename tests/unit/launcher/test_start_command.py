from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from diablo_ds.launcher.start_command import start_command, words_of_launcher
from diablo_ds.ranks.masking import COMMAND


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["/v/bin/python", "/v/bin/deepspeed", "--num_gpus", "2", "a b"], 1),
        (["torchrun", "train.py"], 0),
        (["python", "-u", "-m", "deepspeed.launcher.launch", "deepspeed"], None),
        (["bash", "-c", "deepspeed x"], None),
        ([], None),
    ],
)
def test_a_launcher_is_known_by_its_name(words, found):
    name = [] if found is None else [words[found].rpartition("/")[2], *words[found + 1 :]]
    assert words_of_launcher(words) == name


def test_without_a_launcher_it_is_what_the_rank_was_told():
    told = {COMMAND: "python launch/train.py --data 'a b'"}
    assert start_command(told, "runs/x y").endswith("--data 'a b' --output 'runs/x y'")
    assert start_command({COMMAND: "t --output=o"}, "runs/x") == "t --output=o"


def test_the_launcher_above_is_found_and_the_run_folder_named(tmp_path):
    launcher = tmp_path / "deepspeed"
    child = "from diablo_ds.launcher.start_command import *; print(start_command({}, 'runs/new'))"
    launcher.write_text(
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    done = subprocess.run(
        [
            sys.executable,
            launcher,
            "--num_gpus",
            "2",
            "train.py",
            "--env",
            "HF_TOKEN=secret",
            "a b",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout == "deepspeed --num_gpus 2 train.py --env HF_TOKEN 'a b' --output runs/new\n"
