"""The start of an evaluation: everything that can be wrong is checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diablo_ds.config.choices import AUTO
from diablo_ds.errors import UserError
from diablo_ds.evaluation.asking import Encoder
from diablo_ds.evaluation.folder import FORMAT, Record, check_same, read_record
from diablo_ds.evaluation.inputs import TaskInput, base_name, read_inputs
from diablo_ds.evaluation.items import GENERATION, LOSS, Item
from diablo_ds.evaluation.models import Models, open_models
from diablo_ds.evaluation.options import EvaluateOptions
from diablo_ds.evaluation.prompts import choose_task_template
from diablo_ds.evaluation.sandbox.walls import Walls, check_walls
from diablo_ds.evaluation.tasks import OWN_DATA
from diablo_ds.files.layout import Kind, kind_of
from diablo_ds.generation.prompts import check_template
from diablo_ds.model.finding import find_model, fingerprint
from diablo_ds.ranks import distributed
from diablo_ds.ranks.log import logger

Templates = dict[str, dict[str, tuple[str, str]]]
"""By model and task: the template of prompts, and where it is from."""


@dataclass
class Evaluation:
    """All parts of an evaluation, checked."""

    options: EvaluateOptions
    inputs: list[TaskInput]
    models: Models
    encoder: Encoder
    templates: Templates
    walls: Walls | None
    judge: Models | None
    record: Record


def prepare(options: EvaluateOptions) -> Evaluation:
    """Check everything that can be wrong. Collective."""
    old = distributed.on_main_process(lambda: read_record(options.output))
    inputs = distributed.on_every_rank(lambda: read_inputs(options))
    distributed.check_same({f"data of {given.name}": given.sha256 for given in inputs})
    walls = None
    if any(given.task.runs_code for given in inputs):
        walls = distributed.on_main_process(lambda: check_walls(may_be_weak=options.weak_sandbox))
        logger.info(walls.describe())
    models = _open(options, old)
    for note in models.notes:
        logger.info(note)
    judge = _open_judge(options, models)
    encoder = Encoder(models, options)
    templates = distributed.on_every_rank(lambda: _choose_templates(options, inputs, models))
    distributed.on_every_rank(lambda: _check_prompts(inputs, models, encoder, templates))
    record = _record(options, inputs, models, templates)
    if old is not None:
        check_same(old, record, options.output)
    return Evaluation(options, inputs, models, encoder, templates, walls, judge, record)


def _open(options: EvaluateOptions, old: Record | None) -> Models:
    for path in options.merged:
        if kind_of(Path(path).expanduser()) is not Kind.BASE_MODEL:
            found = kind_of(Path(path).expanduser()).value
            raise UserError(f"merged must be a folder of a merged model; got {path}, {found}")
    for path in options.adapter:
        if kind_of(Path(path).expanduser()) is Kind.BASE_MODEL:
            raise UserError(
                f"adapter must not be a model's folder; got {path}; give it by --merged"
            )
    precision = options.precision
    if precision == AUTO and old is not None:  # what was chosen may depend on the machine's load
        precision = old.get("precision", AUTO)
    return open_models(
        base=options.base,
        adapters=[Path(path) for path in (*options.adapter, *options.merged)],
        include_base=not options.skip_base,
        precision=precision,
        placement=options.placement,
        force=options.force,
    )


def _open_judge(options: EvaluateOptions, models: Models) -> Models | None:
    if not options.judge:
        return None
    return open_models(base=options.judge, precision=models.precision, placement=options.placement)


def _choose_templates(
    options: EvaluateOptions, inputs: Sequence[TaskInput], models: Models
) -> Templates:
    """Choose the template of each model for each task.

    A base, or a merged model, of which no training is known, is asked as the adapters are, where
    these agree: then all models answer the same prompts.
    """
    templates: Templates = {name: {} for name in models.names}
    for given in inputs:
        if LOSS in given.asks:
            continue
        of_adapters = {}
        for name in models.names:
            if models.adapter(name) is not None:
                found = choose_task_template(
                    given.task, options.template, models.run_config(name), models.tokenizer(name)
                )
                templates[name][given.name] = of_adapters[name] = found
        agreed = {template for template, _ in of_adapters.values()}
        for name in models.names:
            if name in of_adapters:
                continue
            tokenizer = models.tokenizer(name)
            template, origin = choose_task_template(given.task, options.template, None, tokenizer)
            if options.template == AUTO and len(agreed) == 1 and template not in agreed:
                (template,) = agreed
                check_template(template, tokenizer)
                origin = "as the adapters are asked"
            templates[name][given.name] = template, origin
    return templates


def _check_prompts(
    inputs: Sequence[TaskInput], models: Models, encoder: Encoder, templates: Templates
) -> None:
    for given in inputs:
        by_template: dict[str, list[str]] = {}
        for name in models.names:
            template, origin = templates[name].get(given.name, ("", ""))
            items = encoder.items(name, given, template, frozenset())
            by_template.setdefault(f"template {template}, {origin}", []).append(name)
            if LOSS not in given.asks or name == models.names[0]:
                _say_truncated(name, given, items)
        if LOSS in given.asks:
            for line in encoder.examples(models.names[0], given).describe().splitlines():
                logger.info(f"{given.name}: {line}")
            continue
        for text, names in by_template.items():
            logger.info(f"{given.name}: {text} ({', '.join(names)})")


def _say_truncated(model: str, given: TaskInput, items: Sequence[Item]) -> None:
    ids = list(dict.fromkeys(item.key.id for item in items if item.is_truncated))
    if ids:
        what = (
            "examples are cut at their end"
            if LOSS in given.asks
            else ("prompts are longer than the model takes, and cut at their beginning,")
        )
        shown = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
        whose = "" if LOSS in given.asks else f" of {model}"
        logger.warning(f"Warning: {given.name}: {len(ids)} {what}{whose}: {shown}")


def _record(
    options: EvaluateOptions, inputs: Sequence[TaskInput], models: Models, templates: Templates
) -> Record:
    tasks: dict[str, Any] = {}
    for given in inputs:
        task = given.task
        values: dict[str, Any] = {"version": task.version, "sha256": given.sha256}
        if GENERATION in given.asks:
            values |= {"max_new_tokens": task.max_new_tokens, "temperature": task.temperature}
            if task.temperature:
                values |= {"top_p": task.top_p, "seed": options.seed}
        if LOSS in given.asks:
            values |= {"max_length": options.max_length or 0, "template": options.template}
            values |= {"corpus": options.corpus, "column": list(options.column)}
        if options.match and base_name(given.task) == OWN_DATA:
            values["match"] = options.match
        tasks[given.name] = values
    judge = fingerprint(find_model(options.judge)) if options.judge else ""
    return {
        "format": FORMAT,
        "precision": models.precision,
        "judge": judge,
        "models": {
            name: {
                "weights": models.digest(name),
                "template": {task: chosen for task, (chosen, _) in templates[name].items()},
            }
            for name in models.names
        },
        "tasks": tasks,
    }
