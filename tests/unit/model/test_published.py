"""Configs of published models, and of shapes that are given."""

from __future__ import annotations

import pytest

from diablo_ds.errors import UserError
from diablo_ds.model.architecture import build_meta_model, num_elements
from diablo_ds.model.built_in import BUILT_IN, BY_HUB_NAME
from diablo_ds.model.published import find_model_config
from diablo_ds.model.shape import Shape
from tests.tiny import save_model

PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "mistral-small-24b": 23_572_403_200,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 4_300_079_472,
    "gemma-3-12b": 12_187_325_040,
    "gemma-3-27b": 27_432_406_640,
    "phi-4": 14_659_507_200,
    "phi-4-mini": 3_836_021_760,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "smollm3-3b": 3_075_098_624,
}
"""Parameters in the published checkpoints, a tied head counted once."""


def test_every_built_in_shape_is_checked():
    assert PUBLISHED.keys() == BUILT_IN.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_built_in_shapes_have_the_published_number_of_parameters(name):
    config, run_name = find_model_config(name, Shape(), 512)
    assert num_elements(build_meta_model(config)) == PUBLISHED[name]
    # Every hub name finds the same shape, in any case and without network.
    for hub_name in BUILT_IN[name].hub_names:
        same, kept_name = find_model_config(hub_name, Shape(), 512)
        assert same.to_dict() == config.to_dict()
        assert kept_name == hub_name
    for other in (run_name.upper(), run_name.rpartition("/")[2]):
        same, found_name = find_model_config(other, Shape(), 512)
        assert same.to_dict() == config.to_dict()
        assert found_name == run_name


def test_no_two_built_in_models_have_one_hub_name():
    assert len(BY_HUB_NAME) == sum(len(each.hub_names) for each in BUILT_IN.values())


def test_a_width_changes_the_text_part_of_a_model_that_sees():
    config, _ = find_model_config("google/gemma-3-4b-it", Shape(num_hidden_layers=2), 512)
    assert config.get_text_config().num_hidden_layers == 2
    assert config.vision_config.num_hidden_layers == 27


def test_a_folder_of_a_hub_name_is_read_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "Qwen" / "Qwen3-8B")
    config, _ = find_model_config("Qwen/Qwen3-8B", Shape(), 512)
    assert config.hidden_size < 4096


def test_a_shape_changes_a_built_in_model_and_names_no_checkpoint():
    config, run_name = find_model_config("llama-3-8b", Shape(num_hidden_layers=2), 512)
    assert config.num_hidden_layers == 2
    assert run_name.lower() not in BY_HUB_NAME


@pytest.mark.parametrize("shape", [Shape(), Shape(hidden_size=64)])
def test_a_model_without_name_needs_all_widths(shape):
    with pytest.raises(UserError, match=r"by all of its widths; got none of .*--vocab-size"):
        find_model_config("", shape, 512)
