"""`diablo-ds generate` in a pipe: it ends quietly where its reader has seen enough."""

from __future__ import annotations

import subprocess

import pytest
from torch import nn
from transformers import AutoModelForCausalLM

import diablo_ds
from tests.e2e.commands import environment
from tests.tiny import save_model
from tests.waiting import WAIT_S

pytestmark = pytest.mark.e2e


def test_a_reader_that_ends_first_is_no_error(tmp_path):
    base = save_model(tmp_path / "tiny", initializer_range=0.3)
    model = AutoModelForCausalLM.from_pretrained(base)
    for delta in diablo_ds.attach(model, 4).values():
        nn.init.normal_(delta, std=0.3)
    diablo_ds.save(model, tmp_path / "a")
    command = "set -o pipefail; diablo-ds generate --adapter a --max-new-tokens 100"
    prompts = " --prompt 1 --prompt 2 --prompt 3"
    done = subprocess.run(
        ["bash", "-c", command + prompts + " --compare-base | head -c 3"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.stdout == "[ba"
    assert done.returncode == 0, done.stderr
    for word in ("Traceback", "Error", "Broken"):
        assert word not in done.stderr
