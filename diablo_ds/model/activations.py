"""Activation memory: what a decoder layer keeps for its backward, and which layers to recompute.

Sizes come from running the model's own code on the meta device, so they hold for any architecture
and cost neither memory nor a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diablo_ds.errors import UserError
from diablo_ds.model.architecture import decoder_layers
from diablo_ds.model.recomputation import Recomputation

_COUNTED = "diablo_ds_counted"
"""Name of the attention that stands for a fused kernel on the meta device."""


@dataclass(frozen=True)
class ActivationSizes:
    """Bytes that autograd keeps from the forward to the backward of one micro batch."""

    layer: int
    """One decoder layer's, its input included; the largest layer's where they differ."""
    layer_input: int
    """One decoder layer's that is recomputed: its input alone."""
    attention: int
    """What more is kept of one that is recomputed without its attention."""
    rest: int
    """Outside the decoder layers, up to the input of the head."""

    def total(self, num_layers: int, recomputation: Recomputation) -> int:
        """Return the most bytes held at once, while the backward passes the decoder layers.

        While a layer is recomputed, all of its own activations are there.

        Args:
            num_layers: decoder layers of the model.
            recomputation: which of them are recomputed.
        """
        return self.kept(num_layers, recomputation) + self.again(recomputation)

    def kept(self, num_layers: int, recomputation: Recomputation) -> int:
        """Return the bytes that are kept up to the backward; arguments as for `total`."""
        num_recomputed = recomputation.num_layers
        whole = (num_layers - num_recomputed) * self.layer
        return self.rest + whole + num_recomputed * self._of_recomputed(recomputation)

    def again(self, recomputation: Recomputation) -> int:
        """Return the bytes that a layer adds while it is recomputed; 0 where none is."""
        if not recomputation.num_layers:
            return 0
        return self.layer - self._of_recomputed(recomputation)

    def _of_recomputed(self, recomputation: Recomputation) -> int:
        return self.layer_input + self.attention * recomputation.keep_attention


def attention_share(config: Any, length: int) -> float:
    """Return the share of a decoder layer's forward operations that causal attention takes.

    Args:
        config: the Hugging Face config of a text model.
        length: tokens of a sequence; a token attends to half of them on average.
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    weights = hidden * head_dim * (2 * heads + 2 * key_heads) + 3 * hidden * inner
    attention = length * head_dim * heads  # of two products; a weight counts once
    return float(attention / (attention + weights))


def measure_activations(shapes: Any, *, micro_batch: int, length: int) -> ActivationSizes:
    """Measure what autograd would keep, without computing anything.

    Attention counts as a fused kernel, which keeps its inputs, its output and one fp32 number per
    query; a padding mask does not count, since training on the right-padded needs none.

    Args:
        shapes: a Hugging Face causal LM on the meta device, in the dtype of the training, frozen
            but for the deltas, which are attached.
        micro_batch: sequences.
        length: tokens of each.
    """
    layers = decoder_layers(shapes)
    if not layers:
        raise UserError(
            "activation memory needs a model whose decoder layers transformers names; got "
            f"model type {shapes.config.model_type!r}"
        )
    seen = _SavedBytes(shapes)
    handles = [
        handle
        for layer in layers
        for handle in (
            layer.register_forward_pre_hook(seen.enter),
            layer.register_forward_hook(seen.leave),
        )
    ]
    inputs = torch.zeros(micro_batch, length, dtype=torch.int64, device="meta")
    embeddings = shapes.get_input_embeddings()
    # As in training: the first layer's input needs a gradient.
    handles.append(
        embeddings.register_forward_hook(lambda module, args, output: output.requires_grad_(True))
    )
    base: Any = getattr(shapes, shapes.base_model_prefix)
    training = shapes.training
    try:
        with _fused_attention(shapes, seen), seen.recording():
            base.train()(input_ids=inputs, use_cache=False)
    finally:
        shapes.train(training)
        for handle in handles:
            handle.remove()
    return ActivationSizes(
        layer=max(seen.layers.values()),
        layer_input=seen.layer_input,
        attention=seen.attention,
        rest=seen.rest,
    )


class _SavedBytes:
    """Adds up the storages that autograd saves, by the decoder layer that is running."""

    def __init__(self, model: nn.Module) -> None:
        self.layers: Counter[int] = Counter()
        self.rest = 0
        self.layer_input = 0
        self.attention = 0
        self._layer: int | None = None
        # Kept alive, so that no identity is given twice. A model's own tensors count elsewhere.
        self._known = {
            _identity(tensor): tensor for tensor in (*model.parameters(), *model.buffers())
        }

    def enter(self, layer: nn.Module, args: tuple[Any, ...]) -> None:
        """Note which layer runs, and count its input."""
        self._layer = id(layer)
        self.layer_input = max(self.layer_input, _num_bytes(args[0]))
        self.add(args[0])

    def leave(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Note that no layer runs."""
        self._layer = None

    def add(self, tensor: Tensor) -> Tensor:
        """Count a tensor's storage, once."""
        identity = _identity(tensor)
        if identity not in self._known:
            self._known[identity] = tensor
            if self._layer is None:
                self.rest += _num_bytes(tensor)
            else:
                self.layers[self._layer] += _num_bytes(tensor)
        return tensor

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Count what autograd saves while this is entered."""
        with torch.autograd.graph.saved_tensors_hooks(self.add, lambda tensor: tensor):
            yield


def _identity(tensor: Tensor) -> int:
    identity: int = tensor.untyped_storage()._cdata
    return identity


def _num_bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


class _FusedAttention(torch.autograd.Function):
    """Saves what a fused attention kernel saves."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, seq, _ = query.shape
        out = query.new_empty(batch, seq, heads, value.shape[-1]).transpose(1, 2)
        of_queries = query.new_empty(query.shape[:-1], dtype=torch.float32)  # log of the sum
        ctx.save_for_backward(query, key, value, out, of_queries)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        raise AssertionError("shapes only")


@contextmanager
def _fused_attention(model: Any, seen: _SavedBytes) -> Iterator[None]:
    """Let a model's attention be a stand-in on the meta device."""
    from transformers import AttentionInterface

    def forward(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, None]:
        """Map ``[batch, heads, seq, head_dim]`` to ``[batch, seq, heads, head_dim]``."""
        out: Tensor = _FusedAttention.apply(query, key, value)  # type: ignore[no-untyped-call]
        of_queries = query[..., 0].numel() * torch.float32.itemsize
        seen.attention = max(seen.attention, _num_bytes(out) + of_queries)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register(_COUNTED, forward)
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = _COUNTED
    try:
        yield
    finally:
        config._attn_implementation = before
