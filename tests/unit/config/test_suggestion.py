from __future__ import annotations

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import settings_of
from diablo_ds.config.suggestion import _OF_OTHERS, did_you_mean

NAMES = [setting.name for setting in settings_of(RunConfig)]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lerning_rate", "learning_rate"),
        ("Learning-Rate", "learning_rate"),
        ("--output-dir", "output"),
        ("per_device_train_batch_size", "micro_batch"),
        ("max_step", "max_steps"),
    ],
)
def test_the_known_name_is_suggested(name, meant):
    assert did_you_mean(name, NAMES).startswith(f"; did you mean {meant}")


def test_nothing_is_suggested_for_what_resembles_nothing():
    assert did_you_mean("xyz", NAMES) == ""
    assert did_you_mean("lr", ["stage"]) == ""


def test_each_name_of_others_stands_for_a_setting():
    assert set(_OF_OTHERS.values()) <= set(NAMES)
    assert not _OF_OTHERS.keys() & set(NAMES)
