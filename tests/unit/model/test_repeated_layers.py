"""Layers that equal an earlier one are not run, and no size is another for it."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch

from diablo_ds.config.run import RunConfig
from diablo_ds.model.activations import measure_activations
from diablo_ds.model.architecture import build_meta_model, decoder_layers
from diablo_ds.model.deltas import add_deltas, choose_num_blocks
from diablo_ds.planning import measure
from tests.tiny import FAMILIES, TWO_KINDS_OF_LAYERS

KNOWN = FAMILIES | {"gemma2": TWO_KINDS_OF_LAYERS}
RUN = RunConfig(num_blocks="4", precision="bf16", max_length=24)


def _config(family):
    values = {**KNOWN[family].to_dict(), "num_hidden_layers": 5}
    if kinds := values.get("layer_types"):
        values["layer_types"] = (kinds * 3)[:5]
    return KNOWN[family].__class__.from_dict(values)


def _with_deltas(family, **changes):
    model = build_meta_model(_config(family)).to(torch.bfloat16)
    run = dataclasses.replace(RUN, **changes)
    return add_deltas(model, choose_num_blocks(model, run), run, model).model


def _num_run(model) -> list[int]:
    """Whether each layer's attention is called while activations are measured."""
    calls = [0] * len(decoder_layers(model))
    for number, layer in enumerate(decoder_layers(model)):
        attention = getattr(layer, "self_attn", None) or layer.attention
        attention.register_forward_pre_hook(
            lambda *_, number=number: calls.__setitem__(number, calls[number] + 1)
        )
    measure_activations(model, micro_batch=1, length=8)
    return calls


@pytest.fixture
def running_all(monkeypatch: pytest.MonkeyPatch):
    """Return a function after which all layers are run."""

    def run_all():
        for module in ("model.activations", "planning.measure"):
            monkeypatch.setattr(
                f"diablo_ds.{module}.skipping_repeated", lambda layers: contextlib.nullcontext()
            )

    return run_all


@pytest.mark.parametrize("layers", ["", "0,2"])
@pytest.mark.parametrize("family", KNOWN)
def test_sizes_are_those_of_all_layers(family, layers, running_all):
    run = dataclasses.replace(RUN, layers=layers, micro_batch=4)
    measure._METERS.clear()
    skipped = measure.measure_model(_config(family), run)
    assert measure.measure_model(_config(family), run) == skipped
    running_all()
    measure._METERS.clear()
    assert measure.measure_model(_config(family), run) == skipped
    # Any number of sequences is told from one and two.
    model = _with_deltas(family, layers=layers)
    direct = measure_activations(model, micro_batch=4, length=24)
    assert direct == skipped.activations


def test_a_layer_of_each_kind_is_run():
    assert _num_run(_with_deltas("llama")) == [1, 0, 0, 0, 0]
    assert _num_run(_with_deltas("llama", layers="0,2")) == [1, 1, 0, 0, 0]
    assert _num_run(_with_deltas("gemma2")) == [1, 1, 0, 0, 0]
    model = _with_deltas("llama")
    decoder_layers(model)[3].mlp.kept = 7
    assert _num_run(model) == [1, 0, 0, 1, 0]
    assert _num_run(model) == [1, 0, 0, 1, 0]  # the layers were left as they were
