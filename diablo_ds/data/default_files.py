"""The data that come with the program: samples of public corpora, one of them the default data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from diablo_ds.config.run import RunConfig

SAMPLES_FOLDER = Path(__file__).parent / "corpora" / "samples"


def with_default_files(run_config: RunConfig) -> RunConfig:
    """Return the run config with the shipped samples in place of the default data."""
    if not run_config.has_default_data:
        return run_config
    folder = SAMPLES_FOLDER / "gsm8k"
    return replace(
        run_config,
        data=(str(folder / "train.jsonl"),),
        heldout_data=(str(folder / "heldout.jsonl"),),
        corpus="math",
    )
