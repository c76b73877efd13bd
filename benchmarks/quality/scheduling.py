"""Trains what the parts still want, on several workers, until nothing is left or time is up."""

from __future__ import annotations

import datetime
import math
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.quality.arms import FAILED, Findings
from benchmarks.quality.parts import wanted_of_all
from benchmarks.quality.progress import Progress
from benchmarks.quality.records import Records
from benchmarks.quality.sizes import Estimates
from benchmarks.quality.spec import Spec
from benchmarks.quality.study import Study
from benchmarks.quality.workers import Message, Worker

MAX_FAILURES_IN_A_ROW = 3
"""After as many, the cause is not the trainings."""
_LIMIT_FACTOR, _LEAST_LIMIT_S = 20.0, 1800.0
"""A training that takes as much longer than expected, and at least this long, hangs."""
_POLL_S = 0.5
StartWorker = Callable[[int, "queue.Queue[Message]"], Worker]


class BrokenStudyError(RuntimeError):
    """Every training fails; the message holds the last one's reason."""


@dataclass
class Task:
    """A training under way."""

    part: str
    spec: Spec
    planned_s: float
    since: float = field(default_factory=time.monotonic)
    is_hanging: bool = False

    @property
    def limit_s(self) -> float:
        """Seconds after which it is ended."""
        return max(_LEAST_LIMIT_S, _LIMIT_FACTOR * self.planned_s)


class Scheduler:
    """Keeps workers busy with what the parts want.

    Args:
        study: its settings.
        records: where records go.
        findings: the same records, found by spec.
        start_worker: starts the process of a slot.
        slots: how many workers train at the same time.
        budget_s: seconds in which trainings are started that will fit into them.
    """

    def __init__(
        self,
        study: Study,
        records: Records,
        findings: Findings,
        start_worker: StartWorker,
        slots: int,
        budget_s: float,
    ) -> None:
        self.study, self._records, self._findings = study, records, findings
        self._start_worker = start_worker
        self._deadline = time.monotonic() + budget_s
        self._messages: queue.Queue[Message] = queue.Queue()
        self._workers: list[Worker | None] = [None] * slots
        self._tasks: dict[int, Task] = {}
        self._num_failures_in_a_row = 0
        self.progress = Progress(slots, self._deadline)

    def train_parts(self, parts: Sequence[str]) -> bool:
        """Train what parts want; return whether nothing is left.

        Raises:
            BrokenStudyError: if several trainings fail one after the other.
        """
        return self._train(lambda: wanted_of_all(parts, self.study, self._findings))

    def train_one(self, part: str, spec: Spec) -> bool:
        """Train one spec unless that has been done; return whether it is done.

        Raises:
            BrokenStudyError: see `train_parts`.
        """
        return self._train(lambda: [] if self._findings.is_settled(spec) else [(part, spec)])

    def close(self) -> None:
        """End the workers; what is under way is lost."""
        self.progress.close()
        for slot, worker in enumerate(self._workers):
            if worker is not None:
                worker.kill() if slot in self._tasks else worker.close()

    def _train(self, list_wanted: Callable[[], list[tuple[str, Spec]]]) -> bool:
        pending = self._fill(list_wanted())
        while self._tasks:
            self.progress.draw()
            try:
                message = self._messages.get(timeout=_POLL_S)
            except queue.Empty:
                self._end_hanging()
                continue
            if self._take(message):
                pending = self._fill(list_wanted())
        return not pending

    def _fill(self, wanted: list[tuple[str, Spec]]) -> list[tuple[str, Spec]]:
        """Give idle workers the first trainings that fit into the time left; return the others."""
        under_way = {task.spec for task in self._tasks.values()}
        pending = [(part, spec) for part, spec in wanted if spec not in under_way]
        estimates = Estimates(self._findings)
        seconds = {spec: estimates.seconds(spec) for _, spec in pending}
        for slot in range(len(self._workers)):
            left_s = self._deadline - time.monotonic()
            fitting = [pair for pair in pending if seconds[pair[1]] <= left_s]
            if slot in self._tasks or not fitting:
                continue
            part, spec = fitting[0]
            pending.remove(fitting[0])
            self._begin(slot, Task(part, spec, seconds[spec]))
        self.progress.plan(len(pending), math.fsum(seconds[spec] for _, spec in pending))
        return pending

    def _begin(self, slot: int, task: Task) -> None:
        worker = self._workers[slot]
        if worker is None:
            worker = self._workers[slot] = self._start_worker(slot, self._messages)
        self._tasks[slot] = task
        self.progress.begin(slot, task.part, task.spec, task.planned_s)
        worker.train(task.spec)

    def _take(self, message: Message) -> bool:
        """Take a worker's message; return whether a training has ended."""
        if message.worker not in self._workers:
            return False  # of a process that was ended
        slot = self._workers.index(message.worker)
        content = message.content
        if content is None:
            self._workers[slot] = None
            message.worker.kill()  # what it left behind
            if slot not in self._tasks:
                return False
            task = self._tasks[slot]
            too_long = f"it took more than {task.limit_s:.0f} s"
            self._fail(slot, too_long if task.is_hanging else message.worker.why_ended())
            return True
        if slot not in self._tasks:
            return False
        if "progress" in content:
            self.progress.step(slot, content["progress"]["step"], content["progress"]["num_steps"])
            return False
        if "error" in content:
            self._fail(slot, content["error"], is_refused=True)
            return True
        if "record" in content:
            self._end(slot, content["record"])
            return True
        return False

    def _end_hanging(self) -> None:
        for slot, task in self._tasks.items():
            worker = self._workers[slot]
            if worker is not None and time.monotonic() - task.since > task.limit_s:
                task.is_hanging = True
                worker.kill()  # then a message says that it has ended

    def _fail(self, slot: int, reason: str, *, is_refused: bool = False) -> None:
        task = self._tasks[slot]
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._end(
            slot,
            {
                "key": task.spec.key(),
                "spec": task.spec.to_json(),
                "status": FAILED,
                "reason": reason,
                "is_refused": is_refused,
                "date": now,
            },
        )

    def _end(self, slot: int, values: Mapping[str, Any]) -> None:
        task = self._tasks.pop(slot)
        record = {**values, "part": task.part, "device": self.study.device}
        self._records.add(record)
        self._findings.add(record)
        self.progress.end(slot, record)
        if record["status"] != FAILED:
            self._num_failures_in_a_row = 0
            return
        self._num_failures_in_a_row += 1
        if self._num_failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise BrokenStudyError(
                f"{self._num_failures_in_a_row} trainings failed one after the other; the last "
                f"one: {record['reason']}"
            )
