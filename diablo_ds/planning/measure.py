"""A model's sizes, from its own code on the meta device: no weights, no GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from diablo_ds.adapter.layer import DiaBloLinear
from diablo_ds.config.run import RunConfig
from diablo_ds.model.activations import ActivationSizes, measure_activations
from diablo_ds.model.architecture import (
    DTYPES,
    BaseSizes,
    build_meta_model,
    decoder_layer_classes,
    decoder_layers,
    measure_base,
)
from diablo_ds.model.deltas import add_deltas, choose_num_blocks
from diablo_ds.model.loss_head import LossHead
from diablo_ds.model.repeated_layers import skipping_repeated
from diablo_ds.planning.gathers import Visit
from diablo_ds.zero.placement import TensorPlacement, expected_placement


@dataclass(frozen=True)
class ModelSizes:
    """What a plan needs to know of a model with deltas attached, for one run config."""

    parameters: tuple[TensorPlacement, ...]
    """As stage 3 places them; the base's first, as they are created."""
    visits: tuple[Visit, ...]
    """Modules in the order of a micro step; parameters by their place in ``parameters``."""
    num_layers: int
    layer_matrix_elements: int
    """Elements of one decoder layer's base matrices: each counts once per token."""
    base: BaseSizes
    activations: ActivationSizes
    attention_width: int
    """Query heads times their width."""
    widest: int
    """The widest output of a linear layer inside a decoder layer."""
    vocab_size: int
    has_loss_head: bool
    """Whether the loss is computed in chunks, inside the head."""

    def elements(self, group: str) -> int:
        """Return all elements of a group: "base matrices", "base vectors" or "deltas"."""
        return sum(p.num_elements for p in self.parameters if p.group == group)

    @property
    def num_deltas(self) -> int:
        """Trainable parameters."""
        return self.elements("deltas")

    @property
    def num_base(self) -> int:
        """Frozen parameters."""
        return self.elements("base matrices") + self.elements("base vectors")

    @property
    def element_bytes(self) -> int:
        """Bytes of an element of base and deltas."""
        return self.base.element_bytes


def measure_model(
    model_config: Any,
    run_config: RunConfig,
    num_blocks: dict[str, int] | None = None,
    *,
    compiled: bool = False,
) -> ModelSizes:
    """Measure a model for a run config's targets, block count, precision, batch and length.

    Args:
        model_config: the model's Hugging Face config.
        run_config: the run config.
        num_blocks: block count of each target layer by full module name; those of the run config by
            default.
        compiled: whether decoder layers run compiled.

    Raises:
        UserError: if a target matches nothing or a block count does not divide a layer.
    """
    key = _key(model_config, run_config, num_blocks)
    if key not in _METERS:
        meter = _Meter(model_config, run_config, num_blocks)
        while len(_METERS) >= _MOST_METERS:
            _METERS.pop(next(iter(_METERS)), None)
        _METERS[key] = meter
    return _METERS[key].sizes(run_config.micro_batch, run_config.max_length, compiled=compiled)


class _Meter:
    """A model with deltas on the meta device; running its layers takes most of a plan's time."""

    def __init__(
        self, model_config: Any, run_config: RunConfig, num_blocks: dict[str, int] | None
    ) -> None:
        dtype = DTYPES[run_config.precision]
        model: Any = build_meta_model(model_config).to(dtype)
        base = measure_base(model, dtype)
        # The kernels of other paths do not run on the meta device.
        fused = replace(run_config, delta_path="fused")
        built = add_deltas(model, num_blocks or choose_num_blocks(model, run_config), fused, model)
        self._model = model
        self._measured: dict[tuple[int, int], ActivationSizes] = {}
        activations = self._measure(1, run_config.max_length)
        placed = expected_placement(model, built.deltas, stage=3, threshold=0)
        placed.sort(key=lambda p: p.group == "deltas")  # DeepSpeed sees them last
        text = model_config.get_text_config()
        layers = decoder_layers(model)
        kinds = nn.Linear | DiaBloLinear
        linears = [m for layer in layers for m in layer.modules() if isinstance(m, kinds)]
        num_elements = sum(m.in_features * m.out_features for m in linears)
        heads = text.num_attention_heads
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
        self._sizes = ModelSizes(
            parameters=tuple(placed),
            visits=_trace(model, placed),
            num_layers=len(layers),
            layer_matrix_elements=num_elements // max(1, len(layers)),
            base=base,
            activations=activations,
            attention_width=heads * head_dim,
            widest=max((m.out_features for m in linears), default=text.hidden_size),
            vocab_size=text.vocab_size,
            has_loss_head=built.has_loss_head,
        )

    def sizes(self, micro_batch: int, length: int, *, compiled: bool) -> ModelSizes:
        """Return the sizes for a micro batch of sequences of a length in tokens."""
        # What is kept has a part for each sequence, and one for all of them.
        activations = self._measure(min(micro_batch, 2), length)
        if micro_batch > 2:
            activations = self._measure(1, length).extended(activations, micro_batch - 1)
        if compiled:
            activations = activations.compiled()
        return replace(self._sizes, activations=activations)

    def _measure(self, micro_batch: int, length: int) -> ActivationSizes:
        key = micro_batch, length
        if key not in self._measured:
            self._measured[key] = measure_activations(
                self._model, micro_batch=micro_batch, length=length
            )
        return self._measured[key]


_METERS: dict[str, _Meter] = {}
"""Those that were used last, by `_key`; a run asks for the same one several times."""
_MOST_METERS = 4
_READ = ("targets", "layers", "num_blocks", "precision", "dropout", "base_dropout")
"""Fields of a run config that decide how a model with deltas is built."""


def _key(model_config: Any, run_config: RunConfig, num_blocks: dict[str, int] | None) -> str:
    fields = [getattr(run_config, name) for name in _READ]
    attention = getattr(model_config, "_attn_implementation", None)
    return repr((model_config.to_dict(), attention, fields, num_blocks))


def _trace(model: Any, parameters: Sequence[TensorPlacement]) -> tuple[Visit, ...]:
    """Return the modules in the order in which ZeRO-3 visits them in a forward and backward."""
    named = dict(model.named_parameters())
    number = {id(named[p.name]): i for i, p in enumerate(parameters)}
    leaves = tuple(decoder_layer_classes(model))

    def visit(module: nn.Module) -> Visit:
        below = tuple(sorted({number[id(p)] for p in module.parameters()}))
        own = tuple(sorted({number[id(p)] for p in module.parameters(recurse=False)}))
        is_leaf = isinstance(module, leaves)
        return Visit(below if is_leaf else own, below, is_leaf)

    entered: list[nn.Module] = []
    left: list[nn.Module] = []

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        # The part of a head that computes the loss is no part of the autograd graph.
        head = model.get_output_embeddings()
        inside_head = isinstance(head, LossHead) and module is head.linear
        if _requires_grad(output) and not inside_head:
            left.append(module)

    model.enable_input_require_grads()
    outside = list(_outside(model, leaves))
    handles = [m.register_forward_pre_hook(lambda m, args: entered.append(m)) for m in outside]
    handles += [m.register_forward_hook(leave) for m in outside]
    try:
        tokens = torch.zeros(1, 2, dtype=torch.int64, device="meta")
        # A mask of 4 dims is taken as it is; to build one, values would be needed.
        mask = torch.zeros(1, 1, 2, 2, dtype=next(model.parameters()).dtype, device="meta")
        with skipping_repeated(decoder_layers(model)):
            model(input_ids=tokens, position_ids=tokens, attention_mask=mask, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
        model.disable_input_require_grads()
    return tuple(visit(m) for m in (*entered, *reversed(left)))


def _outside(module: nn.Module, leaves: tuple[type[nn.Module], ...]) -> Iterator[nn.Module]:
    """Yield a module and its children, but nothing inside a leaf."""
    yield module
    if not isinstance(module, leaves):
        for child in module.children():
            yield from _outside(child, leaves)


def _requires_grad(output: Any) -> bool:
    if isinstance(output, torch.Tensor):
        return output.requires_grad
    values = output.values() if isinstance(output, dict) else output
    parts = values if isinstance(values, Sequence) or isinstance(output, dict) else ()
    return any(_requires_grad(part) for part in parts)
