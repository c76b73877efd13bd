"""Start of a run: join the ranks, prepare, load the model, hand it to DeepSpeed."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from diablo_ds.adapter.attach import load_deltas
from diablo_ds.adapter.storage import AdapterConfig
from diablo_ds.config.run import RunConfig
from diablo_ds.data.batch_source import BatchSource
from diablo_ds.data.identity import DataIdentity
from diablo_ds.data.text.end_tokens import generation_config
from diablo_ds.data.training_batches import TrainingBatches
from diablo_ds.files.ownership import FolderOwner
from diablo_ds.model.architecture import decoder_layers
from diablo_ds.model.compilation import compile_layers, compile_loss
from diablo_ds.model.pretrained import hide_progress_bars
from diablo_ds.ranks import distributed
from diablo_ds.ranks.heartbeat import heart
from diablo_ds.ranks.live_line import shows_progress, terminal_columns
from diablo_ds.ranks.log import logger, set_up_logging
from diablo_ds.trackers.process import check_packages
from diablo_ds.training.building import attach_deltas, load_model
from diablo_ds.training.checkpoint import Checkpoint
from diablo_ds.training.evaluations import Evaluations
from diablo_ds.training.memory_choice import with_recomputation
from diablo_ds.training.memory_trial import fit_by_trial
from diablo_ds.training.preparing import Prepared, prepare_run
from diablo_ds.training.resuming import Position, find_position, own_folder
from diablo_ds.training.run_folder import record_run
from diablo_ds.training.start_record import record_start
from diablo_ds.training.start_screen import shown_example, start_screen
from diablo_ds.training.task_inputs import TaskInputs
from diablo_ds.zero.engine import Engine, EngineState
from diablo_ds.zero.joining import import_deepspeed, init_process_group
from diablo_ds.zero.offload_folders import private_offload
from diablo_ds.zero.start import start_engine


@dataclass
class Run:
    """All parts of a run, ready to train."""

    run_config: RunConfig
    folder: Path
    engine: Engine
    adapter: AdapterConfig
    train_batches: TrainingBatches
    heldout_batches: BatchSource | None
    data: DataIdentity
    num_steps: int
    base_folder: Path
    """The base files."""
    ds_config_file: Path
    """As it was given."""
    generation_config: dict[str, Any]
    """What generates with the adapter needs to know: above all, where to stop."""
    tasks: TaskInputs | None = None
    """What the model is asked while it is trained."""
    start_step: int = 0
    has_checkpoint: bool = False
    """Whether the run folder has the checkpoint of the start step."""
    evaluations: Evaluations = field(default_factory=Evaluations)
    """What is remembered of the held-out evaluations before the start."""
    has_other_heldout: bool = False
    """Whether the held-out data changed, so that earlier losses cannot be compared."""
    base_dropout: Mapping[str, float] = field(default_factory=dict)
    """Dropout rates of the base that act, by where."""
    owner: FolderOwner | None = None
    """Of the run folder, on rank 0."""

    def check_owner(self) -> None:
        """Raise UserError on rank 0 where the run folder is no longer this process's."""
        if self.owner is not None:
            self.owner.check()


def start_run(
    run_config: RunConfig,
    ds_config_file: Path,
    resources: contextlib.ExitStack,
    *,
    given_file: Path | None = None,
) -> Run:
    """Check every input, then load the model and hand it to DeepSpeed.

    Collective: every rank must call this.

    Args:
        run_config: the run config.
        ds_config_file: DeepSpeed config file.
        resources: holds the run folder until it is closed.
        given_file: the file of settings that a person gave.

    Raises:
        UserError: if a setting, file or folder is wrong; before the model is loaded.
    """
    heart.beat("importing DeepSpeed")
    import_deepspeed()
    heart.beat("joining the other ranks")
    device = init_process_group()
    set_up_logging(is_main_process=distributed.is_main_process())
    hide_progress_bars()
    distributed.on_main_process(lambda: check_packages(run_config.report_to))
    prepared = prepare_run(run_config, ds_config_file, device)
    for line in prepared.resolution.warnings:
        logger.warning(line)
    if prepared.design.fit is not None:
        logger.info(prepared.design.fit.text())
    run_config, inputs = prepared.run_config, prepared.inputs
    folder, owner = own_folder(prepared, resources)
    heart.tell_run_folder(folder)
    resources.enter_context(private_offload(prepared.design.ds_config, folder))
    position = find_position(prepared, folder)
    plan = record_start(prepared, position, folder, given_file)
    if prepared.initial is not None:
        logger.info(f"The run {prepared.initial.describe()}")
    if distributed.is_main_process():
        if position.changes:
            logger.info(position.describe_changes(run_config, folder))
        columns = terminal_columns() if shows_progress() else 0
        logger.info(start_screen(prepared, position, folder, plan, columns))
    if inputs.first_example:
        logger.info(shown_example(inputs.first_example))
    engine = _build(prepared, _state_to_load(prepared, position.checkpoint), device)
    if prepared.resolution.to_try:
        run_config = _fit_by_trial(engine, prepared, position, folder)
    return Run(
        run_config=run_config,
        folder=folder,
        engine=engine,
        adapter=prepared.adapter,
        train_batches=position.batches,
        heldout_batches=inputs.heldout,
        data=position.data,
        num_steps=position.num_steps,
        base_folder=prepared.base.folder,
        ds_config_file=ds_config_file,
        generation_config=generation_config(inputs.ends, prepared.base.folder),
        tasks=prepared.tasks,
        start_step=position.start_step,
        has_checkpoint=position.checkpoint is not None,
        evaluations=position.evaluations,
        has_other_heldout=position.has_other_heldout,
        base_dropout=prepared.resolution.base_dropout,
        owner=owner,
    )


def _state_to_load(prepared: Prepared, checkpoint: Checkpoint | None) -> EngineState | None:
    """Return the state from a checkpoint or of the initial adapter; None for new deltas."""
    if checkpoint is not None:
        return EngineState(checkpoint.state, checkpoint.num_optimizer_steps, checkpoint.loss_scaler)
    return None if prepared.initial is None else prepared.initial.engine_state()


def _build(prepared: Prepared, state: EngineState | None, device: torch.device) -> Engine:
    """Load the model, and hand it with its deltas, new ones or those of a state, to DeepSpeed."""
    run_config, design = prepared.run_config, prepared.design
    heart.beat("loading the model")
    if not shows_progress():  # a terminal shows how far it is
        logger.info(f"Loading {prepared.base.folder} in {run_config.precision} ...")
    built = attach_deltas(design, load_model(design, prepared.base), device)
    if state is not None:
        load_deltas(built.model, {name: d["master"] for name, d in state.deltas.items()})
    heart.beat("starting DeepSpeed")
    engine = start_engine(built.model, built.deltas, run_config, design.ds_config)
    if state is not None:
        engine.restore_state(state)
    logger.info(engine.placement_text())
    if run_config.compile == "on":
        compile_layers(built.model)
        compile_loss(built.model)
    return engine


def _fit_by_trial(
    engine: Engine, prepared: Prepared, position: Position, folder: Path
) -> RunConfig:
    """Try what a plan chose; return the run config, which is recorded where another is needed."""
    choices = prepared.resolution.to_try
    recomputation = fit_by_trial(engine, position.batches.largest(), choices)
    if recomputation == choices[0].recomputation:
        return prepared.run_config
    num_layers = len(decoder_layers(prepared.base.shapes))
    run_config = with_recomputation(prepared.run_config, recomputation, num_layers)

    def record() -> None:
        parent = prepared.adapter.parent
        record_run(folder, run_config, ds_config=prepared.policy, parent=parent)

    distributed.on_main_process(record)
    return run_config
