"""Content of valid files that readers know, for those that damage it."""

from __future__ import annotations

from typing import Any

EARLY_ADAPTER: dict[str, Any] = {
    "base_model": "m",
    "base_fingerprint": "f",
    "num_blocks": {"a.q_proj": 4},
    "dropout": 0.0,
    "format": 1,
}
"""Config of an adapter as the first version wrote it."""
MANIFEST: dict[str, Any] = {
    "tokenizer": {"name": "t", "fingerprint": "f", "probe": [1, 2]},
    **{key: [{"name": "n", "sha256": "s"}] for key in ("sources", "val_sources", "excluded")},
    "rows_in": {"n": 3},
    "rows_left_out": {
        **dict.fromkeys(("bad", "too_long", "duplicates", "not_in_mix"), 0),
        "in_tests": {},
    },
    "licences": ["l"],
    "parts": {
        "train": {
            **dict.fromkeys(("rows", "cut", "tokens", "target_tokens", "longest"), 3),
            "largest_id": 9,
            "length_histogram": {"bin_width": 1, "counts": [3]},
        }
    },
}
"""Of a prepared dataset."""
