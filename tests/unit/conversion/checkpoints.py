"""Base models with a random adapter, and the same merged, by means of their own."""

from __future__ import annotations

import torch
from safetensors.torch import load_file, save_file

from diablo_ds.adapter.storage import AdapterConfig, save_adapter
from diablo_ds.adapter.targets import resolve_num_blocks, select_targets
from diablo_ds.model.finding import fingerprint
from tests.tiny import build_model, byte_tokenizer


def random_deltas(model, num_blocks="4", targets=(), *, scale=0.05, seed=1):
    """Return block counts by layer, and random deltas by parameter name."""
    chosen = select_targets(model, targets, model_type=model.config.model_type)
    counts = resolve_num_blocks(chosen, num_blocks)
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for name, n in counts.items():
        widths = chosen[name].in_features // n, chosen[name].out_features // n
        deltas[f"{name}.delta"] = torch.randn(n, *widths, generator=generator) * scale
    return counts, deltas


def save_base(folder, dtype=torch.float32, family="llama", **changes):
    """Save a tiny model in a dtype, with its tokenizer; return the model."""
    model = build_model(family, **changes).to(dtype)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model


def save_random_adapter(folder, base, model, num_blocks="4", targets=(), **options):
    """Save a random adapter of a base folder; return its deltas."""
    counts, deltas = random_deltas(model, num_blocks, targets, **options)
    save_adapter(folder, deltas, AdapterConfig(str(base), fingerprint(base), counts))
    return deltas


@torch.no_grad()
def add_dense(model, deltas):
    """Add deltas to a model's weights as dense matrices: summed in fp32, rounded once."""
    for name, delta in deltas.items():
        weight = model.get_submodule(name.removesuffix(".delta")).weight
        weight.copy_(weight.float() + torch.block_diag(*delta).t())


def save_merged(folder, model, deltas, dtype=None):
    """Save what a model becomes by its deltas, with its tokenizer; the model is changed."""
    add_dense(model if dtype is None else model.to(dtype), deltas)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def edit_tensors(name, change):
    """Return a function that changes the tensors of the model ``name`` in a folder."""

    def edit(folder):
        path = folder / name / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return edit
