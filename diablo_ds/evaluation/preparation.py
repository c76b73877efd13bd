"""The start of an evaluation: everything that can be wrong is checked before a model is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diablo_ds.config.choices import AUTO, PLAIN
from diablo_ds.errors import UserError
from diablo_ds.evaluation.asking import Encoder
from diablo_ds.evaluation.folder import FORMAT, Record, check_same, read_record
from diablo_ds.evaluation.inputs import TaskInput, base_name, read_inputs
from diablo_ds.evaluation.items import GENERATION, LOSS, Item
from diablo_ds.evaluation.models import Models, open_models
from diablo_ds.evaluation.options import EvaluateOptions
from diablo_ds.evaluation.prompts import NO_PROMPT, choose_task_form
from diablo_ds.evaluation.sandbox.walls import Walls, check_walls
from diablo_ds.evaluation.tasks import MATCHES, OWN_DATA
from diablo_ds.files.layout import Kind, kind_of
from diablo_ds.generation.prompts import PromptForm, check_template
from diablo_ds.model.finding import find_model, fingerprint
from diablo_ds.ranks import distributed
from diablo_ds.ranks.log import logger

Forms = dict[str, dict[str, PromptForm]]
"""The forms of prompts by model and task."""


@dataclass
class Evaluation:
    """All parts of an evaluation, checked."""

    options: EvaluateOptions
    inputs: list[TaskInput]
    models: Models
    encoder: Encoder
    forms: Forms
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
    forms = distributed.on_every_rank(lambda: _choose_forms(options, inputs, models))
    answers = distributed.on_every_rank(lambda: _check_prompts(inputs, models, encoder, forms))
    record = _record(options, inputs, models, forms) | {
        "settings": options.as_json(),
        "working_folder": os.getcwd(),
        "answers": answers,
    }
    if old is not None:
        check_same(old, record, options.output)
    return Evaluation(options, inputs, models, encoder, forms, walls, judge, record)


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


def _choose_forms(options: EvaluateOptions, inputs: Sequence[TaskInput], models: Models) -> Forms:
    """Choose the form of prompts of each model for each task.

    A base, or a merged model, of which no training is known, is asked as the adapters are, where
    these agree: then all models answer the same prompts.
    """
    forms: Forms = {name: {} for name in models.names}
    asked = [given for given in inputs if LOSS not in given.asks]
    for given in asked:

        def choose(name: str, given: TaskInput = given) -> PromptForm:
            return choose_task_form(
                given.task,
                options.template,
                models.run_config(name),
                models.tokenizer(name),
                options.control_tokens,
            )

        of_adapters = {
            name: choose(name) for name in models.names if models.adapter(name) is not None
        }
        agreed = {
            form._replace(origin="as the adapters are asked") for form in of_adapters.values()
        }
        for name in models.names:
            form = of_adapters.get(name) or choose(name)
            if name not in of_adapters and len(agreed) == 1:
                (common,) = agreed
                if common.text != form.text:
                    form = common
                    check_template(form.template, models.tokenizer(name))
            forms[name][given.name] = form
    is_plain = any(
        form.template == PLAIN for of_model in forms.values() for form in of_model.values()
    )
    if options.control_tokens != AUTO and asked == inputs and not is_plain:
        raise UserError(
            f"control_tokens needs the template {PLAIN}, as text of others always stays text; got "
            f"control_tokens={options.control_tokens!r}, and no task with that template"
        )
    return forms


def _check_prompts(
    inputs: Sequence[TaskInput], models: Models, encoder: Encoder, forms: Forms
) -> dict[str, dict[str, int]]:
    """Encode all prompts, and tell the user how; return the number of answers of each model."""
    answers: dict[str, dict[str, int]] = {name: {} for name in models.names}
    for given in inputs:
        by_form: dict[str, list[str]] = {}
        for name in models.names:
            form = forms[name].get(given.name, NO_PROMPT)
            items = encoder.items(name, given, form, frozenset())
            answers[name][given.name] = len(items)
            by_form.setdefault(f"template {form.text}, {form.origin}", []).append(name)
            if LOSS not in given.asks or name == models.names[0]:
                _say_truncated(name, given, items)
        if LOSS in given.asks:
            for line in encoder.examples(models.names[0], given).describe().splitlines():
                logger.info(f"{given.name}: {line}")
            continue
        if given.note:
            logger.info(f"{given.name}: {given.note}")
        for text, names in by_form.items():
            logger.info(f"{given.name}: {text} ({', '.join(names)})")
    return answers


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
    options: EvaluateOptions, inputs: Sequence[TaskInput], models: Models, forms: Forms
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
            values["control_tokens"] = options.control_tokens
        if base_name(given.task) == OWN_DATA:
            values["match"] = options.match or MATCHES[0]
        tasks[given.name] = values
    judge = fingerprint(find_model(options.judge)) if options.judge else ""
    return {
        "format": FORMAT,
        "precision": models.precision,
        "judge": judge,
        "models": {
            name: {
                "weights": models.digest(name),
                "template": {task: form.text for task, form in forms[name].items()},
            }
            for name in models.names
        },
        "tasks": tasks,
    }
