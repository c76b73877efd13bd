"""What a run takes from the hub: only what is named so, said on the screen, and the same again."""

from __future__ import annotations

import json

import pytest

from diablo_ds.adapter.storage import load_adapter_config
from tests.e2e.commands import assert_user_error, diablo_ds
from tests.hub import serving
from tests.tiny import save_model, write_pairs

pytestmark = pytest.mark.e2e
OPTIONS = ("--num-blocks", 4, "--global-batch", 4, "--precision", "fp32", "--max-steps")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        yield hub


def test_a_run_keeps_the_revisions_that_it_began_with(hub, model, data, tmp_path):
    def push(folder, pairs):
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        added = {"evil.py": b"raise SystemExit", "pytorch_model.bin": b"a pickle"}
        return (
            hub.push("models/owner/tiny", {**files, **added}),
            hub.push("datasets/owner/pairs", {"train.jsonl": pairs.read_bytes(), **added}),
        )

    run, named = tmp_path / "run", ("--model", "hf://owner/tiny", "--data", "hf://owner/pairs")
    keys = ("models/owner/tiny", "datasets/owner/pairs")
    revisions = dict(zip(keys, push(model, data), strict=True))
    first = diablo_ds("train", *named, *OPTIONS, 1, "--output", run)
    for key, revision in revisions.items():
        kind, name = key.split("s/", 1)
        assert f"From the hub: {kind} {name}, revision {revision}, in " in first.stderr
    # Another model, and other data, are pushed under the same names.
    push(
        save_model(tmp_path / "other", hidden_size=32),
        write_pairs(tmp_path / "other.jsonl", 40, seed=1),
    )
    second = diablo_ds("train", *named, *OPTIONS, 2, "--output", run)
    assert "Resuming after step 1" in second.stderr
    starts = json.loads((run / "run.json").read_text())["starts"]
    assert [start["hub"] for start in starts] == [revisions] * 2
    assert [change["field"] for change in starts[1]["changes"]] == ["max_steps"]
    config = load_adapter_config(run / "adapter")
    assert (config.base_model, config.revision) == ("owner/tiny", revisions["models/owner/tiny"])
    assert not [path for path in hub.requests if path.endswith((".py", ".bin"))]
    # The record names the revisions, wherever it is used.
    again = diablo_ds("train", "--config", run, "--output", tmp_path / "again", "--dry-run")
    assert f"hf://owner/tiny@{revisions['models/owner/tiny']}" in again.stdout + again.stderr


def test_a_mistyped_path_is_an_error_whatever_the_hub_has(hub, model, data):
    hub.push("datasets/prepared/maths", {"train.jsonl": data.read_bytes()})
    options = ("--model", model, "--num-blocks", 4, "--data", "prepared/maths")
    result = diablo_ds("train", *options, check=False)
    assert_user_error(result, "data='prepared/maths'", "named hf://prepared/maths")
    assert not [path for path in hub.requests if "prepared" in path]
