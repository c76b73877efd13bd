"""Bases with adapters for tests of merging: any family, tiny, in files as users have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from diablo_ds.adapter.attach import attach, load_deltas
from diablo_ds.adapter.storage import AdapterConfig, save_adapter
from diablo_ds.adapter.targets import DEFAULT_TARGETS, select_targets
from diablo_ds.conversion.merging.merge import Merged, merge_adapter
from diablo_ds.conversion.merging.options import MergeOptions
from diablo_ds.model.finding import fingerprint

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_OWN_SHAPE = {
    "gpt_neox": {"hidden_dropout": 0.0, "attention_dropout": 0.0},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
}
NUM_BLOCKS = 4
TOKENS = torch.arange(12).view(2, 6) + 3


class Case(NamedTuple):
    """A base on disk, an adapter of it on disk, and the deltas."""

    base: Path
    adapter: Path
    deltas: dict[str, Tensor]
    num_blocks: dict[str, int]

    def merge(self, output: Path, **options: Any) -> Merged:
        """Merge as the command does."""
        return merge_adapter(MergeOptions(adapter=self.adapter, output=output, **options))

    def unmerged_logits(self) -> Tensor:
        """Logits of the base with its deltas attached, in fp32."""
        model = load(self.base)
        attach(model, self.num_blocks)
        load_deltas(model, self.deltas)
        return logits(model)


def build(family: str, **changes: Any) -> Any:
    """Build a random causal LM of a family in fp32."""
    torch.manual_seed(0)
    values = SHAPE | _OWN_SHAPE.get(family, {}) | changes
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values)).float()


def make_case(
    folder: Path,
    family: str = "llama",
    *,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
    targets: tuple[str, ...] = (),
    scale: float = 0.1,
    num_blocks: int = NUM_BLOCKS,
    **changes: Any,
) -> Case:
    """Save a tiny base and a random adapter of its default targets."""
    model = build(family, **changes).to(dtype)
    model.save_pretrained(folder / "base", max_shard_size=max_shard_size)
    chosen = select_targets(model, targets or DEFAULT_TARGETS.get(family, ("q_proj",)))
    return save_case(folder, chosen, num_blocks, scale)


def save_case(folder: Path, layers: Any, num_blocks: int, scale: float = 0.1) -> Case:
    """Save a random adapter for layers of the base in ``folder / "base"``."""
    generator = torch.Generator().manual_seed(1)
    deltas = {
        f"{name}.delta": scale
        * torch.randn(
            num_blocks,
            layer.in_features // num_blocks,
            layer.out_features // num_blocks,
            generator=generator,
        )
        for name, layer in layers.items()
    }
    counts = dict.fromkeys(layers, num_blocks)
    base = folder / "base"
    save_adapter(folder / "adapter", deltas, AdapterConfig(str(base), fingerprint(base), counts))
    return Case(base, folder / "adapter", deltas, counts)


def load(folder: Path, **options: Any) -> Any:
    """Load a model as anybody does, without this package; fp32 unless told."""
    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **options})


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """Return the logits of some tokens, ``[batch, seq, vocab]``."""
    result: Tensor = model.eval()(input_ids=TOKENS, use_cache=False).logits
    return result
