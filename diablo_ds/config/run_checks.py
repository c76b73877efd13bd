"""Which settings of a run config go together, and which would have no effect beside others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diablo_ds.config.choices import check_control_tokens
from diablo_ds.config.data_settings import DEFAULT_DATA, RAW_SETTINGS
from diablo_ds.config.profile_steps import parse_profile_steps
from diablo_ds.config.task_limits import parse_limits
from diablo_ds.config.task_settings import OF_TASKS
from diablo_ds.errors import UserError

if TYPE_CHECKING:
    from diablo_ds.config.run import RunConfig


def check_together(run_config: RunConfig) -> None:
    """Check a run config whose values are legal one by one.

    Raises:
        UserError: if two of them contradict each other, or one has no effect.
    """
    if not run_config.max_steps and not run_config.num_epochs:
        raise UserError("max_steps or num_epochs must be above 0; got 0 for both")
    _check_recomputation(run_config)
    if run_config.delta_path in ("summed", "triton_summed") and run_config.dropout:
        raise UserError(
            f"delta_path {run_config.delta_path!r} needs dropout=0, since the adapter sees the "
            f"base's input; got dropout={run_config.dropout}; use 'fused'"
        )
    _check_batching(run_config)
    _check_stream(run_config)
    _check_data(run_config)
    _check_tasks(run_config)
    parse_profile_steps(run_config.profile_steps, run_config.max_steps)
    if len(set(run_config.report_to)) < len(run_config.report_to):
        raise UserError(
            "report_to must name each tracker once; got report_to="
            f"{', '.join(run_config.report_to)}"
        )


def _check_data(run_config: RunConfig) -> None:
    check_control_tokens(run_config.control_tokens, run_config.template)
    run_config.amounts()
    for name in ("data", "heldout_data"):
        values = getattr(run_config, name)
        if not all(values) or (name == "data" and not values):
            raise UserError(f"{name} must name files, folders or globs; got {name}={values!r}")
    for name in (*RAW_SETTINGS, "mix", "max_bad_rows", "heldout_data"):
        value = getattr(run_config, name)
        if run_config.has_default_data and value != getattr(type(run_config), name):
            raise UserError(
                f"{name} has no effect on the default data, which has a form and a held-out "
                f"part; got {name}={value!r}; name the training data too"
            )
    if set(DEFAULT_DATA) & set(run_config.data) and not run_config.has_default_data:
        raise UserError(
            "the default data cannot be mixed with other data; got "
            f"data={', '.join(run_config.data)}; name "
            "other files, or prepare the default data's with diablo-ds prepare math"
        )


def _check_tasks(run_config: RunConfig) -> None:
    names = run_config.eval_task_names
    if run_config.eval_tasks and not names:
        raise UserError(f"eval_tasks must name tasks; got eval_tasks={run_config.eval_tasks!r}")
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"eval_tasks must name each task once; got {name!r} twice; name it {name}:LABEL "
                "for other data"
            )
    for name in OF_TASKS:
        value = getattr(run_config, name)
        if value != getattr(type(run_config), name) and not names:
            raise UserError(
                f"{name} has no effect without eval_tasks; got {name}={value!r} and no tasks"
            )
    parse_limits(run_config.eval_task_limit, names, "eval_task_limit")


def _check_recomputation(run_config: RunConfig) -> None:
    for name in ("reentrant", "recomputed_layers", "keep_attention"):
        value = getattr(run_config, name)
        if value and run_config.recompute is False:
            raise UserError(f"{name} needs recomputation; got {name}={value}, recompute=False")
        if value and run_config.memory_budget and name != "reentrant":
            raise UserError(
                f"memory_budget chooses {name} by itself; got {name}={value}, "
                f"memory_budget={run_config.memory_budget}; give one of them"
            )
    if run_config.keep_attention and run_config.reentrant:
        raise UserError(
            "keep_attention needs the non-re-entrant form; got keep_attention=True, reentrant=True"
        )
    if run_config.memory_budget and run_config.recompute is not None:
        raise UserError(
            "memory_budget decides on recomputation; got "
            f"memory_budget={run_config.memory_budget}, "
            f"recompute={run_config.recompute}; leave one of them out"
        )


def _check_batching(run_config: RunConfig) -> None:
    if run_config.packing and run_config.group_by_length:
        raise UserError(
            "group_by_length has no effect with packing, which leaves no padding; got both"
        )
    if run_config.micro_batch_tokens and run_config.micro_batch:
        raise UserError(
            "give micro_batch or micro_batch_tokens, not both; got "
            f"micro_batch={run_config.micro_batch}, "
            f"micro_batch_tokens={run_config.micro_batch_tokens}"
        )
    if run_config.micro_batch_tokens and run_config.micro_batch_tokens < run_config.max_length:
        raise UserError(
            "micro_batch_tokens must hold the longest example; got "
            f"micro_batch_tokens={run_config.micro_batch_tokens}, "
            f"max_length={run_config.max_length}"
        )


def _check_stream(run_config: RunConfig) -> None:
    if not run_config.stream:
        return
    if run_config.has_default_data or not run_config.max_steps:
        raise UserError(
            "stream needs raw files as data, and max_steps, since their number of rows is not "
            f"known; got data={', '.join(run_config.data)}, max_steps={run_config.max_steps}"
        )
    if len(run_config.data) > 1 or run_config.mix:
        raise UserError(
            "a stream reads one source, a file, folder or glob, as the numbers of rows are not "
            f"known; got data={', '.join(run_config.data)}, mix={', '.join(run_config.mix)}; "
            "prepare the data first, with diablo-ds prepare"
        )
    for name in ("packing", "group_by_length", "micro_batch_tokens"):
        if getattr(run_config, name):
            raise UserError(
                f"{name} needs the lengths of all examples, which a stream does not know; got "
                f"{name}={getattr(run_config, name)}; prepare the data first, with diablo-ds "
                "prepare"
            )
    if run_config.text == "chunk":
        raise UserError(
            "text must be row in a stream, where a step is a number of rows; got text='chunk'; "
            "prepare the data first, with diablo-ds prepare"
        )
    if run_config.overlong == "error":
        raise UserError("overlong must not be error for a stream; got overlong='error'")
