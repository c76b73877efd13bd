"""Adapters recovered from two checkpoints."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from diablo_ds.adapter.storage import load_adapter
from diablo_ds.cli.main import main
from diablo_ds.conversion.difference import diff
from diablo_ds.model.finding import fingerprint
from tests.overriding import with_last_options
from tests.tiny import build_model, save_model
from tests.unit.conversion.checkpoints import (
    add_dense,
    edit_tensors,
    random_deltas,
    save_base,
    save_merged,
)


def _run(*words):
    return CliRunner().invoke(main, with_last_options(["diff", *words]))


def _diff(folder, *words):
    places = ("--base", folder / "base", "--tuned", folder / "tuned")
    return _run(*places, "--output", folder / "found", *words)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_random_adapter_that_was_merged_in_fp32_is_found_again(family, tmp_path):
    model = save_base(tmp_path / "base", family=family)
    counts, deltas = random_deltas(model, "auto:0.1")
    save_merged(tmp_path / "tuned", model, deltas)
    result = _diff(tmp_path)
    assert result.exit_code == 0, result.output
    assert "The adapter holds all of the change" in result.stdout
    found, config = load_adapter(tmp_path / "found")
    assert config.num_blocks == counts
    assert config.base_fingerprint == fingerprint(tmp_path / "base")
    assert config.parent == {
        "tuned_model": str(tmp_path / "tuned"),
        "tuned_fingerprint": fingerprint(tmp_path / "tuned"),
    }
    assert str(tmp_path) not in (tmp_path / "found" / "README.md").read_text()
    merged = build_model(family)
    add_dense(merged, found)
    for name, delta in deltas.items():
        torch.testing.assert_close(found[name], delta, rtol=0, atol=2.0**-24)
        weight = name.replace(".delta", ".weight")
        assert torch.equal(merged.state_dict()[weight], model.state_dict()[weight])


def test_from_bf16_it_is_found_within_the_rounding(tmp_path):
    model = save_base(tmp_path / "base", torch.bfloat16)
    _, deltas = random_deltas(model, "4")
    save_merged(tmp_path / "tuned", model, deltas)
    assert _diff(tmp_path).exit_code == 0
    found, _ = load_adapter(tmp_path / "found")
    for name, delta in deltas.items():
        weight = model.state_dict()[name.replace(".delta", ".weight")].float()
        bound = weight.abs().max() * 2.0**-8
        torch.testing.assert_close(found[name], delta, rtol=0, atol=float(bound))


def test_norms_inside_and_outside_and_what_no_adapter_holds_are_reported(tmp_path):
    base = build_model(tie_word_embeddings=False)
    base.save_pretrained(tmp_path / "base")
    generator = torch.Generator().manual_seed(3)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    with torch.no_grad():
        for name in ("model.norm.weight", "model.embed_tokens.weight"):
            base.state_dict()[name].view(-1)[5] += 1
        weight = base.model.layers[1].mlp.up_proj.weight
        weight += torch.randn(weight.shape, generator=generator)
        base.lm_head.weight[0, 0] += 0.25
    base.save_pretrained(tmp_path / "tuned")
    refused = _diff(tmp_path)
    assert refused.exit_code == 2
    assert "num_blocks must be given" in refused.stderr
    assert "1 layers that changed elsewhere too, e.g. model.layers.1.mlp.up_proj" in refused.stderr
    options = ("--num-blocks", "4", "--targets", "up_proj")
    result = _diff(tmp_path, *options)
    assert result.exit_code == 0, result.output
    change = (weight - before["model.layers.1.mlp.up_proj.weight"]).double()
    mask = torch.block_diag(*[torch.ones(16, 8)] * 4).bool()
    inside, outside = change[mask].norm(), change[~mask].norm()
    (row,) = [line for line in result.stdout.splitlines() if "layers.1.mlp" in line]
    words = ["model.layers.1.mlp.up_proj", "4", f"{inside:.4g}", f"{outside:.4g}"]
    assert row.split()[:4] == words
    assert "model.norm.weight: norm of the change 1\n" in result.stdout
    assert "model.embed_tokens.weight: norm of the change 1\n" in result.stdout
    assert "lm_head.weight: norm of the change 0.25\n" in result.stdout
    assert "Base and adapter together are not the tuned model" in result.stdout
    found, config = load_adapter(tmp_path / "found")
    assert config.num_blocks == {f"model.layers.{i}.mlp.up_proj": 4 for i in (0, 1)}
    assert not found["model.layers.0.mlp.up_proj.delta"].any()
    delta = torch.block_diag(*found["model.layers.1.mlp.up_proj.delta"]).t()
    torch.testing.assert_close(delta[mask], change[mask].float())


def test_a_count_given_without_targets_skips_the_layers_it_does_not_divide(tmp_path):
    model = save_base(tmp_path / "base", num_attention_heads=4, intermediate_size=44)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name in ("self_attn.q_proj", "mlp.up_proj"):
            weight = model.model.layers[0].get_submodule(name).weight
            weight += torch.randn(weight.shape, generator=generator)
    model.save_pretrained(tmp_path / "tuned")
    difference = diff(f"{tmp_path}/base", f"{tmp_path}/tuned", tmp_path / "found", num_blocks="8")
    assert [layer.layer for layer in difference.layers] == ["model.layers.0.self_attn.q_proj"]
    assert list(difference.unheld) == ["model.layers.0.mlp.up_proj.weight"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    model = save_base(folder / "base")
    save_merged(folder / "tuned", model, random_deltas(model)[1])
    return folder


def _edit(change):
    return edit_tensors("tuned", change)


def _cut(folder):
    path = folder / "tuned" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


Q = "model.layers.1.self_attn.q_proj.weight"
BAD = {
    "NaN": (_edit(lambda t: t[Q].view(-1)[3].fill_(torch.nan)), (), ("NaN", Q, "tuned")),
    "shape": (_edit(lambda t: t.update({Q: torch.ones(3, 3)})), (), ("same shape", Q[:-7])),
    "missing": (_edit(lambda t: t.pop(Q)), (), ("1 layers without", Q[:-7])),
    "cut": (_cut, (), ("must be complete", "tuned")),
    "count": (None, ("--targets", "q_proj", "--num-blocks", "3"), ("divide", "num_blocks=3")),
    "target": (None, ("--targets", "none"), ("target='none'",)),
    "same": (None, ("--tuned", "{}/base"), ("two models",)),
    "no folder": (None, ("--tuned", "/none/there"), ("existing folder",)),
    "exists": (None, ("--output", "{}/base"), ("which exists",)),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_input_is_refused_and_nothing_is_written(case, two, tmp_path):
    damage, words, parts = BAD[case]
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        for file in (two / name).iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    if damage:
        damage(tmp_path)
    result = _diff(tmp_path, *(word.format(tmp_path) for word in words))
    assert result.exit_code == 2, result.output
    assert all(part in result.stderr for part in parts), result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tuned"]


def test_models_without_a_change_in_a_linear_layer_are_refused(tmp_path):
    model = save_base(tmp_path / "base")
    save_model(tmp_path / "tuned")
    assert "got no change between" in _diff(tmp_path).stderr
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    model.save_pretrained(tmp_path / "tuned")
    assert "got changes in model.norm.weight only" in _diff(tmp_path).stderr


def test_a_resized_embedding_is_named(tmp_path):
    model = save_base(tmp_path / "base")
    _, deltas = random_deltas(model)
    add_dense(model, deltas)
    model.resize_token_embeddings(272)
    model.save_pretrained(tmp_path / "tuned")
    assert json.loads((tmp_path / "tuned" / "config.json").read_text())["vocab_size"] == 272
    result = _diff(tmp_path)
    assert result.exit_code == 0, result.output
    assert "model.embed_tokens.weight: shape [264, 32] became [272, 32]" in result.stdout
