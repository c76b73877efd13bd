"""What can be switched in a running session, one at a time; each is undone on leaving."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from diablo_ds.adapter.attach import diablo_layers
from diablo_ds.adapter.layer import DiaBloLinear
from diablo_ds.adapter.paths import DELTA_PATHS
from diablo_ds.errors import UserError
from diablo_ds.model import loss
from diablo_ds.model.architecture import decoder_layers
from diablo_ds.model.compilation import compile_layers, compile_loss, uncompile_layers

Lever = Callable[[Any], contextlib.AbstractContextManager[None]]
"""Of a model."""


@contextlib.contextmanager
def switched(model: Any, using: Iterable[Lever]) -> Iterator[None]:
    """Switch several levers, in their order."""
    with contextlib.ExitStack() as stack:
        for lever in using:
            stack.enter_context(lever(model))
        yield


@contextlib.contextmanager
def delta_path(model: nn.Module, path: str, *, from_width: int = 0) -> Iterator[None]:
    """Compute the deltas' products by another formulation.

    Args:
        model: the model.
        path: the formulation.
        from_width: of layers with at least so many outputs or inputs.
    """
    if path not in DELTA_PATHS:
        raise UserError(f"path must be one of {', '.join(DELTA_PATHS)}; got path={path!r}")
    layers = [layer for layer in diablo_layers(model).values() if _width(layer) >= from_width]
    before = [layer.delta_path for layer in layers]
    for layer in layers:
        layer.delta_path = path
    try:
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.delta_path = old


def _width(layer: DiaBloLinear) -> int:
    return max(layer.in_features, layer.out_features)


@contextlib.contextmanager
def compiled(model: Any) -> Iterator[None]:
    """Compile the decoder layers."""
    compile_layers(model)
    (layer_class,) = {type(layer) for layer in decoder_layers(model)}
    try:
        yield
        if layer_class.compilation.has_failed:  # type: ignore[attr-defined]
            raise RuntimeError("the layers could not be compiled; the log says why")
    finally:
        uncompile_layers(model)


@contextlib.contextmanager
def flash_attention() -> Iterator[None]:
    """Let PyTorch's attention prefer its flash kernel to cuDNN's."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(order, set_priority=True):
        yield


@contextlib.contextmanager
def compiled_loss(model: Any) -> Iterator[None]:
    """Compile what the loss computes from a chunk's logits."""
    compile_loss(model)
    try:
        yield
    finally:
        model.get_output_embeddings().compute_softmax_by(None)


@contextlib.contextmanager
def loss_chunk(num_bytes: int) -> Iterator[None]:
    """Hold so many bytes of fp32 logits at once in the loss."""
    before = dict(loss.LOSS_CHUNK_BYTES)
    loss.LOSS_CHUNK_BYTES.update(dict.fromkeys(before, num_bytes))
    try:
        yield
    finally:
        loss.LOSS_CHUNK_BYTES.update(before)


@contextlib.contextmanager
def liger(model: Any) -> Iterator[None]:
    """Use liger-kernel's RMSNorm, rotary embedding and SwiGLU."""
    from liger_kernel.transformers import apply_liger_kernel_to_llama
    from transformers.models.llama import modeling_llama

    rotary = modeling_llama.apply_rotary_pos_emb
    own = {module: dict(vars(module)) for module in model.modules()}
    apply_liger_kernel_to_llama(
        rope=True,
        rms_norm=True,
        swiglu=True,
        cross_entropy=False,
        fused_linear_cross_entropy=False,
        model=model,
    )
    try:
        yield
    finally:
        modeling_llama.apply_rotary_pos_emb = rotary
        for module, before in own.items():
            for name in set(vars(module)) - set(before):
                del module.__dict__[name]
            for name in ("forward", "extra_repr", "_get_name"):
                if name in before:
                    module.__dict__[name] = before[name]
