from __future__ import annotations

import io
import math
import sys

import numpy as np
from matplotlib.image import imread

from diablo_ds.training.heat_map import HeatMap

NORMS = {
    f"model.layers.{layer}.self_attn.{module}.delta": layer + 10.0 * (module == "v_proj")
    for layer in (10, 2, 0)
    for module in ("q_proj", "v_proj")
} | {"model.layers.2.mlp.up_proj.delta": math.nan, "lm_head.delta": 1.0}


def test_layers_are_rows_in_their_order_and_modules_columns():
    heat_map = HeatMap.of(NORMS)
    assert heat_map.layers == [-1, 0, 2, 10]
    assert heat_map.modules == ["self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "lm_head"]
    nan = math.nan
    wanted = [[nan, nan, nan, 1], [0, 10, nan, nan], [2, 12, nan, nan], [10, 20, nan, nan]]
    np.testing.assert_array_equal(heat_map.values, wanted)
    assert HeatMap.of({"a.0.b.delta": math.nan}) is None


def test_without_matplotlib_the_picture_has_the_same_order_and_no_labels(monkeypatch):
    heat_map = HeatMap.of(NORMS)
    labelled = imread(io.BytesIO(heat_map.png("norms")))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    plain = heat_map.png("norms")
    monkeypatch.undo()
    pixels = imread(io.BytesIO(plain))
    assert labelled.shape[0] > pixels.shape[0] == 4 * 12
    cells = pixels[6::12, 12::24]
    light = cells[..., 1]  # green grows from dark to light
    assert light[3, 1] == light[np.isfinite(heat_map.values)].max()
    assert light[1, 0] == light.min()
    assert len({tuple(cell) for cell in cells[np.isnan(heat_map.values)]}) == 1
