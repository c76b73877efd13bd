"""What the specs of one process share: base model, tokenizer, data, and what is decided by them."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from benchmarks.quality.data import Parts, Sources, write_parts
from benchmarks.quality.examples import StudyData, data_settings, load_study_data
from benchmarks.quality.spec import TARGETS, Spec
from diablo_ds.config.choices import DS_CONFIGS
from diablo_ds.config.run import RunConfig
from diablo_ds.data.batch_source import BatchSource
from diablo_ds.data.batches import Dealer
from diablo_ds.data.text.tokenization import Tokenizer, load_tokenizer
from diablo_ds.errors import UserError
from diablo_ds.model.base import Base, keep_apart, read_base
from diablo_ds.model.finding import find_model
from diablo_ds.model.separation import Separation
from diablo_ds.training.building import Design, design_model, load_model
from diablo_ds.training.inputs import padding_id
from diablo_ds.training.machine import look_at_machines
from diablo_ds.training.resolution import resolve_run
from diablo_ds.zero.ds_config import load_ds_config

DS_CONFIG = DS_CONFIGS / "zero0.json"


class Setup(NamedTuple):
    """What is decided ahead of a training, and what it is given."""

    base: Base
    tokenizer: Tokenizer
    study: StudyData
    design: Design
    """Of a DiaBlo run with the spec's settings, as `diablo-ds train` designs it."""
    separation: Separation
    """How examples of a micro batch are kept apart."""

    @property
    def pad_id(self) -> int:
        """Token for padding."""
        return padding_id(self.tokenizer, self.base.vocab_size)

    def batches(self) -> BatchSource:
        """Return the training data in micro batches."""
        run_config, separation = self.design.run_config, self.separation
        dealer = Dealer(run_config, self.pad_id, 0, 1, separation.mask, separation.equal_lengths)
        return BatchSource(self.study.train, run_config, dealer)


class Shared:
    """What specs share: each thing is made when it is first asked for, and kept.

    Args:
        sources: where the data come from.
        device: where models are.
        micro_batch_tokens: tokens of a forward, padding included.
    """

    def __init__(self, sources: Sources, device: torch.device, micro_batch_tokens: int) -> None:
        self.sources, self.device = sources, device
        self.micro_batch_tokens = micro_batch_tokens
        self._kept: dict[Any, Any] = {}
        self._temporary = contextlib.ExitStack()

    def keep(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what was made under a key; make it, if nothing was."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def parts(self, kind: str) -> Parts:
        """Return the files of a kind of data."""

        def write() -> Parts:
            folder = self.sources.cache_folder
            if not folder:
                folder = self._temporary.enter_context(tempfile.TemporaryDirectory())
            return write_parts(self.sources, kind, Path(folder))

        parts: Parts = self.keep(("parts", kind), write)
        return parts

    def setup(self, spec: Spec) -> Setup:
        """Decide what `diablo-ds train` decides ahead of a run.

        Raises:
            UserError: if the spec does not fit the model or the data.
        """
        base: Base = self.keep(("base", spec.model), lambda: read_base(find_model(spec.model)))
        tokenizer = self.keep(("tokenizer", spec.model), lambda: load_tokenizer(base.folder))
        study = self.keep(
            ("data", spec.model, spec.data, spec.max_length),
            lambda: load_study_data(
                spec.data, self.parts(spec.data), spec.max_length, tokenizer, base.vocab_size
            ),
        )
        _check_amounts(spec, study)
        given = self.run_config(spec, len(study.train))
        machines = self.keep(
            ("machines", spec.model, spec.precision),
            lambda: look_at_machines(given, base.shapes, self.device),
        )
        policy = load_ds_config(DS_CONFIG)
        of = ("separation", spec.model, spec.precision, spec.max_length, spec.global_batch)
        resolution = resolve_run(
            given,
            machines,
            base.shapes,
            policy=policy,
            try_apart=lambda run: self.keep(of, lambda: keep_apart(base, run, asked="auto")),
        )
        run_config = resolution.run_config
        design = design_model(run_config, base.shapes, policy, DS_CONFIG, self.device.type)
        return Setup(base, tokenizer, study, design, resolution.separation)

    def run_config(self, spec: Spec, num_train: int) -> RunConfig:
        """Return the run config of a spec; a DiaBlo run with it trains the same.

        Args:
            spec: the spec.
            num_train: training examples that there are.
        """
        return RunConfig(
            model=spec.model,
            num_blocks=spec.num_blocks if spec.method == "diablo" else "1",
            targets=TARGETS[spec.targets],
            delta_path=spec.delta_path,
            micro_batch_tokens=self.micro_batch_tokens,
            global_batch=spec.global_batch,
            num_epochs=spec.num_examples / num_train,
            learning_rate=spec.rate,
            schedule=cast("Any", spec.schedule),
            warmup_steps=spec.warmup_steps,
            weight_decay=spec.weight_decay,
            max_grad_norm=spec.max_grad_norm,
            precision=spec.precision,
            compile="off",  # PEFT's layers are not compiled either
            max_length=spec.max_length,
            seed=spec.seed,
            **data_settings(spec.data, self.parts(spec.data)),
        )

    def new_model(self, spec: Spec, setup: Setup) -> Any:
        """Return a copy of the base model, so that no training sees another's weights."""
        model = self.keep(
            ("model", spec.model, spec.precision),
            lambda: load_model(setup.design, setup.base).to(self.device),
        )
        return copy.deepcopy(model)


def _check_amounts(spec: Spec, study: StudyData) -> None:
    if spec.num_held_out > len(study.heldout):
        raise UserError(
            f"num_held_out must be at most {len(study.heldout)}, the held-out examples of at most "
            f"{spec.max_length} tokens; got num_held_out={spec.num_held_out}"
        )
    if spec.data == "commonsense" and spec.num_questions > spec.num_held_out:
        raise UserError(
            "num_questions of commonsense are among the held-out examples; got "
            f"num_questions={spec.num_questions}, num_held_out={spec.num_held_out}"
        )
