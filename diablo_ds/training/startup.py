"""Start-up: check every input, load the model, attach deltas, hand all to DeepSpeed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diablo_ds.adapter.attach import attach, load_deltas
from diablo_ds.adapter.storage import AdapterConfig
from diablo_ds.adapter.targets import resolve_num_blocks, select_targets
from diablo_ds.config.batch_resolution import resolve_batch
from diablo_ds.config.run import RunConfig
from diablo_ds.config.schedule import describe_warmup
from diablo_ds.data.batches import BatchSource, Dealer
from diablo_ds.data.identity import DataIdentity
from diablo_ds.data.loading import load_data, load_heldout
from diablo_ds.data.streaming import StreamSource, open_stream
from diablo_ds.data.text.end_tokens import EndTokens, find_end_tokens, generation_config
from diablo_ds.data.text.tokenization import Tokenizer, load_tokenizer
from diablo_ds.files.ownership import FolderOwner
from diablo_ds.model.architecture import DTYPES, measure_base, text_decoder_name
from diablo_ds.model.base import Base, keep_apart, read_base
from diablo_ds.model.base_dropout import switch_off_dropout
from diablo_ds.model.compilation import compile_layers, compile_loss, set_up_cache
from diablo_ds.model.finding import find_model, fingerprint
from diablo_ds.model.loss_head import install_loss_head
from diablo_ds.model.pretrained import hide_progress_bars
from diablo_ds.model.recomputation import choose_recomputation, recompute_layers
from diablo_ds.model.separation import Separation
from diablo_ds.planning.budget import fit_memory
from diablo_ds.ranks import distributed
from diablo_ds.ranks.heartbeat import heart
from diablo_ds.ranks.log import logger, set_up_logging
from diablo_ds.ranks.nodes import measure_nodes
from diablo_ds.ranks.terminal import shows_progress
from diablo_ds.training.agreement import check_same_model
from diablo_ds.training.machine import look_at_machines
from diablo_ds.training.resolution import resolve_run
from diablo_ds.training.resuming import find_resume_point, own_folder, place_data
from diablo_ds.training.run_folder import choose_run_folder, recorded_config
from diablo_ds.zero import ds_config, support
from diablo_ds.zero.engine import Engine, EngineState
from diablo_ds.zero.joining import init_process_group
from diablo_ds.zero.loading import load_base
from diablo_ds.zero.start import start_engine


@dataclass(frozen=True)
class Inputs:
    """The data of a run."""

    train: BatchSource | StreamSource
    heldout: BatchSource | None
    ends: EndTokens

    def describe(self, config: RunConfig, world_size: int, num_steps: int | None = None) -> str:
        """Return data counts and the batch equation as lines of text.

        Args:
            config: the run config.
            world_size: number of ranks.
            num_steps: optimizer steps of the run; by default those of a new one.
        """
        num_steps = self.num_steps(config) if num_steps is None else num_steps
        lines = [f"Training data: {self.train.describe()}"]
        if self.heldout is not None:
            lines.append(f"Held-out data: {self.heldout.describe()}")
        if text := self.ends.describe():
            lines.append(text)
        lines.append(f"{config.batch_equation(world_size)}; {num_steps} steps")
        if text := describe_warmup(num_steps, config.warmup_steps):
            lines.append(text)
        return "\n".join(lines)

    def num_steps(self, config: RunConfig) -> int:
        """Return the optimizer steps of the run."""
        if isinstance(self.train, StreamSource):
            return config.max_steps
        return config.num_steps(len(self.train))


@dataclass
class Run:
    """All parts of a run, ready to train."""

    config: RunConfig
    folder: Path
    engine: Engine
    adapter: AdapterConfig
    train_batches: BatchSource | StreamSource
    heldout_batches: BatchSource | None
    data: DataIdentity
    num_steps: int
    generation_config: dict[str, Any]
    """What generates with the adapter needs to know: above all, where to stop."""
    start_step: int = 0
    base_dropout: Mapping[str, float] = field(default_factory=dict)
    """Dropout rates of the base that act, by where."""
    owner: FolderOwner | None = None
    """Of the run folder, on rank 0."""

    def check_owner(self) -> None:
        """Raise UserError on rank 0 where the run folder is no longer this process's."""
        if self.owner is not None:
            self.owner.check()


def start_run(config: RunConfig, ds_config_file: Path, resources: contextlib.ExitStack) -> Run:
    """Check every input, then load the model and hand it to DeepSpeed.

    Collective: every rank must call this.

    Args:
        config: the run config.
        ds_config_file: DeepSpeed config file.
        resources: holds the run folder until it is closed.

    Raises:
        UserError: if a setting, file or folder is wrong; before the model is loaded.
    """
    heart.beat("joining the other ranks")
    device = init_process_group(shared_folders=config.shared_folders)
    world_size = distributed.world_size()
    set_up_logging(is_main_process=distributed.is_main_process())
    if not (distributed.is_main_process() and shows_progress()):
        hide_progress_bars()
    policy = distributed.on_every_rank(lambda: ds_config.load_ds_config(ds_config_file))
    given = {**dataclasses.asdict(config), "DeepSpeed config": json.dumps(policy)}
    distributed.check_same(given)
    recorded = distributed.on_main_process(lambda: recorded_config(config))
    resolve_batch(config, world_size, recorded=recorded, policy=policy)
    support.check_precision(config.precision, device.type, ds_config.zero_stage(policy))
    distributed.on_every_rank(
        lambda: support.check_offload(policy, shared_folders=config.shared_folders)
    )
    support.check_quantized(policy, device.type)
    distributed.on_main_process(lambda: choose_run_folder(config))  # before anything takes time
    model_folder = distributed.on_each_host_first(
        lambda: find_model(config.model, config.cache_folder, shared=config.shared_folders)
    )
    heart.beat("checking the model")
    check_same_model(model_folder)
    base = read_base(model_folder)
    shapes = base.shapes
    machines = look_at_machines(config, shapes, device)
    resolution = resolve_run(config, machines, shapes, recorded=recorded, policy=policy)
    for line in resolution.lines:
        logger.info(f"Chosen: {line}")
    for line in resolution.warnings:
        logger.warning(line)
    if resolution.config.compile == "on":
        distributed.on_every_rank(lambda: set_up_cache(resolution.config))
    config, separation = keep_apart(base, resolution.config, asked=config.attention)
    heart.beat("reading data")
    inputs = distributed.on_every_rank(lambda: load_inputs(config, base, separation))
    distributed.check_same({"data": inputs.describe(config, world_size)}, "host")
    complete = complete_ds_config(policy, config, shapes, ds_config_file)
    adapter_config = describe_adapter(shapes, config, model_folder)
    recomputation = choose_recomputation(config, shapes)
    if config.memory_budget:
        fit = distributed.on_main_process(
            lambda: fit_memory(config, base.config, complete, world_size, device.type)
        )
        logger.info(fit.text())
        recomputation = fit.recomputation
    folder, owner = own_folder(config, resources)
    checkpoint = find_resume_point(config, folder, adapter_config, shapes)
    train, data, num_steps = place_data(config, inputs.train, inputs.heldout, checkpoint)
    logger.info(inputs.describe(config, world_size, num_steps))

    heart.beat("loading the model")
    logger.info(f"Loading {model_folder} in {config.precision} ...")
    stage = ds_config.zero_stage(complete)
    model = load_base(
        model_folder,
        config.precision,
        complete if stage == 3 else None,
        attention=config.attention,
    )
    if config.base_dropout is False:
        switch_off_dropout(model)
    deltas = attach(
        model,
        adapter_config.num_blocks,
        dropout=config.dropout,
        delta_path=config.delta_path,
        device=device,
    )
    recompute_layers(model, recomputation, reentrant=config.reentrant)
    install_loss_head(model, shapes)
    if checkpoint is not None:
        load_deltas(model, checkpoint.masters)
    heart.beat("starting DeepSpeed")
    engine = start_engine(model, deltas, config, complete)
    if checkpoint is not None:
        engine.restore_state(
            EngineState(checkpoint.state, checkpoint.num_optimizer_steps, checkpoint.loss_scaler)
        )
    logger.info(engine.placement_table())
    if config.compile == "on":
        compile_layers(model)
        compile_loss(model)

    return Run(
        config=config,
        folder=folder,
        engine=engine,
        adapter=adapter_config,
        train_batches=train,
        heldout_batches=inputs.heldout,
        data=data,
        num_steps=num_steps,
        generation_config=generation_config(inputs.ends, model_folder),
        start_step=0 if checkpoint is None else checkpoint.step,
        base_dropout=resolution.base_dropout,
        owner=owner,
    )


def load_inputs(config: RunConfig, base: Base, separation: Separation) -> Inputs:
    """Read the tokenizer and the data.

    Args:
        config: the run config, without open values.
        base: the base model.
        separation: how examples are kept apart.

    Raises:
        UserError: if one of them is missing or wrong.
    """
    tokenizer = load_tokenizer(base.folder)
    dealer = Dealer(
        config,
        padding_id(tokenizer, base.vocab_size),
        distributed.rank(),
        distributed.world_size(),
        separation.mask,
        separation.equal_lengths,
    )
    if config.stream:
        stream = open_stream(config, tokenizer, dealer, base.vocab_size)
        heldout = load_heldout(config, tokenizer, base.vocab_size)
        return Inputs(
            stream,
            None if heldout is None else BatchSource(heldout, config, dealer),
            find_end_tokens(tokenizer, frozenset(stream.ends), base.folder, base.config),
        )
    train, heldout = load_data(config, tokenizer, base.vocab_size)
    return Inputs(
        BatchSource(train, config, dealer),
        None if heldout is None else BatchSource(heldout, config, dealer),
        find_end_tokens(tokenizer, train.table.last_targets(), base.folder, base.config),
    )


def padding_id(tokenizer: Tokenizer, vocab_size: int) -> int:
    """Return a token for padding that the model knows; which one changes no number.

    A pad token that was added to a tokenizer, but not to the model, is not one of them.

    Args:
        tokenizer: the tokenizer.
        vocab_size: token ids that the model knows.
    """
    known = [token for token in (tokenizer.pad_id, tokenizer.end_id) if 0 <= token < vocab_size]
    return known[0] if known else 0


def complete_ds_config(
    policy: dict[str, Any], config: RunConfig, shapes: Any, source: Path
) -> dict[str, Any]:
    """Return the config that DeepSpeed gets. Collective, where the ranks have joined.

    Args:
        policy: the DeepSpeed config file's values.
        config: the run config.
        shapes: the base model on the meta device.
        source: the file.

    Raises:
        UserError: if the file and the run config disagree.
    """
    return ds_config.complete_ds_config(
        policy,
        config,
        world_size=distributed.world_size(),
        base=measure_base(shapes, DTYPES[config.precision]),
        nodes=measure_nodes(),
        source=str(source),
    )


def describe_adapter(model: Any, config: RunConfig, model_folder: Path) -> AdapterConfig:
    """Choose target layers and block counts.

    Raises:
        UserError: if a target matches nothing or a block count does not divide a layer.
    """
    targets = select_targets(
        model,
        config.targets,
        layers=config.layers,
        model_type=model.config.get_text_config().model_type,
        within=text_decoder_name(model),
    )
    return AdapterConfig(
        base_model=config.model,
        base_fingerprint=distributed.on_main_process(lambda: fingerprint(model_folder)),
        num_blocks=resolve_num_blocks(targets, config.num_blocks),
        dropout=config.dropout,
    )
