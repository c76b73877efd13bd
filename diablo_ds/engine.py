"""DeepSpeed: start the process group, build the engine, move optimizer state in and out.

The one user of DeepSpeed's engine. Optimizer state leaves and enters as whole fp32 tensors by
delta name, so that a checkpoint fits any world size and any ZeRO stage.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diablo_ds import distributed
from diablo_ds.config import RunConfig
from diablo_ds.ds_config import offload_device, zero_stage
from diablo_ds.model import DTYPES, decoder_layer_classes

STATE_KEYS = ("master", "exp_avg", "exp_avg_sq")
"""Per delta: fp32 master copy and AdamW's two moments."""

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


def init_process_group() -> torch.device:
    """Join the process group that the launcher announced, or make one of this process alone.

    Returns:
        The device of this rank.
    """
    deepspeed = import_deepspeed()
    if "RANK" not in os.environ:
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": _free_port()}
        os.environ.update({name: str(value) for name, value in alone.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    accelerator = deepspeed.get_accelerator()
    if accelerator.device_name() == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        num_cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, num_cores // distributed.local_world_size()))
    if not deepspeed.comm.is_initialized():
        with contextlib.redirect_stdout(io.StringIO()):  # "op built successfully"
            accelerator.set_device(distributed.local_rank())
            deepspeed.init_distributed(accelerator.communication_backend_name(), verbose=False)
    return torch.device(accelerator.current_device_name())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_precision(precision: str, device_type: str) -> None:
    """Raise ValueError where a precision cannot be trained in on this device."""
    if precision == "fp16" and device_type == "cpu":
        raise ValueError(
            "precision=\"fp16\" needs a GPU; got precision='fp16' on a CPU; use bf16 or fp32"
        )


def check_offload(ds_config: Mapping[str, Any]) -> None:
    """Raise ValueError where NVMe offload is wanted and libaio or the folder is missing."""
    zero = ds_config.get("zero_optimization", {})
    for what in ("param", "optimizer"):
        if offload_device(ds_config, what) != "nvme":
            continue
        folder = zero[f"offload_{what}"].get("nvme_path")
        if not folder or not os.path.isdir(folder):
            raise ValueError(f"NVMe offload needs an existing folder; got nvme_path={folder!r}")
        from deepspeed.ops.op_builder import AsyncIOBuilder

        with contextlib.redirect_stdout(io.StringIO()):
            is_usable = AsyncIOBuilder().is_compatible(verbose=False)
        if not is_usable:
            raise ValueError(
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
    return engine


@contextlib.contextmanager
def one_gradient_reduction(engine: Any) -> Iterator[None]:
    """Reduce the delta gradients over ranks once, when the block ends.

    Collective: every rank must enter it, once per optimizer step, around all backward passes.
    """
    if engine.zero_optimization_stage():
        with engine.coalesce_grad_reduction():
            yield
    else:
        with engine.no_sync():
            yield
        engine.allreduce_gradients()


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    """Set the learning rate of the next optimizer step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


def has_plain_optimizer(engine: Any) -> bool:
    """Return whether DeepSpeed left the optimizer unwrapped: stage 0 in fp32."""
    return isinstance(engine.optimizer, torch.optim.Optimizer)


def plain_gradient_norm(deltas: Mapping[str, nn.Parameter]) -> float:
    """Return the norm of reduced gradients, before clipping, where the optimizer is unwrapped."""
    grads = [delta.grad for delta in deltas.values() if delta.grad is not None]
    return float(torch.nn.utils.get_total_norm(grads))


def loss_scale(engine: Any) -> float:
    """Return the current loss scale; 1 unless in fp16."""
    return float(getattr(engine.optimizer, "loss_scale", 1.0)) if engine.fp16_enabled() else 1.0


def loss_scaler_state(engine: Any) -> dict[str, float]:
    """Return the numbers of the dynamic loss scaler, for a checkpoint; empty unless in fp16."""
    if not engine.fp16_enabled():
        return {}
    scaler = _loss_scaler(engine)
    return {
        name: value
        for name, value in vars(scaler).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def restore_loss_scaler(engine: Any, state: Mapping[str, float]) -> None:
    """Put back what `loss_scaler_state` returned."""
    if engine.fp16_enabled():
        vars(_loss_scaler(engine)).update(state)


def _loss_scaler(engine: Any) -> Any:
    # The unfused optimizer of stage 0 is its own scaler.
    return getattr(engine.optimizer, "loss_scaler", engine.optimizer)


def gather_state(engine: Any, deltas: Mapping[str, nn.Parameter]) -> dict[str, dict[str, Tensor]]:
    """Collect fp32 master and AdamW moments of every delta on the CPU of rank 0.

    Collective: every rank must call this.

    Returns:
        By delta name, then by `STATE_KEYS`: ``[num_blocks, in_block, out_block]``, fp32. Empty
        except on rank 0. Moments are zero before the first step.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    result: dict[str, dict[str, Tensor]] = {}
    stepped = num_optimizer_steps(engine) > 0
    local = _local_masters(engine, deltas)
    for name, delta in deltas.items():
        if local is not None:
            master = local[name]
            state = _inner_optimizer(engine).state.get(master, {})
            values = [master, *(state.get(key) for key in STATE_KEYS[1:])]
        else:
            values = [safe_get_full_fp32_param(delta)]
            values += [
                safe_get_full_optimizer_state(delta, key) if stepped else None
                for key in STATE_KEYS[1:]
            ]
        if distributed.is_main_process():
            whole = [torch.zeros_like(values[0]) if v is None else v for v in values]
            result[name] = {
                key: value.detach().float().cpu().clone()
                for key, value in zip(STATE_KEYS, whole, strict=True)
            }
    return result


def num_optimizer_steps(engine: Any) -> int:
    """Return AdamW's own step count, which decides its bias correction."""
    for state in _inner_optimizer(engine).state.values():
        if "step" in state:
            return int(state["step"])
    return 0


def restore_state(
    engine: Any,
    deltas: Mapping[str, nn.Parameter],
    saved: Mapping[str, Mapping[str, Tensor]],
    num_steps: int,
) -> None:
    """Put master copies and AdamW moments back into a fresh engine, at any stage and world size.

    The deltas themselves must have been loaded before the engine was built.

    Args:
        engine: an engine that has taken no step.
        deltas: the trainable parameters by name.
        saved: as returned by `gather_state`, the same on every rank.
        num_steps: AdamW's step count.
    """
    local = _local_masters(engine, deltas)
    if local is not None:
        for name, master in local.items():
            master.data.copy_(saved[name]["master"])
            _create_moments(engine, [master], num_steps)
            for key in STATE_KEYS[1:]:
                _inner_optimizer(engine).state[master][key].copy_(saved[name][key])
        return
    _create_moments(engine, _flat_masters(engine), num_steps)
    if engine.zero_optimization_stage() < 3:
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    for name, delta in deltas.items():
        for key in STATE_KEYS:
            _set_partition(engine, delta, saved[name][key], key)


def _set_partition(engine: Any, delta: Any, value: Tensor, key: str) -> None:
    """Copy this rank's part of a whole fp32 tensor into the optimizer."""
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    if engine.zero_optimization_stage() < 3:
        value = value.to(engine.device)
        if key == "master":
            safe_set_full_fp32_param(delta, value)
        else:
            safe_set_full_optimizer_state(delta, value, key)
        return
    # DeepSpeed pads a tensor that the world size does not divide; its full setter does not.
    size = delta.ds_tensor.ds_numel
    flat = torch.nn.functional.pad(
        value.flatten(), (0, size * engine.dp_world_size - value.numel())
    )
    part = flat.narrow(0, size * distributed.rank(), size)
    if key == "master":
        safe_set_local_fp32_param(delta, part)
    else:
        safe_set_local_optimizer_state(delta, part, key)


def _create_moments(engine: Any, masters: list[Tensor], num_steps: int) -> None:
    state = _inner_optimizer(engine).state
    for master in masters:
        state[master] = {
            "step": torch.tensor(float(num_steps)),
            **{key: torch.zeros_like(master) for key in STATE_KEYS[1:]},
        }


def _inner_optimizer(engine: Any) -> Any:
    return engine.optimizer if has_plain_optimizer(engine) else engine.optimizer.optimizer


def _local_masters(engine: Any, deltas: Mapping[str, nn.Parameter]) -> dict[str, Tensor] | None:
    """Return the fp32 masters by delta name where each rank holds them whole: stage 0."""
    if engine.zero_optimization_stage():
        return None
    if has_plain_optimizer(engine):
        return dict(deltas)
    masters = [master for group in engine.optimizer.fp32_groups for master in group]
    return dict(zip(deltas, masters, strict=True))


def _flat_masters(engine: Any) -> list[Tensor]:
    if engine.zero_optimization_stage() == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return list(engine.optimizer.single_partition_of_fp32_groups)


def model_dtype(precision: str) -> torch.dtype:
    """Return the dtype of base and deltas for a precision."""
    return DTYPES[precision]


def delta_norms(engine: Any, deltas: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """Return the Frobenius norm of each delta on rank 0; empty on other ranks.

    Collective under ZeRO-3: every rank must call this. Right after an optimizer step the deltas
    are whole on every rank and nothing is communicated; before the first they may have to be
    gathered.
    """
    if engine.zero_optimization_stage() == 3:
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        parameters: list[Any] = list(deltas.values())
        absent = [p for p in parameters if p.ds_status == ZeroParamStatus.NOT_AVAILABLE]
        if absent:
            absent[0].all_gather(absent)
    if not distributed.is_main_process():
        return {}
    return {name: float(delta.detach().float().norm()) for name, delta in deltas.items()}
