"""DeepSpeed: start the process group, build the engine, and what a step needs of it."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.files import trust
from diablo_ds.model.architecture import decoder_layer_classes
from diablo_ds.ranks import distributed, identity, rendezvous
from diablo_ds.ranks.software import code_digest, versions
from diablo_ds.zero.build_lock import (
    check_extensions,
    extensions_folder,
    prefer_own_programs,
    removing_stale_locks,
)
from diablo_ds.zero.ds_config import offload_device, zero_stage
from diablo_ds.zero.gradients import check_gradients_once, keep_fp32_gradients
from diablo_ds.zero.placement import can_place_by_name, gather_absent

# What DeepSpeed says at each start and a user of this program cannot act on.
_NOISE = (
    "Setting accelerator to CPU",
    "ZeRO with an untested optimizer",
    "overridden with a more memory efficient version",
    "Removing param_group that has no 'params'",
    "with a client provided optimizer",
    "Stage 3 initialize",
)


class _NoiseFilter(logging.Filter):
    """Drops DeepSpeed's known start-up warnings and, off rank 0, repeats of what rank 0 says."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if record.levelno >= logging.ERROR:
            return True
        return distributed.is_main_process() and not any(noise in message for noise in _NOISE)


def import_deepspeed() -> Any:
    """Import DeepSpeed without its start-up noise, and return the module."""
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Told to DeepSpeed's authors, not to its users.
    warnings.filterwarnings("ignore", "`torch.distributed.*` is deprecated", FutureWarning)
    with contextlib.redirect_stdout(io.StringIO()):
        import deepspeed
    for name in ("DeepSpeed", "deepspeed"):
        logger = logging.getLogger(name)
        if not any(isinstance(f, _NoiseFilter) for f in logger.filters):
            logger.addFilter(_NoiseFilter())
    return deepspeed


def _unlink_shared_memory() -> None:
    """Free the name of the 69 MB buffer that DeepSpeed's op for CPUs leaves in memory for ever.

    Every rank has mapped every buffer by then, and a mapping outlives its name.
    """
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{distributed.rank()}"
    if torch.distributed.get_backend() == "gloo":
        torch.distributed.barrier()
        Path("/dev/shm", name).unlink(missing_ok=True)


def init_process_group(*, shared_folders: bool = False) -> torch.device:
    """Join the process group that the launcher announced, or make one of this process alone.

    Args:
        shared_folders: load compiled ops from a folder that other users can write, too.

    Returns:
        The device of this rank.

    Raises:
        UserError: if the variables do not tell which rank this is, other users can change the
            compiled ops, or a process joined that has not the run's key.
    """
    if not torch.distributed.is_initialized():
        identity.announce()
    deepspeed = import_deepspeed()
    accelerator = deepspeed.get_accelerator()
    if accelerator.device_name() == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        num_cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, num_cores // distributed.local_world_size()))
    if not deepspeed.comm.is_initialized():
        quietly = contextlib.redirect_stdout(io.StringIO())  # "op built successfully"
        extensions = extensions_folder()
        check_extensions(extensions, shared=shared_folders)
        prefer_own_programs()
        with removing_stale_locks(extensions), quietly:
            accelerator.set_device(distributed.local_rank())
            rendezvous.join(
                deepspeed,
                accelerator.communication_backend_name(),
                {"device": accelerator.device_name(), **versions(), "source files": code_digest()},
            )
        rendezvous.check_key(accelerator.current_device_name())
        _unlink_shared_memory()
    return torch.device(accelerator.current_device_name())


def has_bf16(device: torch.device) -> bool:
    """Return whether a device has bf16 instructions; a CPU's speed tells it better."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(import_deepspeed().get_accelerator().is_bf16_supported())


def check_precision(precision: str, device_type: str, stage: int) -> None:
    """Raise UserError where a precision cannot be trained in, on this device or at this stage."""
    if precision != "fp16":
        return
    if device_type == "cpu":
        raise UserError("fp16 needs a GPU; got precision='fp16' on a CPU; use bf16 or fp32")
    if stage == 0:
        # DeepSpeed 0.19.8 divides the gradients by a loss scale that it did not apply.
        raise UserError(
            "fp16 needs ZeRO stage 1, 2 or 3; got precision='fp16' at stage 0; use "
            "ds_configs/zero1.json"
        )


def check_quantized(ds_config: Mapping[str, Any], device_type: str) -> None:
    """Raise UserError where gathers are to be quantised and DeepSpeed has no op for it."""
    for name in ("zero_quantized_weights", "zero_quantized_nontrainable_weights"):
        if ds_config.get("zero_optimization", {}).get(name) and device_type == "cpu":
            raise UserError(
                f"{name} needs a GPU: DeepSpeed's quantizer has no CPU version; got {name}=true; "
                "remove it"
            )


def check_offload(ds_config: Mapping[str, Any], *, shared_folders: bool = False) -> None:
    """Raise UserError where NVMe offload is wanted and libaio or the folder is missing.

    The folder in it that DeepSpeed uses, whoever made it, must not be one that others can change.
    """
    zero = ds_config.get("zero_optimization", {})
    for what in ("param", "optimizer"):
        if offload_device(ds_config, what) != "nvme":
            continue
        folder = zero[f"offload_{what}"].get("nvme_path")
        if not folder or not os.path.isdir(folder):
            raise UserError(f"NVMe offload needs an existing folder; got nvme_path={folder!r}")
        for used in (Path(folder), *Path(folder).glob("zero_stage_*")):
            trust.check_folder(used, "nvme_path", shared=shared_folders)
        from deepspeed.ops.op_builder import AsyncIOBuilder

        with contextlib.redirect_stdout(io.StringIO()):
            is_usable = AsyncIOBuilder().is_compatible(verbose=False)
        if not is_usable:
            raise UserError(
                "NVMe offload needs libaio; got none; install the package libaio-dev, or use "
                "ds_configs/zero3_offload.json"
            )


def build_engine(
    model: Any, deltas: Mapping[str, nn.Parameter], run: RunConfig, ds_config: dict[str, Any]
) -> Any:
    """Hand the model to DeepSpeed.

    Collective: every rank must call this.

    Args:
        model: the model with deltas attached; partitioned already under ZeRO-3.
        deltas: the trainable parameters by name.
        run: the run config; gives AdamW's settings.
        ds_config: the complete DeepSpeed config.

    Returns:
        The DeepSpeed engine.
    """
    deepspeed = import_deepspeed()
    if zero_stage(ds_config) == 3:
        # One gather per decoder layer instead of one per weight. It also keeps non-re-entrant
        # checkpointing from gathering a layer's weights once per weight in the recomputation.
        classes = decoder_layer_classes(model)
        if classes:
            deepspeed.utils.set_z3_leaf_modules(model, classes)
    # Without it a first layer's input needs no gradient: re-entrant checkpointing would cut the
    # graph, and a leaf module's backward hook would not fire.
    model.enable_input_require_grads()
    optimizer = torch.optim.AdamW(
        list(deltas.values()),
        lr=run.learning_rate,
        betas=(run.beta1, run.beta2),
        eps=run.epsilon,
        weight_decay=run.weight_decay,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config)
    keep_fp32_gradients(engine)
    if can_place_by_name():  # a DeepSpeed whose optimizer was tested so
        check_gradients_once(engine)
    # At stage 0 in half precision DeepSpeed has taken a step with zero gradients, to allocate
    # AdamW's moments; counted in, it would shift the bias correction of every step.
    optimizer.state.clear()
    return engine


@contextlib.contextmanager
def evaluating(engine: Any) -> Iterator[None]:
    """Put the model into evaluation mode, without touching what ZeRO-3 knows of a training step.

    Collective: every rank must enter it. DeepSpeed 0.19 records the order of modules in a step and
    decides once, for good, which weights to keep from forward to backward. A forward without a
    backward in between makes it record anew and, as the decisions are cached, release all weights
    early ever after: twice the gathers. So evaluation gets a record of its own.
    """
    offload = getattr(engine.optimizer, "parameter_offload", None)
    engine.eval()
    if offload is not None and can_place_by_name():
        of_training = offload.param_coordinator
        if not hasattr(engine, "_evaluation_coordinator"):
            engine._evaluation_coordinator = _without_record(of_training)
        offload.param_coordinator = engine._evaluation_coordinator
    try:
        yield
    finally:
        if offload is not None and can_place_by_name():
            offload.param_coordinator = of_training
        engine.train()


def _without_record(coordinator: Any) -> Any:
    """Return a copy of DeepSpeed's parameter coordinator that has seen no step yet."""
    own = copy.copy(coordinator)
    if own.is_invalid_trace():
        own._clear_trace_structures()
    else:
        own._invalidate_trace()
    return own


def optimizer_step(engine: Any, deltas: Mapping[str, nn.Parameter], learning_rate: float) -> float:
    """Clip the reduced gradients, update the deltas, and drop the gradients.

    Nothing is updated where the norm is not finite.

    Collective: every rank must call this.

    Returns:
        The norm over all delta gradients, before clipping.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    if has_plain_optimizer(engine):  # DeepSpeed reports no norm there
        grads = [delta.grad for delta in deltas.values() if delta.grad is not None]
        grad_norm = float(torch.nn.utils.get_total_norm(grads))
        if math.isfinite(grad_norm):  # elsewhere DeepSpeed skips the update by itself
            engine.step()
        return grad_norm
    engine.step()
    return float(engine.get_global_grad_norm())


def has_plain_optimizer(engine: Any) -> bool:
    """Return whether DeepSpeed left the optimizer unwrapped: stage 0 in fp32."""
    return isinstance(engine.optimizer, torch.optim.Optimizer)


def delta_norms(engine: Any, deltas: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """Return the Frobenius norm of each delta on rank 0; empty on other ranks.

    Collective under ZeRO-3: every rank must call this. Right after an optimizer step the deltas
    are whole on every rank and nothing is communicated; before the first they may have to be
    gathered.
    """
    if engine.zero_optimization_stage() == 3:
        gather_absent(deltas.values())
    if not distributed.is_main_process():
        return {}
    return {name: float(delta.detach().float().norm()) for name, delta in deltas.items()}
