"""A run whose data changed under the same name says so, and goes on with them only knowingly."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.e2e.commands import assert_user_error, losses
from tests.forked import diablo_ds
from tests.tiny import write_pairs

pytestmark = pytest.mark.e2e


def test_changed_data_are_refused_and_taken_knowingly(options, tmp_path):
    data, folder = write_pairs(tmp_path / "own.jsonl", 20), tmp_path / "run"
    options = [*options, "--data", data, "--max-steps", 0, "--output", folder]  # 5 steps a pass
    options += ["--save-every", 2, "--heldout-share", 0]
    diablo_ds("train", *options)
    before = losses(folder)
    assert list(before) == [1, 2, 3, 4, 5]
    shutil.rmtree(folder / "checkpoints" / "step-000005")
    shutil.rmtree(folder / "adapter")

    with data.open("a") as file:
        file.writelines(data.read_text().splitlines(keepends=True)[:8])
    result = diablo_ds("train", *options, check=False)
    assert_user_error(result, "20 examples, now 28", f"{data} had ", "--allow-changed-data")
    assert losses(folder) == before

    result = diablo_ds("train", *options, "--allow-changed-data")
    assert "starts a new pass over the current data after step 4" in result.stderr
    assert re.search(r"^steps +11;", result.stderr, re.MULTILINE)
    after = losses(folder)
    assert list(after) == list(range(1, 12))
    assert [after[step] for step in range(1, 5)] == [before[step] for step in range(1, 5)]

    # A folder of an older version, whose checkpoints have no fingerprint, goes on with a note.
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:8]))
    for checkpoint in (folder / "checkpoints").iterdir():
        _forget_the_data(checkpoint)
    shutil.rmtree(folder / "adapter")
    result = diablo_ds("train", *options)
    assert "whether the data changed is not known" in result.stderr
    assert "has taken 11 steps already; its data or settings make 2" in result.stderr
    assert "Done: 11 steps" in result.stdout


def _forget_the_data(checkpoint: Path) -> None:
    from diablo_ds.files.atomic import sha256_file

    state, manifest = checkpoint / "state.json", checkpoint / "checksums.json"
    values = json.loads(state.read_text())
    values.pop("data")
    state.write_text(json.dumps(values))
    files = json.loads(manifest.read_text())
    files["files"]["state.json"] = {"bytes": state.stat().st_size, "sha256": sha256_file(state)}
    manifest.write_text(json.dumps(files))
