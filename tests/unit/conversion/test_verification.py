"""Verifying a merge: what is exact passes, what is off by little more than a bound does not."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from click.testing import CliRunner

from diablo_ds.adapter.storage import load_adapter
from diablo_ds.cli.main import main
from diablo_ds.conversion.merging.merge import merge_adapter
from diablo_ds.conversion.merging.options import MergeOptions
from diablo_ds.conversion.verification import verify
from tests.tiny import byte_tokenizer
from tests.unit.conversion.checkpoints import edit_tensors, save_base, save_random_adapter

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def _make(folder, base_dtype="bf16", family="llama", **options):
    """Save a base, an adapter and the merged model in a folder."""
    model = save_base(folder / "base", DTYPES[base_dtype], family)
    save_random_adapter(folder / "adapter", folder / "base", model)
    adapter, output = folder / "adapter", folder / "merged"
    merge_adapter(MergeOptions(adapter=adapter, output=output, **options))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return _make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def case(made, tmp_path):
    """A copy of a merged model to damage, with links to its base and adapter."""
    shutil.copytree(made / "merged", tmp_path / "merged")
    for name in ("base", "adapter"):
        (tmp_path / name).symlink_to(made / name)
    return tmp_path


def _verify(folder, *words):
    places = ("--merged", folder / "merged", "--adapter", folder / "adapter")
    return _run("verify", *places, *words)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merge_is_verified_at_once(dtype, tmp_path):
    model = save_base(tmp_path / "base", DTYPES[dtype])
    save_random_adapter(tmp_path / "adapter", tmp_path / "base", model)
    places = ("--adapter", tmp_path / "adapter", "--output", tmp_path / "merged")
    result = _run("merge", *places, "--verify")
    assert result.exit_code == 0, result.output
    assert "Tensors: 20 of 20 are exact" in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("Logits")]
    assert "largest difference" in line
    assert "bound" in line
    assert "64 of 64 tokens are the same" in result.stdout


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"dtype": "fp32"}),
        ("llama", {"base_dtype": "fp32", "dtype": "bf16"}),
        ("gpt_neox", {"base_dtype": "fp32", "dtype": "fp16"}),
        ("gpt_neox", {"max_shard_size": "20KB"}),
        ("qwen2", {}),
        ("llama", {"rounding": "stochastic"}),
        ("gpt_neox", {"base_dtype": "fp32", "dtype": "fp16", "rounding": "stochastic"}),
    ],
)
def test_other_dtypes_files_and_families_are_verified(family, options, tmp_path):
    result = _verify(_make(tmp_path, family=family, **options))
    assert result.exit_code == 0, result.output


def _edit(change):
    return edit_tensors("merged", change)


def _next_number(name, place):
    """Move one element by one step of bf16: from within half a step to just beyond it."""

    def change(tensors):
        element = tensors[name].view(torch.int16).view(-1)
        element[place] += 1

    return _edit(change)


def _change_json(file, change):
    def edit(folder):
        path = folder / "merged" / file
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return edit


Q, NORM, EMBEDDING = (
    "model.layers.1.self_attn.q_proj.weight",
    "model.norm.weight",
    "model.embed_tokens.weight",
)
DAMAGES = {
    "in a block": (_next_number(Q, 0), (f"{Q} has 1 wrong elements",)),
    "outside the blocks": (_next_number(Q, 31), (f"{Q} has 1 wrong elements",)),
    "norm": (_next_number(NORM, 3), (f"{NORM} has 1 wrong rows",)),
    "unused token": (_next_number(EMBEDDING, 250 * 32), (f"{EMBEDDING} has 1 wrong rows",)),
    "NaN": (_edit(lambda t: t[Q].view(-1)[0].fill_(torch.nan)), (f"{Q} has 1 wrong", "inf times")),
    "missing": (_edit(lambda t: t.pop(Q)), ("1 tensors are missing", Q)),
    "unknown": (_edit(lambda t: t.update(more=torch.ones(1))), ("1 tensors are not in", "more")),
    "shape": (_edit(lambda t: t.update({NORM: torch.ones(3)})), (f"{NORM} has shape [3]",)),
    "config": (
        _change_json("config.json", lambda v: v.update(rms_norm_eps=0.5)),
        ("config.json differs from the base's in rms_norm_eps",),
    ),
    "generation": (
        _change_json("generation_config.json", lambda v: v.update(eos_token_id=7)),
        ("generation_config.json is neither",),
    ),
    "tokenizer": (
        lambda folder: (folder / "merged" / "tokenizer.json").unlink(),
        ("tokenizer.json is missing",),
    ),
    "other tokenizer": (
        _change_json("tokenizer_config.json", lambda v: v.update(eos_token="a")),
        ("tokenizer_config.json is neither the base's nor the adapter's",),
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_just_beyond_the_bound_is_refused(kind, case):
    damage, parts = DAMAGES[kind]
    damage(case)
    result = _verify(case, "--method", "files")
    assert result.exit_code == 2, result.output
    assert f"must be its base plus the adapter; got {case / 'merged'}" in result.stderr
    assert all(part in result.stderr for part in parts), result.stderr


def test_an_index_that_names_another_file_is_refused(tmp_path):
    _make(tmp_path, max_shard_size="20KB")
    index = tmp_path / "merged" / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    files = value["weight_map"]
    files[Q] = next(file for file in files.values() if file != files[Q])
    index.write_text(json.dumps(value))
    assert "names another file than has it for" in _verify(tmp_path).stderr


def _outputs(folder):
    deltas, config = load_adapter(folder / "adapter")
    return verify.compare_outputs(
        folder / "base",
        config.num_blocks,
        deltas,
        folder / "merged",
        2.0**-8,
        torch.device("cpu"),
    )


@pytest.mark.parametrize("step", [2, -2])
def test_beyond_the_neighbours_stochastic_rounding_is_refused(step, tmp_path):
    _make(tmp_path, rounding="stochastic")
    _edit(lambda tensors: tensors[Q].view(torch.int16).view(-1)[:1].add_(step))(tmp_path)
    result = _verify(tmp_path)
    assert result.exit_code != 0
    assert "wrong elements" in result.output


@pytest.mark.parametrize(("share", "is_explained"), [(0.6, True), (1.4, False)])
def test_logits_are_refused_from_the_bound_on(share, is_explained, tmp_path):
    _make(tmp_path, base_dtype="fp32")
    exact = _outputs(tmp_path)
    assert exact.is_explained
    # In fp32 one element can be moved by any amount; its effect is all but proportional.
    _edit(lambda t: t[Q][0, 0].add_(0.01))(tmp_path)
    effect = _outputs(tmp_path).difference / 0.01
    _edit(lambda t: t[Q][0, 0].add_(share * exact.bound / effect - 0.01))(tmp_path)
    found = _outputs(tmp_path)
    assert found.difference == pytest.approx(share * exact.bound, rel=0.2)
    assert found.is_explained is is_explained


def test_deltas_that_rounding_swallows_together_are_told_from_noise(tmp_path):
    """Each is below half a step, so the files are exact; together they move a logit."""
    model = save_base(tmp_path / "base", torch.bfloat16, hidden_size=128, intermediate_size=256)
    save_random_adapter(tmp_path / "adapter", tmp_path / "base", model, "1")
    model = model.float()
    ids = torch.tensor([byte_tokenizer()(verify.PROMPTS[0]).input_ids])
    model(ids).logits[0, -1].max().backward()
    deltas, config = load_adapter(tmp_path / "adapter")
    for name in deltas:
        weight = model.get_submodule(name.removesuffix(".delta")).weight
        half_step = torch.exp2(weight.abs().log2().floor() - 8)
        delta = 0.49 * half_step * weight.grad.sign()
        deltas[name] = delta.t()[None].contiguous()
        assert torch.equal((weight + delta).bfloat16(), weight.bfloat16())
    found = verify.compare_outputs(
        tmp_path / "base",
        config.num_blocks,
        deltas,
        tmp_path / "base",
        2.0**-8,
        torch.device("cpu"),
    )
    assert not found.is_explained


def test_without_memory_the_files_alone_are_compared(case, monkeypatch):
    monkeypatch.setattr(verify, "free_bytes", lambda device: 1000)
    result = _verify(case)
    assert result.exit_code == 0, result.output
    assert "Logits: not compared, as 1.1 GB are not free on" in result.stdout
    refused = _verify(case, "--method", "model")
    assert refused.exit_code == 2
    assert "must fit into memory" in refused.stderr


def test_another_base_is_named(case, tmp_path):
    save_base(tmp_path / "other", torch.bfloat16, seed=1)
    result = _verify(case, "--base", tmp_path / "other", "--method", "files")
    assert result.exit_code == 2
    assert "is not the base that the adapter records" in result.stdout
    assert "wrong" in result.stderr


@pytest.mark.parametrize("missing", ["merged", "adapter", "base"])
def test_a_missing_folder_is_named(missing, case):
    path = case / missing
    shutil.rmtree(path) if missing == "merged" else path.unlink()
    words = ("--base", path) if missing == "base" else ()
    result = _verify(case, *words)
    assert result.exit_code == 2
    assert str(path) in result.stderr
