"""Activation memory: sizes from shapes alone equal what autograd really keeps."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from diablo_ds.adapter.attach import attach
from diablo_ds.adapter.targets import resolve_num_blocks, select_targets
from diablo_ds.model.activations import attention_share, measure_activations
from diablo_ds.model.architecture import build_meta_model, decoder_layer_classes
from diablo_ds.model.recomputation import Recomputation, recompute_layers, spread_evenly
from tests.tiny import FAMILIES, build_model


def attach_deltas(model):
    """Attach 4 blocks per target to a model, and freeze the rest."""
    model.requires_grad_(False)
    targets = select_targets(model, (), model_type=model.config.model_type)
    attach(model, resolve_num_blocks(targets, "4"))
    return model


class _Saved(NamedTuple):
    """Bytes that a real forward keeps for its backward."""

    layers: list[int]
    """Of each decoder layer, its input included."""
    rest: int


def really_saved(model, micro_batch: int, length: int) -> _Saved:
    """Run a forward on the CPU, and add up the memory of the tensors that autograd asks to keep.

    Memory that several of them share counts once, where it is kept first; weights do not count.
    """
    layers = [m for m in model.modules() if isinstance(m, tuple(decoder_layer_classes(model)))]
    kept = {t.untyped_storage().data_ptr(): None for t in (*model.parameters(), *model.buffers())}
    num_bytes = [0] * (len(layers) + 1)  # the last: outside the layers
    running = [len(layers)]

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in kept:
            kept[storage.data_ptr()] = tensor  # alive, so that its memory is not used again
            num_bytes[running[0]] += storage.nbytes()
        return tensor

    def enter(index: int, args: tuple) -> None:
        running[0] = index
        keep(args[0])  # a recomputed layer keeps it without autograd's asking

    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(lambda _, args, index=index: enter(index, args))
        layer.register_forward_hook(lambda *_: running.__setitem__(0, len(layers)))
    model.enable_input_require_grads()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.base_model(input_ids=torch.zeros(micro_batch, length, dtype=torch.int64))
    return _Saved(num_bytes[:-1], num_bytes[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_shapes_alone_tell_what_autograd_keeps(family, dtype):
    # As many key heads as query heads: how grouped ones are expanded is up to the kernel.
    real = attach_deltas(build_model(family, num_key_value_heads=4).to(dtype))
    meta_model = attach_deltas(build_meta_model(real.config).to(dtype))
    sizes = measure_activations(meta_model, micro_batch=2, length=24)
    seen = really_saved(real, 2, 24)
    assert sizes.layer == max(seen.layers)
    assert sizes.layer_input == 2 * 24 * 32 * dtype.itemsize
    assert sizes.attention == 2 * 24 * (32 * dtype.itemsize + 4 * 4)
    assert sizes.rest == seen.rest


def test_any_model_can_be_measured_and_is_left_as_it_was():
    model = attach_deltas(build_meta_model(FAMILIES["gpt_neox"])).eval()
    attention = model.config._attn_implementation
    sizes = measure_activations(model, micro_batch=1, length=8)
    assert sizes.layer > sizes.layer_input == 8 * 32 * 4
    assert model.config._attn_implementation == attention
    assert not model.training


@pytest.mark.parametrize("recomputation", [(0, False), (1, False), (3, True), (4, False)])
def test_the_total_is_what_autograd_keeps_of_a_model_with_recomputed_layers(recomputation):
    num_layers, keep_attention = recomputation
    real = attach_deltas(build_model("llama", num_hidden_layers=4, num_key_value_heads=4))
    meta_model = attach_deltas(build_meta_model(real.config))
    sizes = measure_activations(meta_model, micro_batch=2, length=24)
    recompute_layers(real, Recomputation(*recomputation), reentrant=False)
    seen = really_saved(real, 2, 24)
    held = seen.rest + sum(seen.layers)
    # Of the layers that are recomputed, one at a time has all of its activations.
    recomputed_layer = sizes.layer_input + sizes.attention * keep_attention
    one_more = sizes.layer - recomputed_layer if num_layers else 0
    if keep_attention:  # kept by recomputation itself, where autograd's hooks do not see it
        held += num_layers * sizes.attention
    # The tables of rotary positions belong to every layer, and are there once.
    expected = pytest.approx(held + one_more, rel=0.015)
    assert sizes.total(4, Recomputation(*recomputation)) == expected


def test_recomputed_layers_lie_evenly():
    assert spread_evenly(4, 2) == [False, True, False, True]
    assert spread_evenly(5, 0) == [False] * 5
    assert spread_evenly(5, 5) == [True] * 5
    for chosen in range(8):
        assert sum(spread_evenly(7, chosen)) == chosen


def test_the_share_of_attention_grows_with_the_length():
    config = FAMILIES["llama"]
    assert 0 < attention_share(config, 128) < attention_share(config, 4096) < 1
