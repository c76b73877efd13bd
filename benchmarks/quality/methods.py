"""How a model gets its trainable parameters, by method; all else is equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.quality.permuted import permute_inputs
from benchmarks.quality.spec import TARGETS, Spec
from diablo_ds.adapter.attach import diablo_layers
from diablo_ds.adapter.base import LinearModule
from diablo_ds.adapter.targets import resolve_num_blocks, select_targets
from diablo_ds.data.labels import IGNORE_LABEL
from diablo_ds.model.loss_head import LossHead, install_loss_head
from diablo_ds.model.recomputation import choose_recomputation, recompute_layers
from diablo_ds.training.building import Design, attach_deltas


@dataclass(frozen=True)
class Trainable:
    """A model that is ready to be trained."""

    model: Any
    parameters: dict[str, nn.Parameter]
    """Those that are trained, by name."""
    lora_rank: int | None = None

    @property
    def size(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters.values())


def target_layers(model: Any, targets: str) -> dict[str, LinearModule]:
    """Return the target layers of a model by name.

    Args:
        model: may be on the meta device.
        targets: a name in `TARGETS`.
    """
    return select_targets(model, TARGETS[targets], model_type=model.config.model_type)


def wanted_size(layers: Mapping[str, LinearModule], num_blocks: str) -> float:
    """Return the parameters of N blocks in each layer; N need not divide its widths."""
    if num_blocks.startswith("auto:"):
        counts: Mapping[str, float] = resolve_num_blocks(layers, num_blocks)
    else:
        counts = dict.fromkeys(layers, float(num_blocks))
    return sum(
        layers[name].in_features * layers[name].out_features / n for name, n in counts.items()
    )


def lora_rank(spec: Spec, layers: Mapping[str, LinearModule]) -> int:
    """Return the rank whose size is nearest to that of the spec's blocks, at least 1.

    A rank adds ``in_features + out_features`` parameters to a layer, and DoRA has ``out_features``
    magnitudes more. So the size is off by at most half of what a rank adds, where it is not below
    one rank.
    """
    size = wanted_size(layers, spec.num_blocks)
    if spec.method == "dora":
        size -= sum(layer.out_features for layer in layers.values())
    per_rank = sum(layer.in_features + layer.out_features for layer in layers.values())
    return max(1, round(size / per_rank))


def prepare(spec: Spec, model: Any, design: Design) -> Trainable:
    """Give a model its trainable parameters, in place; it then computes what it did before.

    Args:
        spec: names the method.
        model: the base model with its weights, which become the run's own.
        design: of a DiaBlo run with the spec's settings; the other methods take from it what does
            not concern deltas.
    """
    if spec.method == "diablo":
        built = attach_deltas(design, model)
        if spec.permuted:
            permute_inputs(diablo_layers(model), spec.seed)
        return Trainable(model, built.deltas)
    rank = None
    if spec.method == "full":
        model.requires_grad_(True)
    else:
        rank = _add_lora(spec, model)
    run_config = design.run_config
    recompute_layers(
        model, choose_recomputation(run_config, design.shapes), reentrant=run_config.reentrant
    )
    if install_loss_head(model, design.shapes) and spec.method == "full":
        model.set_output_embeddings(TrainedLossHead(model.get_output_embeddings()))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return Trainable(model, trained, rank)


def _add_lora(spec: Spec, model: Any) -> int:
    """Add PEFT's layers. alpha is the rank: LoRA's product has the factor 1, and rsLoRA's the root
    of the rank. The learning rate is tuned, so that a constant factor decides nothing.
    """
    import peft

    layers = target_layers(model, spec.targets)
    rank = lora_rank(spec, layers)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(layers),
        use_rslora=spec.method == "rslora",
        use_dora=spec.method == "dora",
    )
    torch.manual_seed(spec.seed)
    peft.inject_adapter_in_model(config, model)
    return rank


class TrainedLossHead(LossHead):
    """The loss head of a model whose head is trained: its weight gets a gradient too.

    Logits are computed at the positions that predict a target, like those of a frozen head.

    Args:
        head: the frozen model's.
    """

    def __init__(self, head: LossHead) -> None:
        super().__init__(head.linear)  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[batch, seq, hidden_size]`` to logits or, inside `computing_loss`, to ``[]``."""
        if self._labels is None:
            return super().forward(input)
        targets = self._labels[:, 1:].to(input.device)
        mask = targets != IGNORE_LABEL
        rows = input[:, :-1][mask]  # [num_targets, hidden_size]
        logits = F.linear(rows, self.linear.weight, self.linear.bias)
        return F.cross_entropy(logits.float(), targets[mask], reduction="sum")
