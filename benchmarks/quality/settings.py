"""The study of a folder: made once for each device, and kept, so that a later call continues it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.quality.sizes import LADDERS, amounts
from benchmarks.quality.spec import TARGETS
from benchmarks.quality.study import Amounts, Study
from diablo_ds.adapter.targets import select_targets
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_json, write_json
from diablo_ds.model.base import read_base
from diablo_ds.model.finding import find_model

FILE = "study.json"


def device_name() -> str:
    """Return "cpu", or the name of the GPU."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"


def load_studies(folder: Path) -> dict[str, Study]:
    """Return the studies of a folder, by device.

    Raises:
        UserError: if the file is not one of this program.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    values = read_json(path)
    try:
        return {device: Study.from_json(study) for device, study in values.items()}
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} must be a study of this program; got {error!r}") from None


def save_study(folder: Path, study: Study) -> None:
    """Keep a study beside those of other devices."""
    studies = load_studies(folder) | {study.device: study}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, {device: one.to_json() for device, one in studies.items()})


def new_study(model: str, precision: str) -> Study:
    """Return a study of a model on this machine, with the smallest amounts.

    Args:
        model: "default", or a folder.
        precision: "fp32" or "bf16".

    Raises:
        UserError: if there is no such model, or it has no default targets.
    """
    base = read_base(find_model(model))
    widths: dict[str, tuple[tuple[int, int], ...]] = {}
    for name, targets in TARGETS.items():
        try:
            layers = select_targets(base.shapes, targets, model_type=base.model_config.model_type)
        except UserError:
            if name == "default":
                raise
            continue  # a family with other names of layers
        widths[name] = tuple((layer.in_features, layer.out_features) for layer in layers.values())
    device = device_name()
    kind = "cpu" if device == "cpu" else "cuda"
    study = Study(device, precision, widths, amounts(device, LADDERS[kind][0]), model)
    if kind != "cpu":
        return study
    # So few commonsense rows teach the form of the answer only: every method's loss falls from 4.0
    # to 0.18, and the accuracy stays. GSM8K's short rows have 65 targets each instead of 5.
    return dataclasses.replace(study, batches=(8, 32, 64), data="gsm8k", max_length=152)


def check_same(study: Study, model: str | None, precision: str | None) -> Study:
    """Return the kept study if the options agree with it.

    Raises:
        UserError: if an option was given that differs.
    """
    given = {"model": model, "precision": precision}
    for name, value in given.items():
        kept = getattr(study, name)
        if value is not None and value != kept:
            raise UserError(
                f"{name} must stay that of the folder's study; got {name}={value}, but {kept} "
                "there; leave the option out, or give another --output"
            )
    return study


def parse_amounts(texts: Sequence[str]) -> dict[str, int]:
    """Return fields of `Amounts` from texts NAME=N.

    Raises:
        UserError: if a name is unknown, or a number is none.
    """
    known = [field.name for field in dataclasses.fields(Amounts)]
    found = {}
    for text in texts:
        name, _, number = text.partition("=")
        if name not in known or not number.isdecimal():
            raise UserError(
                f"an amount must be NAME=N with a name of {', '.join(known)}; got {text}"
            )
        least = 0 if name == "final_questions" else 1
        if int(number) < least:
            raise UserError(f"{name} must be at least {least}; got {text}")
        found[name] = int(number)
    return found


def with_amounts(study: Study, num_examples: int | None, fixed: Mapping[str, int]) -> Study:
    """Return the study with other amounts; what was trained with the old ones is kept apart.

    Args:
        study: the study.
        num_examples: of the sweeps' trainings, on which those of other parts depend.
        fixed: values of fields.
    """
    changed: dict[str, int] = {}
    if num_examples is not None:
        new = amounts(study.device, num_examples)
        names = ("num_examples", "batch_examples", "final_examples")
        changed = {name: getattr(new, name) for name in names}
    return dataclasses.replace(
        study, amounts=dataclasses.replace(study.amounts, **(changed | dict(fixed)))
    )
