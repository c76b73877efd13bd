"""Training: the step, the loop, and what comes before and after. Reads from top to bottom."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from diablo_ds import adapter, distributed, ds_config, engine, placement
from diablo_ds.checkpoint import (
    Checkpoint,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from diablo_ds.config import RunConfig, differing_fields
from diablo_ds.data import BatchSource, Examples, MicroBatch, load_data
from diablo_ds.loss import causal_lm_loss, count_targets
from diablo_ds.metrics import Reporter, logger, peak_memory_bytes, plot_losses, set_up_logging
from diablo_ds.model import (
    enable_gradient_checkpointing,
    find_model,
    fingerprint,
    load_base,
    load_model_config,
    load_tokenizer,
    wants_gradient_checkpointing,
)
from diablo_ds.schedule import lr_factor

EVALS_PER_RUN = 4
"""Held-out evaluations and checkpoints in a run where the config leaves their interval open."""


class NonFiniteError(RuntimeError):
    """A loss or gradient norm was infinite or not a number; the run cannot go on."""


class StepResult(NamedTuple):
    """What one optimizer step did, the same on every rank."""

    loss: float
    """Mean loss per target token of the global batch, in nats, before the update."""
    grad_norm: float
    """Norm over all delta gradients, before clipping."""
    num_tokens: int
    """Tokens put through the model over all ranks, without padding."""


# --- one step ------------------------------------------------------------------------------------


def train_step(
    ds_engine: Any,
    deltas: Mapping[str, nn.Parameter],
    micro_batches: Sequence[MicroBatch],
    learning_rate: float,
) -> StepResult:
    """Update the deltas once.

    The loss is summed over target tokens and divided once, by their number in the global batch;
    DeepSpeed averages gradients over ranks, which the factor world size undoes.

    Collective: every rank must call this with the same number of micro batches.

    Raises:
        NonFiniteError: if the loss is not finite on some rank, before anything is updated, or the
            gradient norm is not finite, after it.
    """
    device = ds_engine.device
    num_targets = sum(int(count_targets(batch.labels)) for batch in micro_batches)
    num_tokens = sum(int(batch.attention_mask.sum()) for batch in micro_batches)
    counts = distributed.gather_floats([num_targets, num_tokens], device)
    global_targets, global_tokens = (int(sum(column)) for column in zip(*counts, strict=True))
    scale = distributed.world_size() / max(1, global_targets)

    loss_sum = torch.zeros((), device=device)
    with engine.one_gradient_reduction(ds_engine):
        for batch in micro_batches:
            batch = batch.to(device)
            logits = ds_engine(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask
            ).logits  # [micro_batch, seq, vocab]
            loss = causal_lm_loss(logits, batch.labels)  # [], a sum
            ds_engine.backward(loss * scale)
            loss_sum += loss.detach()
    loss_sums = [row[0] for row in distributed.gather_floats([float(loss_sum)], device)]
    _check_finite("loss", loss_sums)

    engine.set_learning_rate(ds_engine, learning_rate)
    grad_norm = (
        engine.plain_gradient_norm(deltas) if engine.has_plain_optimizer(ds_engine) else None
    )
    ds_engine.step()
    if grad_norm is None:
        grad_norm = float(ds_engine.get_global_grad_norm())
    if not ds_engine.fp16_enabled():  # there DeepSpeed skips the update and lowers the loss scale
        _check_finite("gradient norm", [grad_norm])
    return StepResult(sum(loss_sums) / max(1, global_targets), grad_norm, global_tokens)


def _check_finite(what: str, values: Sequence[float]) -> None:
    for rank, value in enumerate(values):
        if not math.isfinite(value):
            where = f" on rank {rank}" if len(values) > 1 else ""
            raise NonFiniteError(f"{what} must be finite; got {what}={value}{where}")


@torch.no_grad()
def evaluate(ds_engine: Any, micro_batches: Iterable[MicroBatch]) -> float:
    """Return the mean loss per target token over all ranks, in nats.

    Collective: every rank must call this with the same number of micro batches.
    """
    device = ds_engine.device
    ds_engine.eval()
    loss_sum, num_targets = torch.zeros((), device=device), 0
    for batch in micro_batches:
        num_targets += int(count_targets(batch.labels))
        batch = batch.to(device)
        logits = ds_engine(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        loss_sum += causal_lm_loss(logits, batch.labels)
    ds_engine.train()
    rows = distributed.gather_floats([float(loss_sum), num_targets], device)
    total_loss, total_targets = (sum(column) for column in zip(*rows, strict=True))
    return total_loss / max(1.0, total_targets)


# --- the run -------------------------------------------------------------------------------------


@dataclass
class Run:
    """All parts of a run, ready to train."""

    config: RunConfig
    folder: Path
    engine: Any
    deltas: dict[str, nn.Parameter]
    adapter: adapter.AdapterConfig
    train_batches: BatchSource
    heldout_batches: BatchSource | None
    expected_placement: list[placement.TensorPlacement]
    num_steps: int
    num_examples: int
    start_step: int = 0


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    folder: Path
    steps: int
    first_heldout_loss: float | None
    last_heldout_loss: float | None

    def text(self) -> str:
        """Return the closing lines for a person: results, places, what to try next."""
        lines = [f"Done: {self.steps} steps."]
        if self.last_heldout_loss is not None:
            first = "" if self.first_heldout_loss is None else f"from {self.first_heldout_loss:.4f} "
            lines[0] += f" Held-out loss {first}to {self.last_heldout_loss:.4f}."
        lines += [
            f"  adapter      {self.folder / 'adapter'}",
            f"  checkpoint   {self.folder / 'checkpoints' / f'step-{self.steps:06d}'}",
            f"  TensorBoard  {self.folder / 'tensorboard'}",
            f"  loss curve   {self.folder / 'loss.png'}",
            f"Next: diablo-ds inspect {self.folder / 'adapter'}",
            f"      tensorboard --logdir {self.folder / 'tensorboard'}",
        ]
        return "\n".join(lines)


def train(config: RunConfig, ds_config_file: Path) -> Summary:
    """Train from the run config and a DeepSpeed config file, resuming what the folder holds.

    Collective: every rank must call this.

    Raises:
        ValueError: if a setting, file or folder is wrong; the same on every rank.
        NonFiniteError: if the training diverges.
        OSError: if a checkpoint cannot be written; earlier ones are kept.
    """
    run = prepare(config, ds_config_file)
    is_main = distributed.is_main_process()
    reporter = Reporter(
        run.folder,
        config,
        num_steps=run.num_steps,
        start_step=run.start_step,
        enabled=is_main,
    )
    interval = max(1, -(-run.num_steps // EVALS_PER_RUN))
    eval_every, save_every = config.eval_every or interval, config.save_every or interval

    def report_heldout(step: int) -> None:
        if run.heldout_batches is not None:
            loss = evaluate(run.engine, run.heldout_batches.heldout())
            reporter.heldout(step, loss)
        _report_norms(run, reporter, step)

    try:
        if run.start_step == 0:
            report_heldout(0)
        for step in range(run.start_step, run.num_steps):
            _take_step(run, reporter, step)
            done = step + 1
            if step == run.start_step:
                _verify(run, "after the first step")
            if done % eval_every == 0 or done == run.num_steps:
                report_heldout(done)
            if done % save_every == 0 or done == run.num_steps:
                save(run, done)
        summary = _finish(run, reporter)
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}; {_last_checkpoint_text(run.folder)}") from None
    finally:
        reporter.close()
    return summary


def _take_step(run: Run, reporter: Reporter, step: int) -> None:
    config = run.config
    micro_batches = list(
        run.train_batches.train_step(
            step,
            accumulation_steps=config.accumulation_steps(distributed.world_size()),
            num_examples=run.num_examples,
            seed=config.seed,
        )
    )
    factor = lr_factor(
        config.schedule, step, num_steps=run.num_steps, warmup_steps=config.warmup_steps
    )
    learning_rate = config.learning_rate * factor
    torch.manual_seed(step_seed(config.seed, step, distributed.rank()))

    start = time.perf_counter()
    try:
        result = train_step(run.engine, run.deltas, micro_batches, learning_rate)
    except NonFiniteError as error:
        raise NonFiniteError(f"{error} in step {step + 1}") from None
    seconds = time.perf_counter() - start

    values = {
        "loss": result.loss,
        "learning_rate": learning_rate,
        "grad_norm": result.grad_norm,
        "tokens_per_s": result.num_tokens / seconds,
        "step_s": seconds,
        "memory_bytes": float(peak_memory_bytes(run.engine.device)),
    }
    if run.engine.fp16_enabled():
        values["loss_scale"] = engine.loss_scale(run.engine)
    reporter.step(step + 1, values)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of a step's dropout on a rank: a function, so nothing has to be saved."""
    digest = hashlib.sha256(f"{seed},{step},{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def save(run: Run, step: int) -> None:
    """Write a checkpoint. Collective: every rank must call this."""
    state = engine.gather_state(run.engine, run.deltas)
    checkpoint = Checkpoint(
        step=step,
        global_batch=run.config.global_batch,
        seed=run.config.seed,
        num_optimizer_steps=engine.num_optimizer_steps(run.engine),
        adapter=run.adapter,
        state=state,
        loss_scaler=engine.loss_scaler_state(run.engine),
    )
    root, keep_last = run.folder / "checkpoints", run.config.keep_last
    distributed.on_main_process(lambda: save_checkpoint(root, checkpoint, keep_last))


def _finish(run: Run, reporter: Reporter) -> Summary:
    """Write adapter, plot and closing metrics. Collective: every rank must call this."""
    state = engine.gather_state(run.engine, run.deltas)

    def write() -> Summary:
        masters = {name: tensors["master"] for name, tensors in state.items()}
        adapter.save_adapter(run.folder / "adapter", masters, run.adapter)
        plot_losses(reporter.history, run.folder / "loss.png")
        heldout = [p["heldout_loss"] for p in reporter.history if "heldout_loss" in p]
        first, last = (heldout[0], heldout[-1]) if heldout else (None, None)
        losses = [p["loss"] for p in reporter.history if "loss" in p]
        final = {"loss": losses[-1]} | ({} if last is None else {"heldout_loss": last})
        reporter.close(final)
        return Summary(run.folder, run.num_steps, first, last)

    return distributed.on_main_process(write)


def _report_norms(run: Run, reporter: Reporter, step: int) -> None:
    """Record the norm of each delta. Collective: every rank must call this."""
    norms = engine.delta_norms(run.engine, run.deltas)
    reporter.delta_norms(step, {name.removesuffix(".delta"): norm for name, norm in norms.items()})


def _verify(run: Run, when: str) -> None:
    placement.verify_placement(
        run.engine.module,
        run.expected_placement,
        stage=run.engine.zero_optimization_stage(),
        world_size=distributed.world_size(),
        when=when,
    )


def _last_checkpoint_text(folder: Path) -> str:
    last = next(iter(sorted((folder / "checkpoints").glob("step-*"), reverse=True)), None)
    return f"the last good checkpoint is {last}" if last else "no checkpoint was written yet"


# --- before the run ------------------------------------------------------------------------------


def prepare(config: RunConfig, ds_config_file: Path) -> Run:
    """Check every input, then load the model and hand it to DeepSpeed.

    Collective: every rank must call this.

    Raises:
        ValueError: if a setting, file or folder is wrong; before the model is loaded.
    """
    device = engine.init_process_group()
    world_size, is_main = distributed.world_size(), distributed.is_main_process()
    set_up_logging(is_main_process=is_main)
    engine.check_precision(config.precision, device.type)
    policy = ds_config.load_ds_config(ds_config_file)
    engine.check_offload(policy)
    config.accumulation_steps(world_size)
    folder = distributed.on_main_process(lambda: check_run_folder(config))
    model_folder = distributed.on_each_host_first(lambda: find_model(config.model, config.cache_folder))
    model_config, tokenizer, data = distributed.on_every_rank(lambda: _load_inputs(config, model_folder))
    train_examples, heldout_examples = data
    num_steps = config.num_steps(len(train_examples))
    complete = ds_config.complete_ds_config(
        policy,
        config,
        world_size=world_size,
        hidden_size=text_config(model_config).hidden_size,
        source=str(ds_config_file),
    )
    logger.info(f"Training data: {train_examples.describe()}")
    if heldout_examples is not None:
        logger.info(f"Held-out data: {heldout_examples.describe()}")
    logger.info(f"{config.batch_equation(world_size)}; {num_steps} steps")

    logger.info(f"Loading {model_folder} in {config.precision} ...")
    stage = ds_config.zero_stage(complete)
    model = load_base(model_folder, config.precision, complete if stage == 3 else None)
    num_parameters = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    targets = adapter.select_targets(
        model, config.targets, layers=config.layers, model_type=model.config.model_type
    )
    num_blocks = adapter.resolve_num_blocks(targets, config.num_blocks)
    adapter_config = adapter.AdapterConfig(
        base_model=config.model,
        base_fingerprint=distributed.on_main_process(lambda: fingerprint(model_folder)),
        num_blocks=num_blocks,
        dropout=config.dropout,
    )
    deltas = adapter.attach(model, num_blocks, dropout=config.dropout, device=device)
    if wants_gradient_checkpointing(config.gradient_checkpointing, num_parameters):
        enable_gradient_checkpointing(model, reentrant=config.reentrant)

    folder, checkpoint_folder = distributed.on_main_process(lambda: open_run_folder(config, folder))
    checkpoint = None
    if checkpoint_folder is not None:
        checkpoint = distributed.on_every_rank(lambda: load_checkpoint(checkpoint_folder))
        adapter.check_adapter(checkpoint.adapter, adapter_config)
        masters = {name: state["master"] for name, state in checkpoint.state.items()}
        adapter.load_deltas(model, masters)
        logger.info(f"Resuming after step {checkpoint.step} from {checkpoint_folder}")

    ds_engine, expected = start_engine(model, deltas, config, complete)
    if checkpoint is not None:
        engine.restore_state(ds_engine, deltas, checkpoint.state, checkpoint.num_optimizer_steps)
        engine.restore_loss_scaler(ds_engine, checkpoint.loss_scaler)
    logger.info(placement.placement_table(expected, stage=stage, world_size=world_size))

    def batches(examples: Examples) -> BatchSource:
        pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        vocab_size = text_config(model_config).vocab_size
        rank = distributed.rank()
        return BatchSource(examples, pad_id, vocab_size, config.micro_batch, rank, world_size)

    return Run(
        config=config,
        folder=folder,
        engine=ds_engine,
        deltas=deltas,
        adapter=adapter_config,
        train_batches=batches(train_examples),
        heldout_batches=None if heldout_examples is None else batches(heldout_examples),
        expected_placement=expected,
        num_steps=num_steps,
        num_examples=config.num_examples(len(train_examples)),
        start_step=0 if checkpoint is None else checkpoint.step,
    )


def start_engine(
    model: nn.Module,
    deltas: Mapping[str, nn.Parameter],
    config: RunConfig,
    complete: dict[str, Any],
) -> tuple[Any, list[placement.TensorPlacement]]:
    """Build the engine, place base and deltas by name, and verify it.

    Collective: every rank must call this.

    Returns:
        The DeepSpeed engine, and where each parameter lies.
    """
    stage = ds_config.zero_stage(complete)
    by_name = placement.can_place_by_name()
    zero = complete["zero_optimization"]
    if stage == 3 and not by_name:
        least = placement.size_threshold(deltas.values())
        key = "stage3_param_persistence_threshold"
        zero[key] = max(zero[key], least)
        logger.warning(f"This DeepSpeed version was not tested; placing by size: {key}={zero[key]}")
    expected = placement.expected_placement(
        model, deltas, stage=stage, threshold=zero.get("stage3_param_persistence_threshold", 0)
    )
    ds_engine = engine.build_engine(model, deltas, config, complete)
    if stage == 3 and by_name:
        whole = {p.name for p in expected if not p.sharded}
        parameters = dict(ds_engine.module.named_parameters())
        placement.make_persistent(ds_engine, [parameters[name] for name in parameters if name in whole])
    placement.verify_placement(
        ds_engine.module,
        expected,
        stage=stage,
        world_size=distributed.world_size(),
        when="after initialisation",
    )
    return ds_engine, expected


def text_config(model_config: Any) -> Any:
    """Return the part of a Hugging Face config that describes the text model."""
    return model_config.get_text_config()


def _load_inputs(
    config: RunConfig, model_folder: Path
) -> tuple[Any, Any, tuple[Examples, Examples | None]]:
    model_config = load_model_config(model_folder)
    tokenizer = load_tokenizer(model_folder)
    data = load_data(
        config.data,
        config.heldout_data,
        config.heldout_share,
        tokenizer=tokenizer,
        max_length=config.max_length,
        overlong=config.overlong,
        seed=config.seed,
    )
    return model_config, tokenizer, data


def check_run_folder(config: RunConfig) -> Path:
    """Decide the run folder and refuse one that holds something else. Creates nothing.

    Raises:
        ValueError: if the folder holds another run or other files, or is not a folder.
    """
    if not config.output:
        model = Path(config.model).name
        return Path("runs") / f"{model}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = Path(config.output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output must be a folder; got a file: output={config.output!r}")
    if not folder.exists() or not any(folder.iterdir()):
        return folder
    if not (folder / "run.json").is_file():
        raise ValueError(
            "output folder must be new, empty or hold this run; got other files in "
            f"output={config.output!r}; choose another folder"
        )
    differing = differing_fields(RunConfig.load(folder / "run.json"), config)
    if differing:
        raise ValueError(
            f"output folder must not hold another run; got output={config.output!r} with "
            f"{'; '.join(differing)}; choose another folder, or the old settings to resume"
        )
    return folder


def open_run_folder(config: RunConfig, folder: Path) -> tuple[Path, Path | None]:
    """Create the run folder with `run.json`, and find the checkpoint to resume from."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        dataclasses.replace(config, output=str(folder)).save(folder / "run.json")
    except OSError as error:
        raise ValueError(f"output folder must be writable; got output={str(folder)!r}: {error}") from None
    found, problems = find_checkpoint(folder / "checkpoints")
    for problem in problems:
        logger.warning(f"Passing over a damaged checkpoint: {problem}")
    return folder, found
