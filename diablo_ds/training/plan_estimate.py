"""What a plan expects of a run on the GPUs that it got, to be compared with what is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diablo_ds.config.run import RunConfig
from diablo_ds.model.recomputation import choose_recomputation
from diablo_ds.planning.fitting import Fitting
from diablo_ds.training.machine import Machine
from diablo_ds.training.memory_choice import find_gpus


def estimate_plan(
    run_config: RunConfig,
    machines: Sequence[Machine],
    shapes: Any,
    policy: Mapping[str, Any],
    num_blocks: dict[str, int] | None,
) -> dict[str, float] | None:
    """Return the planned rate, step and memory, if every sequence is full.

    Args:
        run_config: the run config without open values.
        machines: what each rank found, in the order of the ranks.
        shapes: the base model on the meta device.
        policy: the DeepSpeed config file's values.
        num_blocks: block count of each target layer by full module name; those of the run config
            by default.

    Returns:
        `tokens_per_s` of all ranks, `step_s`, `mfu`, and `memory_bytes` of a GPU; None on a CPU,
        and where the model cannot be planned.
    """
    gpus = find_gpus(machines)
    if gpus is None:
        return None
    try:
        fitting = Fitting(run_config, shapes.config, policy, gpus, num_blocks=num_blocks)
        recomputation = choose_recomputation(run_config, shapes)
        candidate = fitting.given(run_config.micro_batch, recomputation)
    except Exception:  # the code of a model may do anything when it is traced
        return None
    values = {
        "tokens_per_s": candidate.tokens_per_s,
        "step_s": candidate.time.total,
        "mfu": candidate.mfu,
        "memory_bytes": candidate.memory.total,
    }
    return {name: float(value) for name, value in values.items()}
