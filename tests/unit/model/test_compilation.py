"""Compiled layers compute what they compute without; one compilation serves all equal layers."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import nn
from torch.testing import assert_close

from diablo_ds.adapter.attach import attach, without_deltas
from diablo_ds.adapter.gradients import start_from_zero
from diablo_ds.adapter.kernels import compiled_blocks
from diablo_ds.adapter.targets import resolve_num_blocks, select_targets
from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.model.architecture import decoder_layers
from diablo_ds.model.compilation import (
    choose_compilation,
    compile_layers,
    compile_loss,
    uncompile_layers,
)
from diablo_ds.model.compile_cache import CACHE_VARIABLE, THREADS_VARIABLE
from diablo_ds.model.loss import fusible_softmax_loss
from diablo_ds.model.loss_head import LossHead
from diablo_ds.model.recomputation import Recomputation, recompute_layers
from tests.tiny import build_model

BACKEND = "aot_eager"
"""Traces forward and backward as the default does; without its code, which takes a minute."""
LENGTHS = (16, 24, 40)


@pytest.fixture(autouse=True)
def _nothing_is_compiled_before():
    torch._dynamo.reset()


def _model(family="llama", path="fused", *, targets=(), dropout=0.0, **changes: Any):
    """A model with deltas that are not zero, as training has it."""
    model: Any = build_model(family, **changes)
    model.config.use_cache = False
    chosen = select_targets(model, targets, model_type=model.config.model_type)
    num_blocks = resolve_num_blocks(chosen, "4")
    deltas = attach(model, num_blocks, delta_path=path, dropout=dropout)
    for delta in deltas.values():
        nn.init.normal_(delta, std=0.05)
    model.enable_input_require_grads()
    return model, deltas


def _loss_and_gradients(model: Any, deltas: Any, length: int, num_sequences: int = 2):
    torch.manual_seed(length)
    tokens = torch.randint(0, 256, (num_sequences, length))
    logits = model(input_ids=tokens).logits
    loss = logits.log_softmax(-1)[..., 3].sum()
    model.zero_grad()
    loss.backward()
    return [loss.detach(), *(delta.grad for delta in deltas.values())]


def _num_graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def _assert_equal(model: Any, deltas: Any, reference: Any, lengths=LENGTHS) -> None:
    for length in lengths:
        found = _loss_and_gradients(model, deltas, length)
        assert_close(found, reference[length], rtol=1e-4, atol=1e-5)
    assert all(layer.runs_compiled for layer in decoder_layers(model))


@pytest.mark.slow
@pytest.mark.parametrize("path", ["fused", "summed"])
def test_compiled_layers_compute_the_same_at_any_length(path):
    model, deltas = _model(path=path)
    reference = {length: _loss_and_gradients(model, deltas, length) for length in LENGTHS}
    torch._dynamo.utils.counters.clear()
    assert compile_layers(model, backend=BACKEND) == 2
    model.eval()
    with torch.no_grad():
        model(input_ids=torch.zeros(3, 8, dtype=torch.int64))
    assert _num_graphs() == 1
    # One for the first length, whatever was evaluated before, and one for any, for both layers.
    _assert_equal(model.train(), deltas, reference, LENGTHS[:1])
    _assert_equal(model, deltas, reference, LENGTHS[:1])
    assert _num_graphs() == 2
    _assert_equal(model, deltas, reference)
    assert _num_graphs() == 3

    uncompile_layers(model.train())
    assert not any(hasattr(module, "class_before") for module in model.modules())
    found = _loss_and_gradients(model, deltas, 16)
    assert all(torch.equal(a, b) for a, b in zip(found, reference[16], strict=True))
    compile_layers(model, backend=BACKEND)
    _assert_equal(model, deltas, reference)
    assert _num_graphs() == 3  # nothing is compiled again


def test_compiled_layers_leave_the_deltas_out_where_they_are_switched_off():
    tokens = torch.randint(0, 256, (2, 16))

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=tokens).logits

    base = build_model().requires_grad_(False)
    base.config.use_cache = False
    compile_layers(base, backend=BACKEND)
    model, deltas = _model()
    compile_layers(model, backend=BACKEND)
    before = logits(model)
    reference = _loss_and_gradients(model, deltas, 16)
    for _ in range(2):  # compiled for both states, and switched between them
        with without_deltas(model):
            assert torch.equal(logits(model), logits(base))
        assert torch.equal(logits(model), before)
    assert not torch.equal(before, logits(base))
    assert all(map(torch.equal, _loss_and_gradients(model, deltas, 16), reference))
    assert all(layer.runs_compiled for layer in decoder_layers(model))


@pytest.mark.slow
def test_fp32_gradients_of_bf16_deltas_accumulate_through_compiled_layers():
    model, deltas = _model()
    model.bfloat16()
    tokens = torch.randint(0, 256, (2, 16))

    def accumulate():
        start_from_zero(deltas.values())
        for row in (tokens[:1], tokens[1:]):
            model(input_ids=row).logits.float().log_softmax(-1)[..., 3].sum().backward()
        assert {delta.grad.dtype for delta in deltas.values()} == {torch.float32}
        return [delta.grad.clone() for delta in deltas.values()]

    expected = accumulate()
    compile_layers(model, backend=BACKEND)
    found = accumulate()
    assert all(layer.runs_compiled for layer in decoder_layers(model))
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() < 0.02 * b.norm()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["non-re-entrant", "re-entrant", "attention kept"])
def test_recomputed_layers_compute_the_same(kind):
    model, deltas = _model(targets=("q_proj", "down_proj"), dropout=0.1)
    reference = {length: _loss_and_gradients(model, deltas, length) for length in LENGTHS[:2]}
    recomputation = Recomputation(2, keep_attention=kind == "attention kept")
    recompute_layers(model, recomputation, reentrant=kind == "re-entrant")
    compile_layers(model, backend=BACKEND)
    _assert_equal(model, deltas, reference, LENGTHS[:2])


@pytest.mark.parametrize("family", ["mistral", "qwen2", "gpt_neox", "gemma2"])
def test_other_families_compile_without_a_break(family):
    model, deltas = _model(family)
    reference = {16: _loss_and_gradients(model, deltas, 16)}
    torch._dynamo.utils.counters.clear()
    compile_layers(model, backend=BACKEND)
    _assert_equal(model, deltas, reference, (16,))
    assert _num_graphs() == 1  # Gemma 2's windows are in the mask


# PyTorch's own, while its compiler is imported.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
def test_generated_code_computes_the_same_and_keeps_no_view_of_a_weight(tmp_path, monkeypatch):
    """The one test of the default backend: it takes a C++ compiler's time."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setenv(THREADS_VARIABLE, "1")
    model, deltas = _model(targets=("q_proj", "down_proj"), num_hidden_layers=1)
    reference = {16: _loss_and_gradients(model, deltas, 16)}
    compile_layers(model)
    _assert_equal(model, deltas, reference, (16,))

    # Under ZeRO-3 a parameter that is kept for the backward is emptied in between; a view is not.
    parameters = list(model.parameters())
    storages = {p.untyped_storage().data_ptr() for p in parameters}
    hidden = torch.randn(2, 16, 32, requires_grad=True)
    rotary = model.model.rotary_emb(hidden, torch.arange(16)[None])
    y = model.model.layers[0](hidden, position_embeddings=rotary)
    kept = [t for t in y.grad_fn.saved_tensors if isinstance(t, torch.Tensor)]
    of_weights = [t for t in kept if t.untyped_storage().data_ptr() in storages]
    assert len(of_weights) >= 7 + 2  # each matrix, and the deltas
    assert all(any(t is p for p in parameters) for t in of_weights)


class _LooksAtValues(nn.Module):
    """Cannot be compiled as part of a whole graph."""

    def forward(self, x):
        return x * (2.0 if x.sum().item() > 0 else 0.5)


def test_a_layer_that_cannot_be_compiled_runs_as_before_with_one_warning(caplog):
    model, deltas = _model()
    model.model.layers[1].mlp.act_fn = _LooksAtValues()
    reference = [_loss_and_gradients(model, deltas, 16) for _ in range(2)]
    # The first layer has run compiled when the second fails, and is computed again after that.
    recompute_layers(model, Recomputation(2), reentrant=False)
    compile_layers(model, backend=BACKEND)
    with caplog.at_level(logging.WARNING, logger="diablo_ds"):
        found = [_loss_and_gradients(model, deltas, 16) for _ in range(2)]
    assert_close(found, reference, rtol=1e-4, atol=1e-5)
    assert not any(layer.runs_compiled for layer in decoder_layers(model))
    (warning,) = caplog.messages
    assert warning.startswith("LlamaDecoderLayer could not be compiled, and runs as with --compile")


def test_an_error_of_the_layer_itself_is_raised():
    model, deltas = _model()
    compile_layers(model, backend=BACKEND)
    model.model.layers[0].mlp.up_proj.weight.data = torch.zeros(3, 3)
    with pytest.raises(RuntimeError, match=r"mat1 and mat2|size mismatch"):
        _loss_and_gradients(model, deltas, 16)


@pytest.mark.parametrize("path", ["fused", "summed", "prefilled"])
@pytest.mark.parametrize("has_own_input", [False, True])
def test_operators_keep_their_contract(path, has_own_input):
    if path == "summed" and has_own_input:
        return
    x = torch.randn(2, 3, 16, requires_grad=True)
    x_adapter = torch.randn(2, 3, 16, requires_grad=True) if has_own_input else None
    delta = torch.randn(4, 4, 8, requires_grad=True)
    weight, bias = torch.randn(32, 16), torch.randn(32)
    arguments = x, x_adapter, weight, bias, delta, path
    torch.library.opcheck(compiled_blocks.product_op, arguments)
    torch.library.opcheck(compiled_blocks.frozen_linear_op, (x, weight, None))


def test_auto_is_on_for_a_gpu_and_as_the_run_was():
    meta_model = build_model()
    assert choose_compilation("auto", meta_model, None, "cpu")[0] == "off"
    assert choose_compilation("auto", meta_model, None, "cuda")[0] == "on"
    assert choose_compilation("auto", meta_model, RunConfig(compile="on"), "cpu")[0] == "on"
    assert choose_compilation("auto", meta_model, RunConfig(compile="off"), "cuda")[0] == "off"
    assert choose_compilation("off", meta_model, RunConfig(compile="on"), "cuda")[0] == "off"
    meta_model._no_split_modules = []
    assert choose_compilation("auto", meta_model, None, "cuda")[0] == "off"
    with pytest.raises(UserError, match="compile needs a model whose decoder layers are known"):
        choose_compilation("on", meta_model, None, "cuda")


def test_a_compiled_loss_is_one_code_for_any_number_of_rows(monkeypatch):
    monkeypatch.setattr("diablo_ds.model.loss.LOSS_CHUNK_BYTES", {"cpu": 7 * 4 * 11})
    torch.manual_seed(0)
    head = LossHead(nn.Linear(6, 11, bias=False).requires_grad_(False))
    model = SimpleNamespace(get_output_embeddings=lambda: head)
    batches = [
        (torch.randn(2, n, 6, requires_grad=True), torch.randint(11, (2, n))) for n in (9, 6)
    ]

    def losses():
        found = []
        for hidden, labels in batches:
            with head.computing_loss(labels):
                loss = head(hidden)
            found += [loss.detach(), *torch.autograd.grad(loss, hidden)]
        return found

    expected = losses()
    assert compile_loss(model)
    monkeypatch.setattr(
        head.linear.softmax_loss,
        "_compiled",
        torch.compile(fusible_softmax_loss, fullgraph=True, backend=BACKEND),
    )
    torch._dynamo.utils.counters.clear()
    assert_close(losses(), expected)
    assert not head.linear.softmax_loss.has_failed
    assert _num_graphs() == 1


def test_a_loss_that_cannot_be_compiled_is_computed_as_before(caplog, monkeypatch):
    head = LossHead(nn.Linear(6, 11, bias=False).requires_grad_(False))
    hidden, labels = torch.randn(1, 5, 6, requires_grad=True), torch.randint(11, (1, 5))
    with head.computing_loss(labels):
        expected = head(hidden)
    compile_loss(SimpleNamespace(get_output_embeddings=lambda: head))

    def fail(*args):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(head.linear.softmax_loss, "_compiled", fail)
    with caplog.at_level(logging.WARNING), head.computing_loss(labels):
        assert_close(head(hidden), expected)
        assert_close(head(hidden), expected)
    assert caplog.text.count("the loss could not be compiled") == 1
