"""A small model on the device against plain PyTorch in fp64 on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu import levers
from benchmarks.gpu.models import device
from diablo_ds.adapter.attach import attach, load_deltas
from diablo_ds.adapter.blocks import diagonal_blocks
from diablo_ds.adapter.targets import resolve_num_blocks, select_targets
from diablo_ds.data.batches import MicroBatch
from diablo_ds.model.architecture import DTYPES, build_meta_model, build_model
from diablo_ds.model.loss import count_targets
from diablo_ds.model.loss_head import install_loss_head, loss_of
from diablo_ds.model.varlen import VARLEN, register_varlen_attention

UNIT = {"bf16": 2.0**-8, "fp16": 2.0**-11, "fp32": 2.0**-24}
"""Largest relative error of rounding a number, by dtype."""
GRADIENT_UNITS, LOSS_UNITS = 8.0, 1.0
"""Errors allowed, in units of rounding: a gradient goes through tens of products, each rounded,
whose errors add up like a random walk; the loss is a mean over tokens, whose errors cancel out."""
LEAST_BOUND = 1e-4
"""In fp32 the order of sums over hundreds of terms makes more than the rounding of results, and a
product in TF32 would make ten times as much as this."""
_FP16_SCALE = 1024.0
"""Of the loss, so that small gradients do not vanish in fp16."""
_DELTA_SHARE = 0.1
"""Standard deviation of the deltas, as a share of the weights'."""


@dataclass(frozen=True)
class Sizes:
    """Of the model and its batch."""

    hidden: int = 512
    inner: int = 1536
    heads: int = 8
    key_heads: int = 4
    layers: int = 2
    vocab: int = 1024
    num_blocks: int = 64
    rows: int = 2
    length: int = 256
    examples: tuple[int, ...] = (200, 77, 130, 33, 250, 12)
    """Tokens of the examples that share two packed rows, half of them each."""
    window: int = 0
    """Of sliding-window attention; 0 for none."""

    def config(self) -> Any:
        """Return the Hugging Face config: Llama's, or Mistral's where there is a window."""
        from transformers import AutoConfig

        return AutoConfig.for_model(
            "mistral" if self.window else "llama",
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            num_hidden_layers=self.layers,
            vocab_size=self.vocab,
            max_position_embeddings=2 * self.length,
            **({"sliding_window": self.window} if self.window else {}),
        )


SIZES = {
    "full": Sizes(),
    "tiny": Sizes(64, 96, 4, 2, 2, 96, 4, 2, 24, examples=(20, 7, 13, 3, 25, 2)),
}


class Found(NamedTuple):
    """What forward and backward give."""

    loss: float
    """Mean over target tokens, in nats."""
    gradients: dict[str, Tensor]
    """Of that mean by each delta, fp64 on the CPU."""


@lru_cache(maxsize=2)
def _weights(sizes: Sizes) -> dict[str, Tensor]:
    """Return fp32 weights by name, drawn on the CPU so that tokens mix strongly."""
    generator = torch.Generator().manual_seed(0)
    model = build_model(sizes.config(), torch.float32)
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)
    return {name: value.detach() for name, value in model.state_dict().items()}


def _model(sizes: Sizes, dtype: torch.dtype) -> Any:
    """Return the model with weights that were rounded to a dtype, in that dtype."""
    model = build_model(sizes.config(), torch.float32)
    model.load_state_dict(_weights(sizes))
    model.config.use_cache = False
    return model.to(dtype).train()


def _deltas(shapes: dict[str, Sequence[int]], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return random deltas by name, as they are once rounded."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for name, (num_blocks, in_block, out_block) in shapes.items():
        std = _DELTA_SHARE * (num_blocks * in_block) ** -0.5
        delta = torch.empty(num_blocks, in_block, out_block)
        found[name] = nn.init.normal_(delta, std=std, generator=generator).to(dtype)
    return found


def random_batch(sizes: Sizes) -> MicroBatch:
    """Return random tokens, ``[rows, length]``."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(sizes.vocab, (sizes.rows, sizes.length), generator=generator)
    return MicroBatch(ids, ids, None, ids.numel())


def reference(sizes: Sizes, dtype: torch.dtype) -> Found:
    """Return what plain PyTorch computes in fp64 with weights and deltas that were rounded.

    No layer, loss or kernel of this package takes part: deltas are written into dense weights, and
    their gradients read off the dense ones'.
    """
    model = _model(sizes, dtype).double()
    targets: dict[str, Any] = dict(select_targets(model, (), model_type=model.config.model_type))
    counts = resolve_num_blocks(targets, str(sizes.num_blocks))
    model.requires_grad_(False)
    shapes = {
        name: (counts[name], layer.in_features // counts[name], layer.out_features // counts[name])
        for name, layer in targets.items()
    }
    for name, delta in _deltas(dict(shapes), dtype).items():
        targets[name].weight.add_(torch.block_diag(*delta.double().transpose(1, 2)))
        targets[name].weight.requires_grad_(True)
    batch = random_batch(sizes)
    logits = model(input_ids=batch.input_ids).logits  # [rows, length, vocab]
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten())
    loss.backward()
    gradients = {}
    for name, layer in targets.items():
        assert layer.weight.grad is not None
        gradients[f"{name}.delta"] = diagonal_blocks(layer.weight.grad, counts[name])
    return Found(float(loss.detach()), gradients)


def measure(
    sizes: Sizes,
    precision: str,
    batch: MicroBatch,
    *,
    path: str = "fused",
    attention: str = "sdpa",
    compiled: bool = False,
    rounded: str = "",
) -> Found:
    """Return what this package computes on the device, by what a run's micro step calls.

    Args:
        sizes: of the model.
        precision: of base and deltas.
        batch: on the CPU.
        path: of the deltas' products.
        attention: transformers' name.
        compiled: whether decoder layers are compiled.
        rounded: another precision, to which weights and deltas are rounded first.
    """
    first, dtype = DTYPES[rounded or precision], DTYPES[precision]
    model = _model(sizes, first).to(device(), dtype)
    if attention == VARLEN:
        register_varlen_attention()
    model.set_attn_implementation(attention)
    targets = select_targets(model, (), model_type=model.config.model_type)
    counts = resolve_num_blocks(targets, str(sizes.num_blocks))
    deltas = attach(model, counts, delta_path=path)
    shapes = {name.removesuffix(".delta"): tuple(d.shape) for name, d in deltas.items()}
    load_deltas(
        model, {f"{name}.delta": delta for name, delta in _deltas(dict(shapes), first).items()}
    )
    model.enable_input_require_grads()
    install_loss_head(model, build_meta_model(model.config))
    num_targets = int(count_targets(batch.labels))
    scale = _FP16_SCALE if precision == "fp16" else 1.0
    with levers.compiled(model) if compiled else contextlib.nullcontext():
        loss = loss_of(model, batch)
        (loss * (scale / num_targets)).backward()
    gradients = {}
    for name, delta in deltas.items():
        assert delta.grad is not None
        gradients[name] = delta.grad.double().cpu() / scale
    return Found(float(loss.detach()) / num_targets, gradients)


def errors(found: Found, expected: Found) -> dict[str, float]:
    """Return the relative errors of the loss, of all gradients, and of the worst layer's."""
    parts = [
        (float((found.gradients[name] - wanted).norm()), float(wanted.norm()))
        for name, wanted in expected.gradients.items()
    ]
    distances, norms = np.array(parts).T
    return {
        "loss_error": abs(found.loss - expected.loss) / expected.loss,
        "gradient_error": float(np.linalg.norm(distances) / np.linalg.norm(norms)),
        "worst_layer_error": float((distances / norms).max()),
    }


def bounds(precision: str) -> dict[str, float]:
    """Return the largest errors that rounding explains."""
    unit = UNIT[precision]
    return {
        "loss_bound": max(LOSS_UNITS * unit, LEAST_BOUND),
        "gradient_bound": max(GRADIENT_UNITS * unit, LEAST_BOUND),
    }


def is_within(found: dict[str, float], precision: str) -> bool:
    """Return whether errors are no larger than rounding explains."""
    limits = bounds(precision)
    return (
        found["loss_error"] <= limits["loss_bound"]
        and found["gradient_error"] <= limits["gradient_bound"]
        and found["worst_layer_error"] <= 2 * limits["gradient_bound"]
    )


# --- losses and gradients by path ----------------------------------------------------------------


def precisions() -> tuple[str, ...]:
    """Return the precisions that the device can train in."""
    return ("bf16", "fp16", "fp32") if device().type == "cuda" else ("bf16", "fp32")


def check_path(
    scale: str, path: str, *, compiled: bool = False, only: Sequence[str] = ()
) -> dict[str, Any]:
    """Compare loss and delta gradients with fp64's, in every precision.

    Args:
        scale: of `SIZES`.
        path: of the deltas' products.
        compiled: whether decoder layers are compiled.
        only: precisions; by default all that the device can train in.
    """
    sizes, passed = SIZES[scale], True
    figures: dict[str, Any] = {}
    for precision in only or precisions():
        expected = reference(sizes, DTYPES[precision])
        found = measure(sizes, precision, random_batch(sizes), path=path, compiled=compiled)
        own = errors(found, expected)
        passed = passed and is_within(own, precision)
        both = own | bounds(precision)
        figures |= {f"{precision} {name}": value for name, value in both.items()}
    return figures | {"passed": passed}
