"""Activation memory: what a decoder layer keeps for its backward, and which layers to recompute.

Sizes come from running the model's own code on the meta device, so they hold for any architecture
and cost neither memory nor a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from diablo_ds.errors import UserError
from diablo_ds.model.architecture import decoder_layers
from diablo_ds.model.compiled_activations import Operations, identity, num_bytes
from diablo_ds.model.recomputation import Recomputation
from diablo_ds.model.repeated_layers import skipping_repeated

_COUNTED = "diablo_ds_counted"
"""Name of the attention that stands for a fused kernel on the meta device."""


@dataclass(frozen=True)
class ActivationSizes:
    """Bytes that autograd keeps from the forward to the backward of one micro batch."""

    layer: int
    """Of a decoder layer, its input included; the largest layer's where they differ."""
    layer_input: int
    """Of a recomputed decoder layer: its input alone."""
    attention: int
    """Extra bytes per recomputed layer if its attention output is kept."""
    rest: int
    """Outside the decoder layers, up to the input of the head."""
    compiled_layer: int
    """Of a compiled decoder layer; see `diablo_ds.model.compiled_activations`."""

    def compiled(self) -> ActivationSizes:
        """Return the sizes with compiled decoder layers."""
        return replace(self, layer=self.compiled_layer)

    def extended(self, other: ActivationSizes, times: int) -> ActivationSizes:
        """Return these sizes with ``times`` times what those of one sequence more differ by."""
        own, others = astuple(self), astuple(other)
        pairs = zip(own, others, strict=True)
        return ActivationSizes(*(size + times * (more - size) for size, more in pairs))

    def total(self, num_layers: int, recomputation: Recomputation) -> int:
        """Return the most bytes held at once, while the backward passes the decoder layers.

        While a layer is recomputed, all of its own activations are in memory.

        Args:
            num_layers: decoder layers of the model.
            recomputation: which of them are recomputed.
        """
        return self.saved_bytes(num_layers, recomputation) + self.recompute_bytes(recomputation)

    def saved_bytes(self, num_layers: int, recomputation: Recomputation) -> int:
        """Return the bytes kept from the forward to the backward; arguments as for `total`."""
        num_recomputed = recomputation.num_layers
        kept_layers = (num_layers - num_recomputed) * self.layer
        return self.rest + kept_layers + num_recomputed * self._recomputed_layer(recomputation)

    def recompute_bytes(self, recomputation: Recomputation) -> int:
        """Return the bytes that a layer adds while it is recomputed; 0 if none is."""
        if not recomputation.num_layers:
            return 0
        return self.layer - self._recomputed_layer(recomputation)

    def _recomputed_layer(self, recomputation: Recomputation) -> int:
        return self.layer_input + self.attention * recomputation.keep_attention


def attention_share(model_config: Any, length: int) -> float:
    """Return the share of a decoder layer's forward operations that causal attention takes.

    Args:
        model_config: the Hugging Face config of a text model.
        length: tokens of a sequence; a token attends to half of them on average.
    """
    hidden, heads = model_config.hidden_size, model_config.num_attention_heads
    head_dim = getattr(model_config, "head_dim", None) or hidden // heads
    key_heads = getattr(model_config, "num_key_value_heads", None) or heads
    inner = getattr(model_config, "intermediate_size", None) or 4 * hidden
    weights = hidden * head_dim * (2 * heads + 2 * key_heads) + 3 * hidden * inner
    attention = length * head_dim * heads  # of two products; a weight counts once
    return float(attention / (attention + weights))


def measure_activations(meta_model: Any, *, micro_batch: int, length: int) -> ActivationSizes:
    """Measure what autograd would keep, without computing anything.

    Attention counts as a fused kernel, which keeps its inputs, its output and one fp32 number per
    query; a padding mask does not count, since training on the right-padded needs none.

    Args:
        meta_model: a Hugging Face causal LM on the meta device, in the dtype of the training, with
            deltas attached and everything else frozen.
        micro_batch: sequences.
        length: tokens of each.
    """
    layers = decoder_layers(meta_model)
    if not layers:
        raise UserError(
            "activation memory needs a model whose decoder layers transformers names; got "
            f"model type {meta_model.config.model_type!r}"
        )
    seen = _SavedBytes(meta_model)
    handles = [
        handle
        for layer in layers
        for handle in (
            layer.register_forward_pre_hook(seen.enter),
            layer.register_forward_hook(seen.leave),
        )
    ]
    inputs = torch.zeros(micro_batch, length, dtype=torch.int64, device="meta")
    embeddings = meta_model.get_input_embeddings()
    # As in training: the first layer's input needs a gradient.
    handles.append(
        embeddings.register_forward_hook(lambda module, args, output: output.requires_grad_(True))
    )
    base: Any = getattr(meta_model, meta_model.base_model_prefix)
    training = meta_model.training
    try:
        with (
            _fused_attention(meta_model, seen),
            skipping_repeated(layers),
            seen.recording(),
            seen.operations,
        ):
            base.train()(input_ids=inputs, use_cache=False)
    finally:
        meta_model.train(training)
        for handle in handles:
            handle.remove()
    return ActivationSizes(
        layer=max(seen.layers.values()),
        layer_input=seen.layer_input,
        attention=seen.attention,
        rest=seen.rest,
        compiled_layer=seen.compiled_layer,
    )


class _SavedBytes:
    """Adds up the storages that autograd saves, by the decoder layer that is running."""

    def __init__(self, model: nn.Module) -> None:
        self.layers: Counter[int] = Counter()
        self.operations = Operations()
        self.compiled_layer = 0
        self._saved: list[Tensor] = []
        self.rest = 0
        self.layer_input = 0
        self.attention = 0
        self._layer: int | None = None
        # Kept alive, so that no identity is reused. A model's own tensors count elsewhere.
        self._known = {
            identity(tensor): tensor for tensor in (*model.parameters(), *model.buffers())
        }
        self._of_model = frozenset(self._known)

    def enter(self, layer: nn.Module, args: tuple[Any, ...]) -> None:
        """Note which layer runs, and count its input."""
        self._layer = id(layer)
        self._saved.clear()
        self.operations.start()
        self.layer_input = max(self.layer_input, num_bytes(args[0]))
        self.add(args[0])

    def leave(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Note that no layer runs, and count what this one keeps if it is compiled."""
        self._layer = None
        compiled = self.operations.kept_bytes(
            self._saved, lambda tensor: identity(tensor) in self._of_model
        )
        self.compiled_layer = max(self.compiled_layer, compiled)

    def add(self, tensor: Tensor) -> Tensor:
        """Count a tensor's storage, once."""
        if identity(tensor) not in self._known:
            self._known[identity(tensor)] = tensor
            if self._layer is None:
                self.rest += num_bytes(tensor)
            else:
                self.layers[self._layer] += num_bytes(tensor)
                self._saved.append(tensor)
        return tensor

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Count what autograd saves while this is entered."""
        with torch.autograd.graph.saved_tensors_hooks(self.add, lambda tensor: tensor):
            yield


class _FusedAttention(torch.autograd.Function):
    """Saves what a fused attention kernel saves."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, seq, _ = query.shape
        out = query.new_empty(batch, seq, heads, value.shape[-1]).transpose(1, 2)
        logsumexp = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        raise AssertionError("on the meta device only")


@contextmanager
def _fused_attention(model: Any, seen: _SavedBytes) -> Iterator[None]:
    """Let a model's attention be a stand-in on the meta device."""
    from transformers import AttentionInterface

    def forward(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, None]:
        """Map ``[batch, heads, seq, head_dim]`` to ``[batch, seq, heads, head_dim]``."""
        seen.operations.read_by_attention(query, key, value)
        out: Tensor = _FusedAttention.apply(query, key, value)  # type: ignore[no-untyped-call]
        logsumexp_bytes = query[..., 0].numel() * torch.float32.itemsize
        seen.attention = max(seen.attention, num_bytes(out) + logsumexp_bytes)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register(_COUNTED, forward)
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = _COUNTED
    try:
        yield
    finally:
        config._attn_implementation = before
