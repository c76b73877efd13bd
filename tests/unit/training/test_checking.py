from __future__ import annotations

import json

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import parse_run_config
from diablo_ds.errors import UserError
from diablo_ds.training.checking import check_targets, runs_as_json
from tests.tiny import save_model


def test_runs_that_a_model_cannot_have_are_named_with_the_reason(tmp_path):
    model = str(save_model(tmp_path / "model"))
    good = ("a", RunConfig(model=model, num_blocks="4"))
    check_targets([good])
    for changes, message in (
        ({"num_blocks": "5"}, "run b of the sweep: num_blocks must divide"),
        ({"targets": ("none",)}, "run b of the sweep: .*none"),
        ({"model": str(tmp_path / "nowhere")}, "run b of the sweep: .*nowhere"),
    ):
        with pytest.raises(UserError, match=message):
            check_targets([good, ("b", RunConfig(**{"model": model, **changes}))])


def test_runs_survive_their_way_to_the_process_that_checks_them(tmp_path):
    run_config = RunConfig(targets=("q_proj", "re:.*k$"), num_blocks="auto:1%", packing=True)
    ((name, values),) = json.loads(runs_as_json([("x", run_config)]))
    assert (name, parse_run_config(values, tmp_path)) == ("x", run_config)
