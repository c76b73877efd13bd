"""The base model as a run sees it before it loads any weights; the same in a dry run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from diablo_ds.config.run import RunConfig
from diablo_ds.model.architecture import DTYPES, build_meta_model, check_runs, load_model_config
from diablo_ds.model.attention import takes_lengths
from diablo_ds.model.checkpoint_contents import check_contents
from diablo_ds.model.separation import Separation, prove_separation
from diablo_ds.ranks import distributed
from diablo_ds.ranks.log import logger


@dataclass(frozen=True)
class Base:
    """A base model without its weights."""

    folder: Path
    model_config: Any
    """Its Hugging Face config."""
    shapes: Any
    """The model on the meta device."""

    @property
    def vocab_size(self) -> int:
        """Token ids that its embedding knows."""
        return int(self.shapes.get_input_embeddings().num_embeddings)


def read_base(folder: Path) -> Base:
    """Read a base model's config and compare it with the files.

    Collective, where the ranks have joined: every rank must call this.

    Args:
        folder: with config.json and safetensors files.

    Raises:
        UserError: if the config or the files cannot be trained on.
    """
    model_config = distributed.on_every_rank(lambda: load_model_config(folder))
    shapes = distributed.on_every_rank(lambda: build_meta_model(model_config))
    distributed.on_every_rank(lambda: check_runs(shapes))
    distributed.on_main_process(lambda: check_contents(model_config, folder))
    return Base(folder, model_config, shapes)


class Apart(NamedTuple):
    """How examples are kept apart, and the attention that does it."""

    separation: Separation
    attention: str
    reason: str = ""
    """Why it is not the run config's; empty where it is."""


def keep_apart(base: Base, run_config: RunConfig, *, asked: str) -> Apart:
    """Try how examples are kept apart; it may take another attention than was chosen.

    Collective, where the ranks have joined: every rank must call this.

    Args:
        base: the base model.
        run_config: the run config, with micro batch, precision and attention.
        asked: the attention that the user asked for, "auto" for none.

    Raises:
        UserError: if packing or padding would change losses.
    """

    def prove() -> Apart:
        try:
            return Apart(_prove(base, run_config, run_config.attention), run_config.attention)
        except ValueError as error:
            if asked != "auto" or not takes_lengths(run_config.attention):
                raise
            reason = str(error).partition("; use ")[0]
        # Kernels of variable length take no mask and lack soft caps; others do not.
        other: str = base.shapes.config.get_text_config()._attn_implementation or "eager"
        return Apart(_prove(base, run_config, other), other, reason)

    apart = distributed.on_main_process(prove)
    if apart.separation.text:
        logger.info(apart.separation.text)
    return apart


def _prove(base: Base, run_config: RunConfig, attention: str) -> Separation:
    return prove_separation(base.model_config, run_config, attention, DTYPES[run_config.precision])
