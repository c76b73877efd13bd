"""`adapter_config.json`: PEFT's fields and our own, checked one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diablo_ds.adapter.layer_names import TargetRule, compiled
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_json
from diablo_ds.files.strict_json import key_list

PEFT_TYPE = "DIABLO"
_TASK_TYPE = "CAUSAL_LM"
_RULE_FIELDS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_INERT_FIELDS = ("auto_mapping", "inference_mode", "init_weights", "peft_version")
"""PEFT's fields that say nothing of what an adapter computes."""


@dataclass(frozen=True)
class ConfigFile:
    """The content of an adapter's config file; block counts and targets in PEFT's compact form.

    Only `num_blocks` and the targets have to be in a file: PEFT writes no others of ours.
    """

    base_model: str
    targets: TargetRule
    num_blocks: int
    """Block count of each layer that no key of the pattern matches."""
    num_blocks_pattern: Mapping[str, int] = field(default_factory=dict)
    dropout: float = 0.0
    base_fingerprint: str = ""
    num_deltas: int | None = None
    """Tensors beside it; shows that one is missing where there is no model to compare with."""
    step: int | None = None
    heldout_loss: float | None = None
    library_versions: dict[str, str] = field(default_factory=dict)
    parent: dict[str, Any] | None = None
    revision: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the file's content."""
        return {
            "peft_type": PEFT_TYPE,
            "task_type": _TASK_TYPE,
            "base_model_name_or_path": self.base_model or None,
            "revision": self.revision,
            "inference_mode": True,
            "auto_mapping": None,
            **self.targets.as_json(),
            "num_blocks": self.num_blocks,
            "num_blocks_pattern": dict(self.num_blocks_pattern),
            "dropout": self.dropout,
            "modules_to_save": None,
            "base_fingerprint": self.base_fingerprint or None,
            "num_deltas": self.num_deltas,
            "step": self.step,
            "heldout_loss": self.heldout_loss,
            "library_versions": self.library_versions or None,
            "parent": self.parent,
        }

    @classmethod
    def load(cls, path: Path) -> ConfigFile:
        """Read a config file, which we or PEFT wrote.

        Raises:
            UserError: if it is missing, is not JSON or not of a DiaBlo adapter, a field is unknown
                or its value is wrong, or the adapter holds more than deltas.
        """
        values = read_json(path)
        if not isinstance(values, dict) or values.get("peft_type") != PEFT_TYPE:
            got = values.get("peft_type") if isinstance(values, dict) else values
            raise UserError(
                f"adapter must have the peft_type {PEFT_TYPE!r}; got {got!r:.60} in {path}"
            )
        try:
            return cls._from_json(values)
        except UserError as error:
            raise UserError(f"{error} in {path}") from None

    @classmethod
    def _from_json(cls, values: dict[str, Any]) -> ConfigFile:
        if values.get("modules_to_save"):
            raise UserError(
                "an adapter must consist of deltas alone; load one that holds other modules with "
                "PEFT (diablo_ds.peft), which can merge it too; got "
                f"modules_to_save={values['modules_to_save']!r:.80}"
            )
        known = {name for name, _, _ in _RULES}.union(_RULE_FIELDS, _INERT_FIELDS, _EMPTY_FIELDS)
        unknown = [name for name in values.keys() - known if values[name]]
        if unknown:
            raise UserError(
                "a config must have fields of DiaBlo alone, since others may change what an "
                f"adapter computes; got {key_list(unknown, 12)}"
            )
        for name, rule, holds in _RULES:
            if not holds(values.get(name)):
                raise UserError(f"{name} must be {rule}; got {name}={values.get(name)!r:.60}")
        pattern = values.get("num_blocks_pattern") or {}
        for key in pattern:
            compiled(key, "num_blocks_pattern")
        return cls(
            base_model=values.get("base_model_name_or_path") or "",
            targets=TargetRule.from_json(values),
            num_blocks=values["num_blocks"],
            num_blocks_pattern=pattern,
            dropout=float(values.get("dropout") or 0),
            base_fingerprint=values.get("base_fingerprint") or "",
            num_deltas=values.get("num_deltas"),
            step=values.get("step"),
            heldout_loss=values.get("heldout_loss"),
            library_versions=values.get("library_versions") or {},
            parent=values.get("parent"),
            revision=values.get("revision"),
        )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_count(value: Any, least: int = 1) -> bool:
    return type(value) is int and value >= least


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _are_counts(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(map(_is_count, value.values())))


def _are_texts(value: Any) -> bool:
    is_object = isinstance(value, dict)
    return value is None or (is_object and all(isinstance(v, str) for v in value.values()))


_EMPTY_FIELDS = ("modules_to_save",)
"""Fields that must be without a value."""
_RULES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("peft_type", repr(PEFT_TYPE), lambda value: value == PEFT_TYPE),
    ("task_type", f"{_TASK_TYPE!r} or null", lambda value: value in (None, _TASK_TYPE)),
    ("base_model_name_or_path", "text or null", _is_text),
    ("revision", "text or null", _is_text),
    ("num_blocks", "an integer from 1", _is_count),
    ("num_blocks_pattern", "integers from 1 by regular expression", _are_counts),
    (
        "dropout",
        "a number from 0 to less than 1",
        lambda value: value is None or (_is_number(value) and 0 <= value < 1),
    ),
    ("base_fingerprint", "text or null", _is_text),
    ("num_deltas", "an integer from 1, or null", lambda v: v is None or _is_count(v)),
    ("step", "an integer from 0, or null", lambda v: v is None or _is_count(v, 0)),
    ("heldout_loss", "a finite number or null", lambda v: v is None or _is_number(v)),
    ("library_versions", "texts by package, or null", _are_texts),
    ("parent", "an object or null", lambda value: value is None or isinstance(value, dict)),
)
"""What each field must be: its name, the rule in words, and as a function."""
