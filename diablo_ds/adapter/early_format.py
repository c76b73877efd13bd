"""Adapters as early versions wrote them: read in this release, not in the next.

Their files are `adapter.json`, with the block count of each layer, and `adapter.safetensors`, with
tensors ``<layer>.delta``. Run as a program, this module writes such an adapter in the present form:

    python -m diablo_ds.adapter.early_format OLD NEW
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_json
from diablo_ds.files.layout import (
    ADAPTER_CONFIG_FILE,
    EARLY_CONFIG_FILE,
    EARLY_TENSOR_FILE,
    Kind,
    kind_of,
)
from diablo_ds.files.strict_json import key_list
from diablo_ds.files.whole_tensors import tensor_shapes
from diablo_ds.ranks.log import logger

_FORMAT = 1
_FIELDS = {"base_model", "base_fingerprint", "num_blocks", "dropout", "format"}


def is_early(folder: Path) -> bool:
    """Return whether a folder holds an adapter as early versions wrote it, and no other."""
    early = (folder / EARLY_CONFIG_FILE).is_file()
    return early and not (folder / ADAPTER_CONFIG_FILE).exists()


def load_early(folder: Path) -> tuple[dict[str, Any], Path]:
    """Return the fields of an early adapter's config, and its tensor file.

    Raises:
        UserError: if a file is missing or damaged, a value is wrong, or the two do not have the
            same layers.
    """
    _note(folder)
    file = folder / EARLY_CONFIG_FILE
    value = read_json(file)
    if not isinstance(value, dict) or value.get("format") != _FORMAT:
        raise UserError(f"adapter must have format {_FORMAT}; got {file}")
    if value.keys() != _FIELDS:
        raise UserError(
            f"{EARLY_CONFIG_FILE} must have the fields {', '.join(sorted(_FIELDS))}; got "
            f"{key_list(value, 12)} in {folder}"
        )
    blocks, dropout = value["num_blocks"], value["dropout"]
    rules = {
        "base_model must be text": isinstance(value["base_model"], str),
        "base_fingerprint must be text": isinstance(value["base_fingerprint"], str),
        "num_blocks must be an integer from 1 for each layer": isinstance(blocks, dict)
        and all(type(number) is int and number >= 1 for number in blocks.values()),
        "dropout must be from 0 to 1": type(dropout) in (int, float) and 0 <= dropout < 1,
    }
    if broken := [rule for rule, holds in rules.items() if not holds]:
        raise UserError(f"{broken[0]}; got another value in {file}")
    path = folder / EARLY_TENSOR_FILE
    wanted, got = {f"{name}.delta" for name in blocks}, tensor_shapes(path).keys()
    missing, unknown = sorted(wanted - got), sorted(got - wanted)
    if missing or unknown:
        raise UserError(
            f"{EARLY_TENSOR_FILE} must have exactly the deltas of {EARLY_CONFIG_FILE}; got "
            f"{len(missing)} missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]} in "
            f"{folder}"
        )
    return {name: value[name] for name in _FIELDS - {"format"}}, path


def convert(old: Path, new: Path) -> None:
    """Write an adapter of an early version in the present form, with the JSON files beside it.

    Args:
        old: an adapter or a checkpoint; stays as it is.
        new: a folder that does not exist.

    Raises:
        UserError: if ``old`` is no adapter of an early version or is damaged, or ``new`` exists.
    """
    from diablo_ds.adapter.storage import load_adapter, save_adapter  # which needs this module

    if not is_early(old):
        raise UserError(f"OLD must be an adapter with a file {EARLY_CONFIG_FILE}; got {old}")
    if new.exists():
        raise UserError(f"NEW must be a folder that does not exist; got {new}")
    files = old.glob("*.json") if kind_of(old) is Kind.ADAPTER else ()
    beside = {path.name: read_json(path) for path in files if path.name != EARLY_CONFIG_FILE}
    save_adapter(new, *load_adapter(old), beside)


@functools.cache
def _note(folder: Path) -> None:
    logger.warning(
        f"Note: {folder} holds an adapter in the form of early versions, which the next release "
        "will not read; to write it in the present form: "
        f"python -m diablo_ds.adapter.early_format {folder} NEW"
    )


def main(arguments: list[str]) -> None:
    """Convert an adapter: the program."""
    if len(arguments) != 2:
        sys.exit("usage: python -m diablo_ds.adapter.early_format OLD NEW")
    try:
        convert(*map(Path, arguments))
    except (UserError, OSError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
