"""What a merge refuses, before it writes anything, and what it takes over besides weights."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from diablo_ds.adapter.storage import AdapterConfig, save_adapter
from diablo_ds.conversion.merging import merge as merging
from diablo_ds.errors import UserError
from diablo_ds.files.layout import ADAPTER_CONFIG_FILE, ADAPTER_TENSOR_FILE, MERGE_REPORT_FILE
from diablo_ds.files.tensor_files import INDEX_FILE
from diablo_ds.model.finding import fingerprint
from tests.tiny import byte_tokenizer
from tests.unit.conversion.merge_cases import Case, load, logits, make_case


@pytest.fixture
def case(tmp_path) -> Case:
    return make_case(tmp_path, tie_word_embeddings=True)


def _refused(case, tmp_path, match, **options):
    before = _content(case.base)
    with pytest.raises(UserError, match=match):
        case.merge(tmp_path / "merged", **options)
    assert not (tmp_path / "merged").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert _content(case.base) == before


def _content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _change_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _save(case, deltas, counts=None, base=None):
    base = base or case.base
    config = AdapterConfig(str(base), fingerprint(case.base), counts or case.num_blocks)
    save_adapter(case.adapter, deltas, config)


# --- bases ---------------------------------------------------------------------------------------


def test_another_base_is_refused_and_merged_by_force(case, tmp_path, caplog):
    other = tmp_path / "other"
    shutil.copytree(case.base, other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    _refused(case, tmp_path, "base model it was trained on; got .*--force", base=str(other))
    case.merge(tmp_path / "merged", base=str(other), force=True)
    assert "base model it was trained on" in caplog.text
    assert (tmp_path / "merged").is_dir()


def test_the_recorded_base_is_gone(case, tmp_path):
    moved = case.base.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"existing folder.*; give it by --base"):
        case.merge(tmp_path / "merged")
    case.merge(tmp_path / "merged", base=str(moved))
    assert (tmp_path / "merged" / "model.safetensors").is_file()


@pytest.mark.parametrize("kept", [0.9, 0.001])
def test_a_half_written_shard_of_the_base(case, tmp_path, kept):
    file = case.base / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(kept * len(data))])
    _refused(case, tmp_path, "model file must be")


def test_a_missing_shard_of_the_base(tmp_path):
    case = make_case(tmp_path, max_shard_size="30KB")
    sorted(case.base.glob("*.safetensors"))[1].unlink()
    _refused(case, tmp_path, "every file of its index")


def test_an_index_that_leads_out_of_the_base(tmp_path):
    case = make_case(tmp_path, max_shard_size="30KB")
    _change_json(case.base / INDEX_FILE, weight_map={"a": "../../a.safetensors"})
    _refused(case, tmp_path, "files of its folder")


def test_a_quantised_base(case, tmp_path):
    _change_json(case.base / "config.json", quantization_config={"quant_method": "gptq"})
    _refused(case, tmp_path, "must not be quantised.*gptq")


def test_weights_in_fp8(case, tmp_path):
    file = case.base / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, file, metadata={"format": "pt"})
    _refused(case, tmp_path, "float8_e4m3fn", force=True)


def test_a_layer_that_the_base_lacks(case, tmp_path):
    layer = "model.layers.7.self_attn.q_proj"
    _save(
        case, {**case.deltas, f"{layer}.delta": torch.ones(4, 8, 8)}, {**case.num_blocks, layer: 4}
    )
    _refused(case, tmp_path, rf"every layer of the adapter.*{layer}")


def test_a_layer_that_is_tied_to_the_embedding(case, tmp_path):
    _save(case, {"lm_head.delta": torch.ones(4, 8, 24)}, {"lm_head": 4})
    _refused(case, tmp_path, "lm_head, which is tied to model.embed_tokens")


def test_a_weight_that_transformers_makes_from_others(tmp_path):
    case = make_case(tmp_path, "hrm_text", targets=("q_proj",))
    _refused(case, tmp_path, "which transformers makes from others")


def test_blocks_of_another_width(case, tmp_path):
    deltas = {name: torch.ones(2, 8, 8) for name in case.deltas}
    _save(case, deltas, dict.fromkeys(case.num_blocks, 2))
    _refused(case, tmp_path, r"delta for \[16, 16\]")


# --- adapters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite(case, tmp_path, value):
    name = next(reversed(case.deltas))
    delta = case.deltas[name].clone()
    delta[-1, -1, -1] = value
    file = case.adapter / ADAPTER_TENSOR_FILE
    tensors = load_file(file)
    key = next(key for key in tensors if name.removesuffix(".delta") in key)
    tensors[key] = delta
    save_file(tensors, file, metadata={"format": "pt"})
    _refused(case, tmp_path, "finite")


def test_a_cut_adapter(case, tmp_path):
    file = case.adapter / ADAPTER_TENSOR_FILE
    file.write_bytes(file.read_bytes()[:-10])
    _refused(case, tmp_path, "safetensors|complete")


def test_an_adapter_that_changes_nothing(case, tmp_path):
    _save(case, {name: torch.zeros_like(delta) for name, delta in case.deltas.items()})
    _refused(case, tmp_path, "all 0")


def test_a_merge_that_rounding_swallows_leaves_nothing_behind(tmp_path):
    case = make_case(tmp_path, dtype=torch.bfloat16, max_shard_size="20KB")
    _save(case, {name: torch.full_like(d, 1e-30) for name, d in case.deltas.items()})
    _refused(case, tmp_path, "none of .* elements that changes.*--dtype fp32")


def test_sums_that_do_not_fit(tmp_path):
    case = make_case(tmp_path, dtype=torch.float16, scale=1e6)
    _refused(case, tmp_path, "fit in the dtype.*float16")


# --- outputs and settings ------------------------------------------------------------------------


def test_an_output_that_exists_is_left_alone(case, tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine").write_text("x")
    with pytest.raises(UserError, match="output must be a new folder"):
        case.merge(tmp_path / "merged")
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["mine"]


def test_an_output_inside_the_base(case, tmp_path):
    with pytest.raises(UserError, match="outside of the folders"):
        case.merge(case.base / "merged")
    assert not (case.base / "merged").exists()


@pytest.mark.parametrize("size", ["", "5", "0", "-1GB", "5XB", "GB"])
def test_sizes_that_are_none(case, tmp_path, size):
    if size in ("", "5"):
        case.merge(tmp_path / "merged", max_shard_size=size)
    else:
        _refused(case, tmp_path, "max_shard_size must be", max_shard_size=size)


def test_a_disk_without_room_is_found_before_anything_is_written(case, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(merging.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OSError, match="room for the merged model"):
        case.merge(tmp_path / "merged")
    assert not [path for path in tmp_path.iterdir() if "merged" in path.name]


# --- what is carried over ------------------------------------------------------------------------


def test_what_belongs_to_a_model_is_carried_over(case, tmp_path):
    byte_tokenizer().save_pretrained(case.base)
    (case.base / "chat_template.jinja").write_text("base")
    (case.base / "modeling_own.py").write_text("code = 1")
    (case.base / "LICENSE").write_text("terms")
    (case.base / "README.md").write_text("of the base")
    (case.base / "pytorch_model.bin").write_bytes(b"weights")
    _change_json(case.base / "generation_config.json", eos_token_id=1, top_k=7)
    case.merge(tmp_path / "plain")
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    own = {"README.md", "pytorch_model.bin"}
    assert names == ({path.name for path in case.base.iterdir()} - own) | {MERGE_REPORT_FILE}
    for name in names - {MERGE_REPORT_FILE, "model.safetensors"}:
        assert (tmp_path / "plain" / name).read_bytes() == (case.base / name).read_bytes()
    assert (tmp_path / "plain").stat().st_mode & 0o777 == 0o700


def test_the_adapters_tokenizer_and_end_tokens_win(case, tmp_path):
    byte_tokenizer().save_pretrained(case.base)
    (case.base / "special_tokens_map.json").write_text("{}")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<|more|>"])
    tokenizer.save_pretrained(case.adapter)
    (case.adapter / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    merged = case.merge(tmp_path / "merged")
    assert "Tokenizer: the adapter's" in merged.text
    assert "generation_config.json: the adapter's" in merged.text
    assert not (tmp_path / "merged" / "special_tokens_map.json").exists()
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (case.adapter / name).read_bytes()
    assert load(tmp_path / "merged").generation_config.eos_token_id == [5, 6]


def test_a_merged_model_is_the_base_of_a_next_adapter(case, tmp_path):
    case.merge(tmp_path / "merged")
    config = AdapterConfig(
        str(tmp_path / "merged"), fingerprint(tmp_path / "merged"), case.num_blocks
    )
    save_adapter(tmp_path / "second", {n: -d for n, d in case.deltas.items()}, config)
    case._replace(adapter=tmp_path / "second").merge(tmp_path / "undone")
    torch.testing.assert_close(
        logits(load(tmp_path / "undone")), logits(load(case.base)), atol=2e-5, rtol=2e-5
    )


def test_an_adapter_of_peft_with_a_delta_missing_is_refused(case, tmp_path):
    ends = sorted({name.rpartition(".")[2] for name in case.num_blocks})
    changes = {"num_deltas": None, "target_modules": ends}
    _change_json(case.adapter / ADAPTER_CONFIG_FILE, **changes)
    tensors = load_file(case.adapter / ADAPTER_TENSOR_FILE)
    lost = next(iter(tensors))
    del tensors[lost]
    save_file(tensors, case.adapter / ADAPTER_TENSOR_FILE)
    layer = lost.removeprefix("base_model.model.").removesuffix(".diablo_delta")
    _refused(case, tmp_path, f"target_modules match; got none for {layer}$")
