"""Recomputing decoder layers in the backward instead of keeping their activations."""

from __future__ import annotations

from typing import Any, NamedTuple

from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.model.architecture import decoder_layers, num_elements

LARGE_MODEL_PARAMETERS = 1_000_000_000
"""From this size on recomputation is on by default; a guess at where activations hurt."""


class Recomputation(NamedTuple):
    """Which decoder layers are recomputed in the backward, and what is kept of them."""

    num_layers: int
    """Layers that are recomputed, spread evenly over the model."""
    keep_attention: bool = False
    """Whether the attention's output is kept of them: as large as a layer's input, and the part
    whose computing time grows with the square of the length."""

    def text(self, num_layers: int) -> str:
        """Return it in words, for a model of ``num_layers`` decoder layers."""
        kept = ", their attention kept" if self.keep_attention else ""
        return f"{self.num_layers} of {num_layers} decoder layers recomputed{kept}"


def choose_recomputation(run_config: RunConfig, meta_model: Any) -> Recomputation:
    """Return which decoder layers a run config lets recompute, without a memory budget.

    Args:
        run_config: the run config. Where it leaves it open, large models are recomputed.
        meta_model: the model on the meta device.

    Raises:
        UserError: if the model does not support it, or has fewer layers.
    """
    details = run_config.reentrant or run_config.recomputed_layers or run_config.keep_attention
    wanted = run_config.recompute
    if wanted is None:
        wanted = bool(details) or num_elements(meta_model) >= LARGE_MODEL_PARAMETERS
    if not wanted:
        return Recomputation(0)
    check_recomputable(meta_model)
    num_layers = len(decoder_layers(meta_model))
    if run_config.recomputed_layers > num_layers:
        raise UserError(
            "recomputed_layers must be at most the model's decoder layers; got "
            f"recomputed_layers={run_config.recomputed_layers}, {num_layers} layers"
        )
    return Recomputation(run_config.recomputed_layers or num_layers, run_config.keep_attention)


def check_recomputable(meta_model: Any) -> None:
    """Raise UserError unless a model can recompute its decoder layers."""
    if not getattr(meta_model, "supports_gradient_checkpointing", False):
        raise UserError(
            "recompute needs a model that supports it; got "
            f"model type {meta_model.config.model_type!r}; use --no-recompute"
        )


def spread_evenly(num_layers: int, num_chosen: int) -> list[bool]:
    """Say of each layer whether it is one of ``num_chosen`` that lie evenly among all."""
    return [
        (i + 1) * num_chosen // num_layers > i * num_chosen // num_layers for i in range(num_layers)
    ]


def recompute_layers(model: Any, recomputation: Recomputation, *, reentrant: bool) -> None:
    """Recompute decoder layers in the backward pass instead of keeping their activations.

    Args:
        model: the model.
        recomputation: how many layers, and what is kept of them.
        reentrant: whether to use the re-entrant form of `torch.utils.checkpoint`.

    Raises:
        UserError: if the model recomputes all layers or none, and neither is wanted.
    """
    if not recomputation.num_layers:
        return
    options: dict[str, Any] = {"use_reentrant": reentrant}
    if recomputation.keep_attention:
        options["context_fn"] = _keeping_attention
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(options)
    else:  # its name before transformers 5.23
        model.gradient_checkpointing_enable(options)
    layers: list[Any] = decoder_layers(model)
    if recomputation.num_layers == len(layers):
        return
    if not all(hasattr(layer, "gradient_checkpointing") for layer in layers):
        raise UserError(
            "recomputing some decoder layers needs a model that can recompute each by itself; got "
            f"model type {model.config.model_type!r}; use --recompute"
        )
    chosen = spread_evenly(len(layers), recomputation.num_layers)
    for layer, is_chosen in zip(layers, chosen, strict=True):
        layer.gradient_checkpointing = is_chosen


def _keeping_attention() -> Any:
    """Return the contexts in which `torch.utils.checkpoint` keeps what attention kernels return."""
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

    def policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        # FlashAttention's package and PyTorch's kernel of variable length say attn.
        if "attention" in str(operation) or "_attn" in str(operation):
            return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
