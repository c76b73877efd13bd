"""Configs of published models, and of shapes that are given."""

from __future__ import annotations

import pytest

from diablo_ds.errors import UserError
from diablo_ds.model.architecture import build_meta_model, num_elements
from diablo_ds.model.published import BUILT_IN, find_model_config
from diablo_ds.model.shape import Shape

PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
    "smollm2-135m": 134_515_008,
}
"""Parameters in the published checkpoints, a tied head counted once."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_built_in_shapes_have_the_published_number_of_parameters(name):
    config, _ = find_model_config(name, Shape(), 512)
    assert num_elements(build_meta_model(config)) == PUBLISHED[name]


def test_a_shape_changes_a_built_in_model_and_names_no_checkpoint():
    config, run_name = find_model_config("llama-3-8b", Shape(num_hidden_layers=2), 512)
    assert config.num_hidden_layers == 2
    assert run_name not in {built_in.hub_name for built_in in BUILT_IN.values()}


@pytest.mark.parametrize("shape", [Shape(), Shape(hidden_size=64)])
def test_a_model_without_name_needs_all_widths(shape):
    with pytest.raises(UserError, match=r"by all of its widths; got none of .*--vocab-size"):
        find_model_config("", shape, 512)
