"""Layers of an adapter in the compact form that PEFT's configs have, and back.

PEFT names target layers by the ends of their names, and settings of some of them by regular
expressions. Names here are full module names, such as ``model.layers.0.self_attn.q_proj``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from diablo_ds.errors import UserError

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_ALL_LINEAR = "all-linear"
"""PEFT's word for every linear layer; it is replaced by names when it is applied to a model."""


@dataclass(frozen=True)
class TargetRule:
    """PEFT's rule by which modules become targets: four fields of `adapter_config.json`."""

    target_modules: tuple[str, ...] | str
    """Full names or ends of names, or one regular expression for full names."""
    exclude_modules: tuple[str, ...] | str | None = None
    layers_to_transform: tuple[int, ...] | None = None
    """Numbers of the decoder layers to keep; all by default."""
    layers_pattern: tuple[str, ...] | None = None
    """Regular expressions for what stands before that number; anything by default."""
    layers: frozenset[str] = frozenset()
    """The layers that it was made for or read with; of others it may say nothing right."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TargetRule:
        """Return the rule that a config holds.

        Raises:
            UserError: if a field is of another type, or a regular expression is broken.
        """
        targets = _names_or_pattern("target_modules", values.get("target_modules"))
        if not targets or targets == _ALL_LINEAR:
            raise UserError(
                "target_modules must be names of layers or a regular expression; got "
                f"target_modules={targets!r}"
            )
        numbers = values.get("layers_to_transform")
        if isinstance(numbers, int):
            numbers = [numbers]
        if numbers is not None and not (
            isinstance(numbers, list) and all(type(number) is int for number in numbers)
        ):
            raise UserError(f"layers_to_transform must be numbers of layers; got {numbers!r:.60}")
        patterns = _names_or_pattern("layers_pattern", values.get("layers_pattern"))
        patterns = (patterns,) if isinstance(patterns, str) else patterns
        for pattern in patterns or ():
            compiled(pattern, "layers_pattern")
        return cls(
            targets,
            _names_or_pattern("exclude_modules", values.get("exclude_modules")) or None,
            tuple(numbers) if numbers else None,
            patterns or None,
        )

    def as_json(self) -> dict[str, Any]:
        """Return the fields; those without effect are left out."""
        fields = {
            "target_modules": self.target_modules,
            "exclude_modules": self.exclude_modules,
            "layers_to_transform": self.layers_to_transform,
            "layers_pattern": self.layers_pattern,
        }
        values = {name: value for name, value in fields.items() if value is not None}
        return {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}

    def matches(self, name: str) -> bool:
        """Return whether a module of this name is a target."""
        if self.exclude_modules is not None and _matches(self.exclude_modules, name):
            return False
        if not _matches(self.target_modules, name):
            return False
        is_by_number = isinstance(self.target_modules, tuple) and name not in self.target_modules
        if self.layers_to_transform is None or not is_by_number:
            return True
        if self.layers_pattern is None:
            expressions = [r".*?\.[^.]*\.(?P<idx>\d+)\."]
        else:
            expressions = [rf"(?:^|.*?\.){p}\.(?P<idx>\d+)\." for p in self.layers_pattern]
        found = next((m for e in expressions if (m := re.match(e, name))), None)
        return found is not None and int(found["idx"]) in self.layers_to_transform

    def unused(self, names: Collection[str]) -> list[str]:
        """Return the target modules, where they are names, that match none of these names."""
        targets = self.target_modules
        if isinstance(targets, str):
            return []
        return [target for target in targets if not any(_ends(name, target) for name in names)]


def targets_of(layers: Collection[str], modules: Iterable[str] | None = None) -> TargetRule:
    """Return the shortest rule whose targets, among a model's modules, are exactly these layers.

    Args:
        layers: the target layers.
        modules: names of all modules of the model; None where they are not known, so that only full
            names are safe.
    """
    others = {name for name in modules or () if name and name not in layers}
    ends: list[str] = []
    made_for = frozenset(layers)
    for name in sorted(layers):
        if any(_ends(name, end) for end in ends):
            continue
        candidates = [name] if modules is None else _name_ends(name)
        safe = (end for end in candidates if not any(_ends(other, end) for other in others))
        end = next(safe, None)
        if end is None:  # a layer's full name ends another's
            pattern = "|".join(re.escape(layer) for layer in sorted(layers))
            return TargetRule(pattern, layers=made_for)
        ends.append(end)
    return TargetRule(tuple(sorted(ends)), layers=made_for)


def compact_num_blocks(num_blocks: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """Return the commonest block count, and the others by the shortest regular expressions.

    No two of the expressions match the same layer, so their order has no meaning.

    Args:
        num_blocks: block count by layer; at least one.
    """
    counts = Counter(num_blocks.values())
    commonest = max(counts, key=lambda count: (counts[count], count))
    pattern: dict[str, int] = {}
    for name, count in num_blocks.items():
        if count == commonest or any(_key_matches(key, name) for key in pattern):
            continue
        keys = (*map(re.escape, _name_ends(name)), f"(?<!.){re.escape(name)}")
        pattern[next(key for key in keys if _is_alone(key, count, num_blocks, pattern))] = count
    return commonest, pattern


def expand_num_blocks(
    layers: Iterable[str], commonest: int, pattern: Mapping[str, int]
) -> dict[str, int]:
    """Return the block count of each layer, in the order of the layers.

    Args:
        layers: names of the layers.
        commonest: count of each layer that no key matches.
        pattern: other counts by regular expression, which must match a name from its beginning, or
            from a dot on, to its end; the first that does counts.
    """
    found = {}
    for name in layers:
        key = next((key for key in pattern if _key_matches(key, name)), None)
        found[name] = commonest if key is None else pattern[key]
    return found


def unused_keys(layers: Collection[str], pattern: Iterable[str]) -> list[str]:
    """Return the keys of a pattern of block counts that match none of the layers."""
    return [key for key in pattern if not any(_key_matches(key, name) for name in layers)]


def likely_missing(layers: Collection[str]) -> list[str]:
    """Return names that a regular set of layers would have, and this one has not.

    Decoder layers are usually alike: where "q_proj" is there for the layers 0 to 3 and "up_proj"
    for 0, 1 and 3, that of 2 is missing.
    """
    numbers: dict[str, set[str]] = {}
    for name in layers:
        found = _NUMBER.search(name)
        if found:
            template = f"{name[: found.start()]}{{}}{name[found.end() :]}"
            numbers.setdefault(template, set()).add(found[0])
    everywhere = set().union(*numbers.values()) if numbers else set()
    missing = [
        (int(number), template.replace("{}", number))
        for template, present in numbers.items()
        for number in everywhere - present
    ]
    return [name for _, name in sorted(missing)]


def compiled(pattern: str, name: str) -> re.Pattern[str]:
    """Return a regular expression, compiled.

    Raises:
        UserError: if it is none; names the setting.
    """
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(
            f"{name} must hold regular expressions; got {pattern!r:.80}: {error}"
        ) from None


def _names_or_pattern(name: str, value: Any) -> tuple[str, ...] | str | None:
    if value is None:
        return None
    if isinstance(value, str):
        compiled(value, name)
        return value
    if isinstance(value, list) and all(isinstance(entry, str) and entry for entry in value):
        return tuple(sorted(set(value)))
    raise UserError(f"{name} must be a list of names or a text; got {name}={value!r:.60}")


def _matches(names: tuple[str, ...] | str, name: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, name) is not None
    return any(_ends(name, end) for end in names)


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _name_ends(name: str) -> list[str]:
    """Return the ends of a name from the last part to all of it."""
    parts = name.split(".")
    return [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]


def _key_matches(key: str, name: str) -> bool:
    return re.match(rf"(.*\.)?({key})$", name) is not None


def _is_alone(
    key: str, count: int, num_blocks: Mapping[str, int], pattern: Mapping[str, int]
) -> bool:
    """Return whether a key matches layers of this count alone, and none that another key does."""
    matched = [name for name in num_blocks if _key_matches(key, name)]
    return all(num_blocks[name] == count for name in matched) and not any(
        _key_matches(other, name) for other in pattern for name in matched
    )
