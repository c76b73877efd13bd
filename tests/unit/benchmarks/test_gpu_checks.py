"""The checks that a GPU is measured with, at tiny sizes on this machine; and that they can fail."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.gpu import check_layers, check_model, check_packing
from benchmarks.gpu.check_layers import check_layer
from benchmarks.gpu.check_model import check_path
from benchmarks.gpu.checks import cases
from diablo_ds.adapter.autograd import diablo_linear
from diablo_ds.adapter.paths import DELTA_PATHS

_KINDS = ("gradients", "packed", "repeated", "layer")
CHEAP = {case.name: case for case in cases("tiny") if case.name.startswith(_KINDS)}


def test_every_path_and_attention_has_its_checks():
    names = {case.name for case in cases("tiny")}
    for path in DELTA_PATHS:
        assert {f"gradients, {path}", f"layer, {path}"} <= names
    assert {"packed, sdpa", "packed with a window, varlen", "run, packed"} <= names


@pytest.mark.parametrize("name", CHEAP)
def test_a_check_passes_here(name):
    figures = CHEAP[name].run()
    assert figures.get("passed") or figures.get("skipped"), figures
    json.dumps(figures)


def test_a_wrong_gradient_is_found(monkeypatch):
    def shifted(x, weight, bias, delta, **options):
        return diablo_linear(x, weight, bias, delta, **options) + 0.01 * delta.sum()

    monkeypatch.setattr(check_layers, "diablo_linear", shifted)
    assert not check_layer("tiny", "fused")["passed"]


def test_a_loss_of_other_weights_is_found(monkeypatch):
    deltas = check_model._deltas

    def doubled(shapes, dtype):
        return {name: 2 * delta for name, delta in deltas(shapes, dtype).items()}

    reference = check_model.reference(check_model.SIZES["tiny"], torch.float32)
    monkeypatch.setattr(check_model, "reference", lambda *args: reference)
    monkeypatch.setattr(check_model, "_deltas", doubled)
    assert not check_path("tiny", "fused", only=("fp32",))["passed"]


def test_packed_rows_that_see_each_other_are_found(monkeypatch):
    collate = check_packing.collate

    def without_positions(*args, packing=False, **options):
        return collate(*args, packing=packing, **options)._replace(position_ids=None)

    monkeypatch.setattr(check_packing, "collate", without_positions)
    assert not check_packing.check_packing("tiny", "sdpa")["passed"]
