"""What a merge reports of its rounding, to the nearest number and at random."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from diablo_ds.adapter.storage import AdapterConfig, save_adapter
from diablo_ds.errors import UserError
from diablo_ds.files.layout import MERGE_REPORT_FILE
from diablo_ds.model.finding import fingerprint
from tests.unit.conversion.merge_cases import make_case


def test_the_report_counts_what_rounding_swallowed(tmp_path):
    case = make_case(tmp_path, dtype=torch.bfloat16)
    base = load_file(case.base / "model.safetensors")
    layer = "model.layers.0.self_attn.q_proj"
    weight = base[f"{layer}.weight"].float()
    deltas = {name: torch.zeros_like(delta) for name, delta in case.deltas.items()}
    for i in range(4):  # half a step of bf16 at a weight is at least 2^-9 of it
        block = weight[8 * i : 8 * i + 8, 8 * i : 8 * i + 8]
        deltas[f"{layer}.delta"][i] = block.T * 2.0**-10
    deltas[f"{layer}.delta"][0, :2] *= 2**10
    config = AdapterConfig(str(case.base), fingerprint(case.base), case.num_blocks)
    save_adapter(case.adapter, deltas, config)
    merged = case.merge(tmp_path / "merged")
    report = json.loads((tmp_path / "merged" / MERGE_REPORT_FILE).read_text())
    found = report["layers"][layer]
    assert (found["elements"], found["nonzero"], found["changed"]) == (256, 256, 16)
    assert (found["swallowed"], found["swallowed_share"]) == (240, 240 / 256)
    assert report["total"]["swallowed"] == 240
    assert report["dtype"] == "bf16"
    assert 0 < found["relative_error"] < 2.0**-9
    assert (
        "swallowed 93.8% of the deltas' elements; --dtype fp32 keeps them, and --rounding"
        in merged.text
    )
    on_average = case.merge(tmp_path / "on_average", rounding="stochastic")
    assert "Warning" not in on_average.text
    report = json.loads((tmp_path / "on_average" / MERGE_REPORT_FILE).read_text())
    assert report["rounding"] == "stochastic"
    assert report["total"]["changed"] > 16  # 1 of 4 to 1 of 8 of those that nearest swallows
    again = case.merge(tmp_path / "again", rounding="stochastic")
    assert again.text == on_average.text
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "on_average" / "model.safetensors"
    ).read_bytes()
    with pytest.raises(UserError, match="rounding must be nearest"):
        case.merge(tmp_path / "wide", dtype="fp32", rounding="stochastic")
    exact = case.merge(tmp_path / "exact", dtype="fp32")
    assert "Warning" not in exact.text
    report = json.loads((tmp_path / "exact" / MERGE_REPORT_FILE).read_text())
    assert (report["total"]["swallowed"], report["total"]["changed"]) == (0, 256)
