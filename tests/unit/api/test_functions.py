"""`import diablo_ds` in a plain loop: attach, save, load, merge, detach."""

from __future__ import annotations

import copy
import json
import pydoc
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import diablo_ds
from diablo_ds.adapter.storage import load_adapter
from diablo_ds.errors import UserError
from tests.tiny import build_model, save_model

IDS = torch.arange(24).view(2, 12)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base's folder; its embeddings are tied, its weights large enough for text that varies."""
    return save_model(tmp_path_factory.mktemp("base") / "tiny", initializer_range=0.3)


def _read(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def _train(model, deltas, steps=2):
    optimizer = torch.optim.AdamW(deltas.values(), lr=0.02)
    losses = []
    for _ in range(steps):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def _trained(base, **options):
    model = _read(base, **options)
    _train(model, diablo_ds.attach(model, 4))
    return model.eval()


def test_help_lists_the_functions_and_importing_costs_no_torch():
    text = pydoc.plain(pydoc.render_doc(diablo_ds))
    for name in ("attach", "save", "load", "merge", "detach"):
        assert f"    {name}(model" in text
        assert name in dir(diablo_ds)
    code = "import diablo_ds, sys; dir(diablo_ds); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'atach'"):
        diablo_ds.atach  # noqa: B018


def test_a_loop_of_plain_pytorch_needs_no_deepspeed(base, tmp_path):
    code = f"""
import sys
import diablo_ds, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(base)!r})
deltas = diablo_ds.attach(model, 4)
model(torch.ones(1, 4, dtype=torch.int64)).logits.sum().backward()
assert all(delta.grad is not None for delta in deltas.values())
diablo_ds.save(model, {str(tmp_path / "a")!r})
diablo_ds.merge(diablo_ds.load({str(base)!r}, {str(tmp_path / "a")!r}))
assert "deepspeed" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_is_loaded_on_a_model_and_by_name(dtype, base, tmp_path):
    model = _trained(base, dtype=dtype)
    said = model(IDS).logits
    assert diablo_ds.save(model, str(tmp_path / "a")) == tmp_path / "a"
    tensors, config = load_adapter(tmp_path / "a")
    assert config.base_model == str(base)
    assert config.base_fingerprint
    other = diablo_ds.load(_read(base, dtype=dtype), tmp_path / "a")
    assert torch.equal(other(IDS).logits, said)
    named = diablo_ds.load(str(base), str(tmp_path / "a"), dtype=dtype)
    assert torch.equal(named(IDS).logits, said)
    for name, delta in named.named_parameters():
        if delta.requires_grad:
            assert delta.dtype == torch.float32
            assert torch.equal(delta, tensors[name])
    assert not torch.equal(said, _read(base, dtype=dtype)(IDS).logits)


def test_deltas_beside_a_bf16_base_learn_what_bf16_would_swallow(base):
    model = _read(base, dtype=torch.bfloat16)
    deltas = diablo_ds.attach(model, 4)
    assert {delta.dtype for delta in deltas.values()} == {torch.float32}
    delta = next(iter(deltas.values()))
    with torch.no_grad():
        delta.fill_(1.0)
    optimizer = torch.optim.SGD([delta], lr=1.0)
    delta.grad = torch.full_like(delta, 1e-4)
    optimizer.step()
    assert (delta != 1).all()
    losses = _train(model, diablo_ds.attach(diablo_ds.detach(model), 4), steps=6)
    assert losses[-1] < losses[0]


def test_detach_gives_back_the_base_bit_for_bit(base, tmp_path):
    model = _read(base)
    before, said = copy.deepcopy(model.state_dict()), model(IDS).logits
    kinds = {name: type(module) for name, module in model.named_modules()}
    _train(model, diablo_ds.attach(model, 4))
    assert diablo_ds.detach(copy.deepcopy(model)) is not model
    assert diablo_ds.detach(model) is model
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(IDS).logits, said)
    with pytest.raises(UserError, match="must have deltas"):
        diablo_ds.detach(model)


def test_a_merged_model_has_its_own_layers_and_saves_without_deltas(base, tmp_path):
    model = _trained(base)
    said = model(IDS).logits
    assert diablo_ds.merge(model) is model
    assert {type(m) for n, m in model.named_modules() if n.endswith("_proj")} == {nn.Linear}
    torch.testing.assert_close(model(IDS).logits, said)
    model.save_pretrained(tmp_path / "merged")
    other, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", output_loading_info=True
    )
    assert not any(report.values())
    assert torch.equal(other(IDS).logits, model(IDS).logits)
    assert not [name for name in model.state_dict() if "delta" in name]


def test_merging_into_bf16_rounds_once_and_says_what_rounding_swallowed(base, caplog):
    model = _read(base, dtype=torch.bfloat16)
    deltas = diablo_ds.attach(model, 4)
    for delta in deltas.values():
        nn.init.normal_(delta, std=1e-4)
    name = "model.layers.0.self_attn.q_proj"
    layer = model.get_submodule(name)
    dense = torch.block_diag(*layer.delta.detach()).t()
    exact = (layer.weight.float() + dense).to(torch.bfloat16)
    diablo_ds.merge(model)
    assert torch.equal(model.get_submodule(name).weight, exact)
    assert "swallowed" in caplog.text


def test_a_second_attach_or_load_is_refused_and_changes_nothing(base, tmp_path):
    model = _trained(base)
    diablo_ds.save(model, tmp_path / "a")
    said = model(IDS).logits
    for again in (
        lambda: diablo_ds.attach(model, 4),
        lambda: diablo_ds.attach(model, 4, "o_proj"),
        lambda: diablo_ds.load(model, tmp_path / "a"),
    ):
        with pytest.raises(UserError, match="must be without deltas"):
            again()
    assert torch.equal(model(IDS).logits, said)
    assert sum(p.requires_grad for p in model.parameters()) == 10


def test_another_base_is_refused_by_its_fingerprint(base, tmp_path):
    diablo_ds.save(_trained(base), tmp_path / "a")
    other = save_model(tmp_path / "other", seed=1)
    model = _read(other)
    for given in (model, other, str(other)):
        with pytest.raises(UserError, match="must be loaded on the base model it was trained on"):
            diablo_ds.load(given, tmp_path / "a")
    assert all(p.requires_grad for p in model.parameters())
    assert diablo_ds.load(model, tmp_path / "a", force=True) is model


def test_another_geometry_is_refused_by_force_too(base, tmp_path):
    diablo_ds.save(_trained(base), tmp_path / "a")
    wider = build_model(intermediate_size=128)
    fewer = build_model(num_hidden_layers=1)
    for model, rule in ((wider, "must have the shapes"), (fewer, "must be linear layers")):
        with pytest.raises(UserError, match=rule):
            diablo_ds.load(model, tmp_path / "a", force=True)
        assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(UserError, match="must have a delta for each layer"):
        diablo_ds.load(build_model(num_hidden_layers=3), tmp_path / "a")


@pytest.mark.parametrize(
    ("num_blocks", "targets", "expected"),
    [
        (4, "q_proj", {"q_proj": 4}),
        (4, ["q_proj", "mlp.up_proj"], {"q_proj": 4, "up_proj": 4}),
        ("auto:25%", ("o_proj",), {"o_proj": 4}),
        ({"q_proj": 8, "down_proj": "auto:50%"}, None, {"q_proj": 8, "down_proj": 2}),
        ({"*_proj": 2}, "k_proj", {"k_proj": 2}),
    ],
)
def test_blocks_and_targets_in_each_form(num_blocks, targets, expected):
    model = build_model()
    deltas = diablo_ds.attach(model, num_blocks, targets, layers="1")
    found = {name.split(".")[-2]: delta.shape[0] for name, delta in deltas.items()}
    assert found == expected
    assert all(".layers.1." in name for name in deltas)


@pytest.mark.parametrize(
    ("num_blocks", "targets", "rule"),
    [
        (7, None, "must divide both widths"),
        (0, None, "must divide both widths"),
        (True, None, "must be a number"),
        (2.5, None, "must be a number"),
        (4, "no_such", "must match at least one"),
        (4, "lm_head", "must match at least one"),
        ({"q_proj": 4}, ["q_proj", "k_proj"], "must have a count for each"),
        ({"q_proj": 4, "self_attn.*": 4, "re:.*q_proj": 8}, None, "one count for each|at least"),
        ({}, None, "must have a count for each"),
    ],
)
def test_wrong_blocks_and_targets_are_refused_and_change_nothing(num_blocks, targets, rule):
    model = build_model()
    with pytest.raises(UserError, match=rule):
        diablo_ds.attach(model, num_blocks, targets)
    assert all(p.requires_grad for p in model.parameters())
    assert diablo_ds.attach(model, 4)


def test_saving_removes_nothing_else(base, tmp_path):
    model = _trained(base)
    diablo_ds.save(model, tmp_path / "a")
    diablo_ds.save(model, tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    for folder in ("a", "run", "."):
        with pytest.raises(UserError, match="must be new, empty or an adapter"):
            diablo_ds.save(model, tmp_path / folder)
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(torch.nan)
    with pytest.raises(UserError, match="must be finite"):
        diablo_ds.save(model, tmp_path / "b")
    with pytest.raises(UserError, match="must be finite"):
        diablo_ds.merge(model)
    with pytest.raises(UserError, match="must have deltas"):
        diablo_ds.save(build_model(), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_wrapped_model_is_the_one_inside(base, tmp_path):
    model = _trained(base)
    diablo_ds.save(nn.DataParallel(model), tmp_path / "a")
    names = json.loads((tmp_path / "a" / "adapter_config.json").read_text())["target_modules"]
    assert not [name for name in names if name.startswith("module.")]
    assert diablo_ds.load(base, tmp_path / "a")
