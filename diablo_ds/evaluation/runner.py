"""An evaluation from its options to its results: check, ask, judge, compute, report."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch

from diablo_ds.evaluation.asking import row_of
from diablo_ds.evaluation.folder import own_folder
from diablo_ds.evaluation.inputs import TaskInput
from diablo_ds.evaluation.items import GENERATION, Item, Key, ask
from diablo_ds.evaluation.judging import judge_answers, judgements_left, run_programs
from diablo_ds.evaluation.options import EvaluateOptions
from diablo_ds.evaluation.predictions import Predictions, Row
from diablo_ds.evaluation.preparation import Evaluation, prepare
from diablo_ds.evaluation.prompts import NO_PROMPT
from diablo_ds.evaluation.report import report
from diablo_ds.evaluation.results import compute_results
from diablo_ds.ranks import distributed
from diablo_ds.ranks.cores import num_cores
from diablo_ds.ranks.log import logger, set_up_logging
from diablo_ds.ranks.progress import Progress


def evaluate(options: EvaluateOptions) -> str:
    """Evaluate models, or continue where an earlier call was interrupted.

    Collective: every rank must call this, after `start_ranks`.

    Returns:
        What a person is told: the table, and where the results are.

    Raises:
        UserError: if an option, file or model is wrong; before any model is loaded.
        OSError: if results cannot be written; those that were are kept.
    """
    evaluation = prepare(options)
    with contextlib.ExitStack() as resources:
        predictions = _own(evaluation, resources)
        _ask_all(evaluation, predictions)
        _judge_all(evaluation, predictions)
        return distributed.on_main_process(lambda: _finish(evaluation, predictions))


def start_ranks(options: EvaluateOptions) -> None:
    """Join the other ranks, if there are any, and let the log of rank 0 be seen."""
    if distributed.world_size() > 1:
        from diablo_ds.zero.joining import init_process_group

        init_process_group()
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(num_cores())
    set_up_logging(is_main_process=distributed.is_main_process())


def _own(evaluation: Evaluation, resources: contextlib.ExitStack) -> Predictions | None:
    """Make rank 0 the owner of the output folder. Collective.

    Returns:
        On rank 0 the rows so far.
    """
    options, opened = evaluation.options, list[Predictions]()

    def own() -> None:
        owner, predictions = own_folder(options.output, evaluation.record)
        resources.callback(owner.release)
        resources.callback(predictions.close)
        opened.append(predictions)

    distributed.on_main_process(own)
    return opened[0] if opened else None


# --- the models ----------------------------------------------------------------------------------


def _ask_all(evaluation: Evaluation, predictions: Predictions | None) -> None:
    """Put every question without an answer to its model. Collective."""
    known = distributed.on_main_process(
        lambda: set(predictions.rows) if predictions is not None else set()
    )
    models, inputs = evaluation.models, evaluation.inputs
    left = {
        (name, given.name): [
            item for item in _items(evaluation, name, given) if item.key not in known
        ]
        for name in models.names
        for given in inputs
    }
    total = sum(map(len, left.values()))
    if known:
        logger.info(f"Continuing: {len(known):,} answers are there, {total:,} are to come")
    with _progress("asking", total, "answers") as progress:
        for name in models.names:
            if not any(left[name, given.name] for given in inputs):
                continue
            progress.tell(f"loading {name}")
            with models.use(name) as loaded:
                for given in inputs:
                    progress.tell(f"{name}: {given.name}")
                    decode = loaded.tokenizer.encoder.decode

                    def take(
                        item: Item, result: Any, given: Any = given, decode: Any = decode
                    ) -> None:
                        if predictions is not None:
                            predictions.add(row_of(item, result, given, decode))
                            progress.advance()

                    ask(loaded.engine, left[name, given.name], take)
    models.close()
    if predictions is not None:
        predictions.sync()


def _progress(what: str, total: int, unit: str) -> Progress:
    return Progress(what, total, unit, is_shown=total > 0 and distributed.is_main_process())


def _items(evaluation: Evaluation, name: str, given: TaskInput) -> list[Item]:
    models = evaluation.models
    form = evaluation.forms[name].get(given.name, NO_PROMPT)
    return evaluation.encoder.items(name, given, form, models.end_ids(name))


def _judge_all(evaluation: Evaluation, predictions: Predictions | None) -> None:
    """Run programs, and ask the judge. Collective."""
    names, inputs = evaluation.models.names, evaluation.inputs
    coded = [given for given in inputs if given.task.runs_code]
    keys = {
        given.name: [
            Key(name, given.name, GENERATION, question.id, sample)
            for name in names
            for question in given.questions
            for sample in range(given.task.num_samples)
        ]
        for given in coded
    }
    if evaluation.walls is not None:
        rows = {} if predictions is None else predictions.rows
        total = sum("scores" not in rows.get(key, {}) for part in keys.values() for key in part)
        with _progress("running programs", total, "programs") as progress:
            for given in coded:
                progress.tell(given.name)
                run_programs(
                    given, keys[given.name], predictions, evaluation.walls, progress.advance
                )
    if evaluation.judge is not None:
        asked = distributed.on_main_process(
            lambda: judgements_left(inputs, names, predictions.rows) if predictions else []
        )
        with _progress("judging", len(asked), "judgements") as progress:

            def take(row: Row) -> None:
                if predictions is not None:
                    predictions.add(row)
                    progress.advance()

            if asked:
                judge_answers(evaluation.judge, asked, inputs, take)
        evaluation.judge.close()


# --- the end -------------------------------------------------------------------------------------


def _finish(evaluation: Evaluation, predictions: Predictions | None) -> str:
    """Compute and write the results on rank 0; return what a person is told."""
    assert predictions is not None
    inputs, models = evaluation.inputs, evaluation.models
    order = {
        name: place
        for names in (models.names, [given.name for given in inputs])
        for place, name in enumerate(names)
    }
    places = {
        (given.name, question.id): place
        for given in inputs
        for place, question in enumerate(given.questions)
    }

    def place(key: Key) -> tuple[Any, ...]:
        last = len(order)
        number = places.get((key.task, key.id), int(key.id) if key.id.isdecimal() else 0)
        return (
            order.get(key.task, last),
            key.task,
            order.get(key.model, last),
            key.model,
            key.kind,
            number,
            key.id,
            key.sample,
        )

    predictions.sort(place)
    results = compute_results(inputs, models.names, predictions.rows)
    settings = evaluation.options.as_json()
    run = {
        "precision": models.precision,
        "device": str(models.device),
        "world_size": distributed.world_size(),
        "placement": list(models.notes),
        "templates": {
            name: {task: form.text for task, form in chosen.items()}
            for name, chosen in evaluation.forms.items()
        },
        "models": {name: str(models.adapter(name) or models.folder(name)) for name in models.names},
    }
    return report(evaluation.options.output, results, inputs, models.names, settings, run)
