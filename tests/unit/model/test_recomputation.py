"""Which decoder layers are recomputed, as settings say."""

from __future__ import annotations

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.model.architecture import build_meta_model
from diablo_ds.model.recomputation import Recomputation, choose_recomputation
from tests.tiny import FAMILIES


def _choose(**settings):
    return choose_recomputation(RunConfig(**settings), build_meta_model(FAMILIES["llama"]))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (0, False)),  # a small model
        ({"recompute": True}, (2, False)),
        ({"recompute": False}, (0, False)),
        ({"recomputed_layers": 1}, (1, False)),
        ({"keep_attention": True}, (2, True)),
        ({"reentrant": True}, (2, False)),
    ],
)
def test_a_setting_of_recomputation_turns_it_on(settings, expected):
    assert _choose(**settings) == Recomputation(*expected)


def test_more_layers_than_there_are_are_refused():
    with pytest.raises(UserError, match="got recomputed_layers=3, 2 layers"):
        _choose(recomputed_layers=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_attention": True, "reentrant": True}, "non-re-entrant form"),
        ({"keep_attention": True, "recompute": False}, "needs recomputation"),
        ({"memory_budget": 8.0, "recompute": True}, "leave one of them out"),
        ({"memory_budget": 8.0, "recomputed_layers": 1}, "give one of them"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        RunConfig(**settings)
