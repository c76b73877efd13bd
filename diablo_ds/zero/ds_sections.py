"""The sections of a DeepSpeed config file: which may be there, and which keys and values.

DeepSpeed's own models say what it takes; here their complaints become errors that name file, key,
value and rule. They also take "5e8" for a number and 1 for true, which is refused: this program
reads the same values.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from diablo_ds.config.suggestion import did_you_mean
from diablo_ds.errors import UserError
from diablo_ds.files.strict_json import key_list
from diablo_ds.zero.ds_combinations import check_combinations

LARGEST = 2**63 - 1
"""Largest integer that a tensor's size or index can be."""
LARGEST_BUCKET = 2**36

# What DeepSpeed would do with these, it does not do here.
WITHOUT_EFFECT = {
    "activation_checkpointing": "layers are recomputed as --recompute says",
    "disable_allgather": "DeepSpeed does not read it",
    "zero_optimization.elastic_checkpoint": "checkpoints are this program's own",
    "zero_optimization.load_from_fp32_weights": "checkpoints are this program's own",
    "zero_optimization.pipeline_loading_checkpoint": "checkpoints are this program's own",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": (
        "the adapter is saved, and the base is not"
    ),
    "zero_optimization.legacy_stage1": "DeepSpeed does not read it",
    "zero_optimization.save_muon_momentum_buffer_in_memory": "the optimizer is AdamW",
}
# These write where the file says, or send to a server.
MONITORS = ("tensorboard", "wandb", "csv_monitor", "comet")
# These change the numbers of a run, which the run config owns.
_NUMBERS = {
    "bf16": ("bf16_master_weights_and_grads", "bf16_optimizer_states"),
    "fp16": ("auto_cast", "fp16_master_weights_and_grads"),
    "zero_optimization": ("zenflow",),
}


class _Rule(NamedTuple):
    text: str
    holds: Callable[[Any], bool]


def _is_integer(value: Any, least: int) -> bool:
    return type(value) is int and least <= value <= LARGEST


_FLAG = _Rule("true or false", lambda value: isinstance(value, bool))
_COUNT = _Rule("an integer from 1", lambda value: _is_integer(value, 1))
_DATA_TYPES = ("fp32", "fp16", "bf16")
_LOG_LEVELS = ("debug", "info", "warning", "error", "critical")

# Sections and keys that DeepSpeed reads without a check of its own.
_PLAIN_KEYS = {
    "communication_data_type": _Rule(
        f"one of {', '.join(_DATA_TYPES)}", lambda value: value in _DATA_TYPES
    ),
    "log_level": _Rule(f"one of {', '.join(_LOG_LEVELS)}", lambda value: value in _LOG_LEVELS),
    "steps_per_print": _COUNT,
    **dict.fromkeys(("memory_breakdown", "wall_clock_breakdown"), _FLAG),
    **dict.fromkeys(("dump_state", "disable_python_gc"), _FLAG),
}
_PLAIN_SECTIONS = {
    "aio": {
        **dict.fromkeys(("block_size", "queue_depth", "intra_op_parallelism"), _COUNT),
        **dict.fromkeys(("single_submit", "overlap_events", "use_gds"), _FLAG),
    },
    "flops_profiler": {
        "enabled": _FLAG,
        "detailed": _FLAG,
        "profile_step": _COUNT,
        "top_modules": _COUNT,
        "module_depth": _Rule("an integer from -1", lambda value: _is_integer(value, -1)),
        "recompute_fwd_factor": _Rule(
            "a number from 0", lambda value: type(value) in (int, float) and 0 <= value <= LARGEST
        ),
    },
}
SECTIONS = ("zero_optimization", "bf16", "fp16", "comms_logger", *_PLAIN_SECTIONS)
POLICY_KEYS = frozenset({*_PLAIN_KEYS, *_PLAIN_SECTIONS, "zero_optimization", "comms_logger"})
_MAX_SCALE_POWER = 127
"""Of two, in fp32."""


def check_sections(values: Mapping[str, Any], path: Path) -> None:
    """Check every section and key that is policy, in a file with known keys at its top level.

    Raises:
        UserError: if one is unknown, has no effect, or has a value that cannot be.
    """
    for key in MONITORS:
        if key in values:
            raise UserError(
                "ds_config must not write metrics elsewhere: they are in the run folder, as "
                f"a metrics file and for TensorBoard; got {key} in {path}; remove it"
            )
    for name in SECTIONS:
        if name in values and not isinstance(values[name], dict):
            raise UserError(f"{name} must be a JSON object; got {values[name]!r:.60} in {path}")
    for name, reason in WITHOUT_EFFECT.items():
        section, _, key = name.rpartition(".")
        if key in (values.get(section, {}) if section else values):
            raise UserError(f"{name} has no effect: {reason}; got it in {path}; remove it")
    for section, keys in _NUMBERS.items():
        for key in keys:
            if key in values.get(section, {}):
                raise UserError(
                    "ds_config may hold memory and communication policy only; got "
                    f"{section}.{key} in {path}, which changes numbers; remove it"
                )
    _check_plain(values, _PLAIN_KEYS, "", path)
    for name, rules in _PLAIN_SECTIONS.items():
        section = values.get(name, {})
        if name == "flops_profiler" and "output_file" in section:
            raise UserError(
                f"flops_profiler must print its profile; got output_file in {path}; remove it"
            )
        check_known(section, set(rules), name, path)
        _check_plain(section, rules, f"{name}.", path)
    _check_models(values, path)
    check_combinations(values, path)


def check_known(
    values: Mapping[str, Any],
    known: set[str],
    what: str,
    path: Path,
    *,
    and_also: Collection[str] = (),
) -> None:
    """Raise UserError unless all keys are known.

    Args:
        values: the values by key.
        known: keys that an error names.
        what: what they are keys of.
        path: the file.
        and_also: keys with an error of their own.
    """
    if unknown := sorted(values.keys() - known - {*and_also}):
        raise UserError(
            f"{what} must have known keys only; got {key_list(unknown)} in {path}"
            + (did_you_mean(unknown[0], known) or f"; known are {', '.join(sorted(known))}")
        )


def _check_plain(
    values: Mapping[str, Any], rules: Mapping[str, _Rule], prefix: str, path: Path
) -> None:
    for key, rule in rules.items():
        if key in values and not rule.holds(values[key]):
            raise UserError(f"{prefix}{key} must be {rule.text}; got {values[key]!r:.60} in {path}")


# --- what DeepSpeed's models check ---------------------------------------------------------------


def _check_models(values: Mapping[str, Any], path: Path) -> None:
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = values.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if type(stage) is not int or stage not in (0, 1, 2, 3):
        raise UserError(f"ZeRO stage must be 0, 1, 2 or 3; got stage={stage!r:.60} in {path}")
    _check_model(zero, DeepSpeedZeroConfig, "zero_optimization", path)
    _check_model(values.get("bf16", {}), DeepSpeedBF16Config, "bf16", path)
    _check_model(values.get("fp16", {}), DeepSpeedFP16Config, "fp16", path)
    _check_model(values.get("comms_logger", {}), CommsLoggerConfig, "comms_logger", path)


def _check_model(values: Mapping[str, Any], model: Any, name: str, path: Path) -> None:
    """Check a section by DeepSpeed's model of it, and the sections in it."""
    fields = _fields(model)
    check_known(values, set(fields), name, path)
    for key, value in values.items():
        inner = _inner_model(fields[key].annotation)
        extra = fields[key].json_schema_extra
        if isinstance(extra, dict) and extra.get("deprecated"):
            raise UserError(
                f"{name}.{key} is deprecated; got it in {path}; use {extra.get('new_param')}"
            )
        if inner is None or value is None:
            continue
        if not isinstance(value, dict):
            raise UserError(f"{key} must be a JSON object; got {value!r:.60} in {path}")
        _check_model(value, inner, key, path)
    filled = {key: value for key, value in values.items() if value != "auto"}
    if name != "zero_optimization" and (
        left := sorted(values.keys() - filled.keys() - {"enabled"})
    ):
        raise UserError(
            '"auto" must stand for a value this program can fill in; got '
            f'{name}.{left[0]}="auto" in {path}; give a value, or remove it'
        )
    try:
        parsed = model(**filled)
    except Exception as error:  # pydantic's own, or an assertion of a model's validator
        key, message = _complaint(error)
        shown = f"{name}.{key}={filled.get(key)!r:.60}" if key else name
        raise UserError(
            f"ds_config must hold values that DeepSpeed takes; got {shown} in {path}: {message}"
        ) from None
    names = {field.alias or key: key for key, field in model.model_fields.items()}
    for key, value in filled.items():
        wanted = getattr(parsed, names[key])
        _check_type(f"{name}.{key}", value, wanted, path)


def _fields(model: Any) -> dict[str, Any]:
    """Return a model's fields by the names that a file uses: each has one only."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _inner_model(annotation: Any) -> Any:
    """Return the model of a section inside a section, or None."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if hasattr(candidate, "model_fields"):
            return candidate
    return None


def _complaint(error: Exception) -> tuple[str, str]:
    """Return the key that an exception of pydantic's is about, if one is, and what it says."""
    if hasattr(error, "errors"):
        first = error.errors()[0]
        return str(first["loc"][0]) if first["loc"] else "", first["msg"]
    return "", (str(error).splitlines() or [type(error).__name__])[0]


def _check_type(name: str, value: Any, parsed: Any, path: Path) -> None:
    """Raise UserError where a value had to be turned into one of another type."""
    as_text = isinstance(parsed, str | Path | Enum)
    if isinstance(value, bool) != isinstance(parsed, bool):
        wanted = "true or false" if isinstance(parsed, bool) else "no boolean"
    elif isinstance(value, str) and not as_text:
        wanted = "a number"
    elif isinstance(value, int | float) and abs(value) > _largest(name):
        wanted = f"at most {_largest(name)}"
    else:
        return
    raise UserError(f"{name} must be {wanted}; got {value!r:.60} in {path}")


def _largest(name: str) -> int:
    """Return the largest number for a key; that of a bucket is in elements, which take memory."""
    if name == "fp16.initial_scale_power":
        return _MAX_SCALE_POWER
    return LARGEST_BUCKET if "bucket_size" in name or "buffer" in name else LARGEST
