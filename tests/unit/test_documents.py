"""Links, options and file names in the documents lead somewhere."""

from __future__ import annotations

import importlib
import re

import pytest

from diablo_ds.cli.main import main as cli
from tests.documents import DOCUMENTS, ROOT, anchors, commands, links, spans

FOREIGN_OPTIONS = {
    "--append",
    "--backend-store-uri",
    "--exclusive",  # sbatch
    "--export",
    "--hypothesis-profile",  # pytest
    "--include",  # deepspeed
    "--log_level",  # deepspeed
    "--logdir",  # tensorboard
    "--logdir_spec",
    "--master_port",
    "--no_ssh",
    "--num_gpus",
    "--nv",  # apptainer
    "--shm-size",  # docker
}
"""Options of other programs that the documents mention."""
SOURCES = ("diablo_ds", "benchmarks", "tests", "launch")
STRANGERS = ("torch.py", "random.py", "json.py", "diablo_ds.py")
"""File names in the documents that are not of this repository."""


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(path):
    for link in links(path.read_text()):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_options_and_source_files_that_sentences_name_exist(path):
    known = _options(cli) | FOREIGN_OPTIONS | {"--help", "--version"}
    for name in (
        "gpu.__main__",
        "step",
        "faults",
        "fuzz.__main__",
        "quality.__main__",
        "quality.metamath",
    ):
        known |= _options(importlib.import_module(f"benchmarks.{name}").main)
    files = {file.name for folder in SOURCES for file in (ROOT / folder).rglob("*.py")}
    for span in spans(path.read_text()):
        for word in span.split():
            option = word.partition("=")[0]
            names = {option, option.replace("_", "-")}
            assert not re.fullmatch(r"--[a-z][\w-]*", option) or names & known, span
            if word.endswith(".py") and word not in STRANGERS:
                places = (ROOT / word, ROOT / "diablo_ds" / word)
                exists = any(p.is_file() for p in places) if "/" in word else word in files
                assert exists, span


def _options(command):
    """Return the options of a command and of all commands below it."""
    inside = getattr(command, "commands", {}).values()
    own = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
    return own.union(*map(_options, inside))


def test_commands_are_found_in_blocks_fences_and_lines():
    text = (
        "Run `diablo-ds inspect\nPATH`, or `deepspeed` itself:\n\n    make train   # now\n"
        "    diablo-ds train -> ranks\n"
        "    diablo-ds plan \\\n        --nodes 2\n\n```sh\n$ diablo-ds train\n```\n"
        "```python\ndiablo-ds = 1\n```\n"
    )
    assert commands(text) == [
        (("make", "train"), False),
        (("diablo-ds", "plan", "--nodes", "2"), False),
        (("diablo-ds", "train"), False),
        (("diablo-ds", "inspect", "PATH"), True),
    ]
