"""How large batches may be, from the memory that is free and what a token takes of it."""

from __future__ import annotations

import torch

from diablo_ds.model.batch_cache import cache_bytes
from diablo_ds.model.batch_rules import BatchLimits
from diablo_ds.model.forwards import Forwards
from diablo_ds.ranks import distributed
from diablo_ds.ranks.free_memory import free_device_bytes

CACHE_SHARE, LOGITS_SHARE, FORWARD_SHARE = 0.5, 0.1, 0.1
"""Shares of the free memory for the cache, for logits and for what a layer computes. While rows
join a batch their part of the cache is there twice, hence a rest."""
_PROBE_TOKENS = 8
_LOGITS_COPIES = 3
"""Of fp32 logits at once: cast, exponentiated, and those of the model's own dtype."""
MOST_ROWS = {"cpu": 64, "cuda": 256}
MOST_FORWARD_TOKENS = {"cpu": 512, "cuda": 32768}
"""By device type. Larger forwards have more padding and do not fit a CPU's caches: a question of
HellaSwag with SmolLM2-135M in fp32 takes 0.67 s of a core with 512 tokens, 0.72 s with 1024 and
0.99 s with 4096. The number for GPUs is a guess, as are the rows."""


def measure_limits(forwards: Forwards) -> BatchLimits:
    """Return how large batches may be. Collective where the ranks are in step.

    What a token takes of the cache is measured on a forward of a few tokens.
    """
    device_type = "cpu" if forwards.device.type == "cpu" else "cuda"
    config = forwards.module.config.get_text_config()
    ids = torch.zeros(1, _PROBE_TOKENS, dtype=torch.int64, device=forwards.device)
    outputs = forwards(ids, mask=torch.ones_like(ids), keep=1)
    vocab_size, element = outputs.logits.shape[-1], outputs.logits.element_size()
    has_layers = hasattr(outputs.cache, "layers")
    token_bytes = cache_bytes(outputs.cache) / _PROBE_TOKENS if has_layers else 0.0
    free = free_device_bytes(forwards.device)
    if device_type == "cpu":
        free //= distributed.local_world_size()
    inner = max(int(getattr(config, "intermediate_size", 0) or 0), 4 * int(config.hidden_size))
    layer_bytes = (3 * inner + 8 * int(config.hidden_size)) * element  # of a token
    logit_rows = max(1, int(free * LOGITS_SHARE / (vocab_size * 4 * _LOGITS_COPIES)))
    forward_tokens = min(
        MOST_FORWARD_TOKENS[device_type], max(1, int(free * FORWARD_SHARE / layer_bytes))
    )
    if not forwards.keeps_logits:
        forward_tokens = min(forward_tokens, logit_rows)
    return BatchLimits(
        cache_tokens=max(1, int(free * CACHE_SHARE / max(token_bytes, 1.0))),
        forward_tokens=forward_tokens,
        logit_rows=logit_rows,
        rows=MOST_ROWS[device_type],
    )
