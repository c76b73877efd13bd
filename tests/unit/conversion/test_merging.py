"""Merged files against the base with its deltas attached, for each family and kind of file."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from diablo_ds.adapter.attach import attach, load_deltas
from diablo_ds.adapter.merging import merge
from diablo_ds.adapter.targets import DEFAULT_TARGETS, select_targets
from diablo_ds.conversion.merging import plan, shards
from diablo_ds.files.layout import MERGE_REPORT_FILE
from diablo_ds.files.tensor_files import INDEX_FILE, find_tensors
from diablo_ds.model.architecture import build_model, text_decoder_name
from tests.unit.conversion.merge_cases import build, load, logits, make_case, save_case
from tests.unit.model.test_multimodal import CONFIGS


@pytest.mark.parametrize("family", sorted(DEFAULT_TARGETS))
def test_a_merged_model_computes_what_the_unmerged_one_does(tmp_path, family):
    case = make_case(tmp_path, family)
    case.merge(tmp_path / "merged")
    merged = logits(load(tmp_path / "merged"))
    unmerged = case.unmerged_logits()
    assert not torch.allclose(unmerged, logits(load(case.base)), atol=1e-3)
    # Sums in another order: some units in the last place of fp32.
    torch.testing.assert_close(merged, unmerged, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("family", sorted(DEFAULT_TARGETS))
def test_files_of_families_with_default_targets_have_the_names_of_modules(family):
    # Where transformers renames tensors of a family, find_weights must ask it.
    assert get_checkpoint_conversion_mapping(family) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_the_sum_in_fp32_rounded_once(tmp_path, dtype):
    case = make_case(tmp_path, "qwen2", dtype=dtype, max_shard_size="20KB")
    case.merge(tmp_path / "merged")
    model = load(case.base)
    attach(model, case.num_blocks)
    load_deltas(model, case.deltas)
    merge(model)
    expected = {name: value.to(dtype) for name, value in model.state_dict().items()}
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 1
    for name, value in load(tmp_path / "merged", dtype=dtype).state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_all_bytes_outside_the_diagonal_blocks_are_those_of_the_base(tmp_path):
    case = make_case(tmp_path, dtype=torch.bfloat16, max_shard_size="20KB")
    case.merge(tmp_path / "merged")
    assert (tmp_path / "merged" / INDEX_FILE).read_bytes() == (case.base / INDEX_FILE).read_bytes()
    for file in case.base.glob("*.safetensors"):
        old, new = file.read_bytes(), (tmp_path / "merged" / file.name).read_bytes()
        header = 8 + int.from_bytes(old[:8], "little")
        assert old[:header] == new[:header]
        before, after = load_file(file), load_file(tmp_path / "merged" / file.name)
        for name, value in before.items():
            changed = (value != after[name]).to(torch.float32)
            if f"{name.removesuffix('.weight')}.delta" in case.deltas:
                rows, columns = (n // 4 for n in value.shape)
                assert changed.sum()
                changed *= 1 - torch.block_diag(*[torch.ones(rows, columns)] * 4)
            assert not changed.any(), name


@pytest.mark.parametrize("piece_bytes", [1, 200, 1000])
@pytest.mark.parametrize("num_blocks", [1, 4])
@pytest.mark.parametrize("by_kernel", [True, False])
def test_pieces_of_any_size_give_the_same_file(
    tmp_path, monkeypatch, piece_bytes, num_blocks, by_kernel
):
    case = make_case(tmp_path, num_blocks=num_blocks)
    case.merge(tmp_path / "merged")
    monkeypatch.setattr(shards, "_PIECE_BYTES", max(4, piece_bytes))
    monkeypatch.setattr(shards, "_COPY_BYTES", piece_bytes)
    if not by_kernel:
        monkeypatch.delattr(shards.os, "copy_file_range")
    case.merge(tmp_path / "pieces")
    for name in ("model.safetensors", MERGE_REPORT_FILE):
        if name == MERGE_REPORT_FILE:
            old, new = (json.loads((tmp_path / n / name).read_text()) for n in ("merged", "pieces"))
            assert old["total"]["changed"] == new["total"]["changed"]
            assert old["total"]["relative_error"] == pytest.approx(new["total"]["relative_error"])
        else:
            old, new = ((tmp_path / n / name).read_bytes() for n in ("merged", "pieces"))
            assert old == new


# --- names and dtypes ----------------------------------------------------------------------------


def test_files_are_filled_up_to_a_size_that_is_given(tmp_path):
    case = make_case(tmp_path)
    case.merge(tmp_path / "merged", max_shard_size="30KB")
    files = sorted((tmp_path / "merged").glob("*.safetensors"))
    assert len(files) > 1
    assert all(file.stat().st_size < 40_000 for file in files)
    index = json.loads((tmp_path / "merged" / INDEX_FILE).read_text())
    for file in files:
        with safe_open(file, framework="pt") as stream:
            assert {n for n, f in index["weight_map"].items() if f == file.name} == {*stream.keys()}
    torch.testing.assert_close(
        logits(load(tmp_path / "merged")), case.unmerged_logits(), atol=2e-5, rtol=2e-5
    )
    again = make_case(tmp_path / "again", max_shard_size="30KB")
    again.merge(tmp_path / "single", max_shard_size="1GB")
    assert [p.name for p in (tmp_path / "single").glob("*.safetensors*")] == ["model.safetensors"]


def test_another_dtype_is_in_the_files_and_in_the_config(tmp_path):
    case = make_case(tmp_path, "gpt_neox", dtype=torch.bfloat16, max_shard_size="20KB")
    case.merge(tmp_path / "merged", dtype="fp32")
    assert {t.dtype for t in find_tensors(tmp_path / "merged").values()} == {torch.float32}
    model = load(tmp_path / "merged", dtype="auto")
    assert model.dtype == torch.float32
    torch.testing.assert_close(logits(model), case.unmerged_logits(), atol=2e-5, rtol=2e-5)
    index = json.loads((tmp_path / "merged" / INDEX_FILE).read_text())
    assert index["metadata"]["total_size"] == sum(
        t.num_bytes for t in find_tensors(tmp_path / "merged").values()
    )
    case.merge(tmp_path / "half", dtype="fp16")
    assert load(tmp_path / "half", dtype="auto").dtype == torch.float16


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1.5 MiB", 3 * 2**19), ("1000", 1000), ("2kb", 2000)]
)
def test_sizes(text, size):
    assert plan.parse_size(text) == size


def test_layers_outside_the_decoder_are_merged_too(tmp_path):
    case = make_case(tmp_path, targets=("q_proj", "lm_head"), tie_word_embeddings=False)
    case.merge(tmp_path / "merged")
    torch.testing.assert_close(
        logits(load(tmp_path / "merged")), case.unmerged_logits(), atol=2e-5, rtol=2e-5
    )


def test_files_without_the_prefix_of_the_head_model(tmp_path):
    model = build("llama", tie_word_embeddings=True)
    model.model.save_pretrained(tmp_path / "base")  # layers.0... instead of model.layers.0...
    case = save_case(tmp_path, select_targets(model, DEFAULT_TARGETS["llama"]), 4)
    case.merge(tmp_path / "merged")
    torch.testing.assert_close(
        logits(load(tmp_path / "merged")), case.unmerged_logits(), atol=2e-5, rtol=2e-5
    )


def test_a_mixture_of_experts_whose_experts_are_stored_one_by_one(tmp_path):
    case = make_case(
        tmp_path,
        "qwen3_moe",
        targets=("q_proj", "v_proj"),
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
    )
    assert any("experts.0." in name for name in find_tensors(case.base))
    case.merge(tmp_path / "merged")
    torch.testing.assert_close(
        logits(load(tmp_path / "merged")), case.unmerged_logits(), atol=2e-5, rtol=2e-5
    )


@pytest.mark.parametrize("kind", ["llava", "gemma3"])
def test_the_text_model_of_one_that_sees_images(tmp_path, kind):
    model = build_model(CONFIGS[kind], torch.float32)
    model.save_pretrained(tmp_path / "base")
    within = text_decoder_name(model)
    case = save_case(tmp_path, select_targets(model, ("q_proj", "up_proj"), within=within), 4)
    stored = find_tensors(case.base)
    assert not any(f"{layer}.weight" in stored for layer in case.num_blocks)  # renamed on loading
    case.merge(tmp_path / "merged")
    attach(model, case.num_blocks)
    load_deltas(model, case.deltas)
    merge(model)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    expected = model.state_dict()
    for name, value in merged.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=0, rtol=0)
