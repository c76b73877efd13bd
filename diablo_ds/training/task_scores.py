"""Task scores of the model that is trained, without a trace in its training."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping

from diablo_ds.evaluation.items import (
    LOSS,
    Item,
    Key,
    Result,
    ask,
    asks_of,
    values_by_metric,
    verdict_of,
)
from diablo_ds.evaluation.sandbox.program import Limits
from diablo_ds.evaluation.sandbox.running import check_programs
from diablo_ds.evaluation.sandbox.walls import Walls, check_walls
from diablo_ds.evaluation.scores import PASSED, loss_scores
from diablo_ds.evaluation.statistics import Estimate, estimate
from diablo_ds.evaluation.task import Task
from diablo_ds.model.requests import Generation, LossResult
from diablo_ds.ranks import distributed
from diablo_ds.ranks.heartbeat import heart
from diablo_ds.ranks.log import logger
from diablo_ds.ranks.stopping import StopAgreed
from diablo_ds.training.answering import TrainedModel
from diablo_ds.training.task_inputs import TRAINED, TaskInput, TaskInputs
from diablo_ds.zero.engine import Engine

_JUDGED_AT_ONCE = 16
"""Answers between two signs of life, at which the ranks also ask whether to stop."""
Scores = Mapping[str, Estimate]


class TaskScores:
    """Asks the model of a run the questions of its tasks.

    Args:
        inputs: the tasks.
        engine: the run's.
        is_stopping: tells whether this rank was asked to stop.
        walls: around programs; None on ranks other than 0, and where none are run.
    """

    def __init__(
        self,
        inputs: TaskInputs,
        engine: Engine,
        is_stopping: Callable[[], bool],
        walls: Walls | None = None,
    ) -> None:
        self.inputs = inputs.tasks
        self._engine, self._is_stopping, self._walls = engine, is_stopping, walls
        self._model = TrainedModel(engine, inputs.tokenizer, is_stopping)

    def score(self, given: TaskInput, on_progress: Callable[[int], object]) -> tuple[Scores, float]:
        """Return the scores of a task by metric, and the seconds that it took.

        Collective: every rank must call this.

        Args:
            given: the task.
            on_progress: called with the number of answers that there are.

        Raises:
            StopAgreed: on all ranks, soon after one of them was asked.
            UserError, OSError: if an answer cannot be judged; on every rank.
        """
        start = time.perf_counter()
        results: dict[Key, Result] = {}

        def keep(item: Item, result: Result) -> None:
            results[item.key] = result
            on_progress(len(results))

        with self._model.answering("tasks") as engine:
            ask(engine, given.items, keep)
        scores = self._scores(given, results)
        return scores, time.perf_counter() - start

    def _scores(self, given: TaskInput, results: Mapping[Key, Result]) -> Scores:
        task = given.task
        if LOSS in asks_of(task):
            losses = [results[item.key] for item in given.items]
            known = [loss for loss in losses if isinstance(loss, LossResult) and loss.num_targets]
            return loss_scores(task, [k.nats for k in known], [k.num_targets for k in known])
        verdicts = self._judge(given, results)
        found = values_by_metric(
            task, asks_of(task), TRAINED, given.questions, verdicts.__getitem__
        )
        return {metric: estimate(list(values.values())) for metric, values in found.items()}

    def _judge(
        self, given: TaskInput, results: Mapping[Key, Result]
    ) -> dict[Key, Mapping[str, float]]:
        """Return the scores of each answer; rank 0 judges them. Collective."""
        verdicts: dict[Key, Mapping[str, float]] = {}
        for start in range(0, len(given.items), _JUDGED_AT_ONCE):
            part = given.items[start : start + _JUDGED_AT_ONCE]
            heart.beat("judging")
            verdicts |= distributed.on_main_process(
                functools.partial(_judge_part, given.task, part, results, self._walls)
            )
            asked = distributed.gather_floats([float(self._is_stopping())], self._engine.device)
            if any(row[0] for row in asked):
                raise StopAgreed
        return verdicts


def open_task_scores(
    inputs: TaskInputs | None,
    engine: Engine,
    is_stopping: Callable[[], bool],
    *,
    weak_sandbox: bool,
) -> TaskScores | None:
    """Return what asks a run's tasks; None for a run without. Collective."""
    if inputs is None:
        return None
    walls = None
    if inputs.runs_code:
        walls = distributed.on_main_process(lambda: check_walls(may_be_weak=weak_sandbox))
        logger.info(walls.describe())
    return TaskScores(inputs, engine, is_stopping, walls)


def _judge_part(
    task: Task, items: tuple[Item, ...], results: Mapping[Key, Result], walls: Walls | None
) -> dict[Key, Mapping[str, float]]:
    if task.program is None:
        verdicts = {item.key: verdict_of(task, item, results[item.key]) for item in items}
        return {key: dict(v.scores) for key, v in verdicts.items() if v is not None}
    assert walls is not None
    programs = []
    for item in items:
        result = results[item.key]
        assert item.question is not None
        assert isinstance(result, Generation)
        programs.append(task.program(item.question, result.text))
    outcomes = check_programs(programs, walls, Limits())
    pairs = zip(items, outcomes, strict=True)
    return {item.key: {PASSED: float(outcome.passed)} for item, outcome in pairs}
