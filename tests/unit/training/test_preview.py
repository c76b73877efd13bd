from __future__ import annotations

import json

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.training.preview import preview_data
from tests.tiny import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "tiny")


def test_counts_and_examples_are_shown_with_their_loss(model, tmp_path):
    path = tmp_path / "d.jsonl"
    rows = [{"prompt": f"{i}=", "completion": "ab"} for i in range(4)]
    path.write_text("\n".join(map(json.dumps, rows)))
    text = preview_data(RunConfig(model=str(model), data=(str(path),), heldout_share=0.25), 2)
    assert text.count("=[[ab<|end|>]]") == 2
    assert "Training data: 3 examples" in text
    assert "Held-out data: 1 examples" in text
    stream = RunConfig(model=str(model), data=(str(path),), stream=True, max_steps=1)
    with pytest.raises(UserError, match="preview needs data that are read before the run"):
        preview_data(stream, 1)
