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
PREDICTION = {"model": "m", "task": "t", "kind": "choice", "id": "1", "sample": 0}
PREDICTION |= {"scores": {"a": 1.0}}
"""A line of an evaluation's answers."""
EVALUATION: dict[str, Any] = {
    "format": 1,
    "models": {"m": {"kind": "base"}},
    "tasks": {"t": {"file": "f", "version": 1}},
    "settings": {"task": ["t"]},
    "working_folder": "/",
    "precision": "bf16",
    "answers": {"m": {"t": 3}},
}
"""What an evaluation asks whom."""
_SCORE = {"model": "m", "task": "t", "metric": "accuracy", "score": 0.5, "interval": [0.25, 0.75]}
RESULTS: dict[str, Any] = {
    "results": [_SCORE | {"n": 8}, _SCORE | {"n": 8, "score": None, "num_unjudged": 2}],
    "comparisons": [
        {"task": "t", "metric": "accuracy", "models": ["m", "o"], "difference": 0.5, "n": 8}
        | {"interval": [0.0, None], "p": 0.5, "test": "sign"}
    ],
    "settings": {"task": ["t"]},
    "run": {"models": {"m": "/m"}},
}
"""The scores of an evaluation."""
RESULT = {
    "name": "r",
    "values": {"learning-rate": "0.1"},
    "status": "failed",
    "exit_code": 1,
    "keeps_best": False,
}
"""A run in the record of a sweep."""
YAML = b"""learning-rate: 1e-4
targets: [q_proj, 'v_proj']
ds_config:
  zero_optimization: {stage: 2, overlap_comm: true}
"""
"""A run config."""
