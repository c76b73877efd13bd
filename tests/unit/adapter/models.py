"""Tiny models with deltas."""

from __future__ import annotations

from diablo_ds.adapter.attach import attach
from diablo_ds.adapter.targets import resolve_num_blocks, select_targets


def attach_to(model, num_blocks="4", targets=(), **options):
    chosen = select_targets(
        model, targets, model_type=model.config.model_type, layers=options.pop("layers", "")
    )
    return attach(model, resolve_num_blocks(chosen, num_blocks), **options)
