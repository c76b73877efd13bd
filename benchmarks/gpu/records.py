"""Cases of a measurement, and the file that keeps what each of them found."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.json_lines import append_line, read_lines
from diablo_ds.files.atomic import write_text
from diablo_ds.ranks.software import code_digest

_PACKAGES = ("torch", "triton", "deepspeed", "transformers", "peft", "liger-kernel")
_WHERE = ("card", "versions", "source")
_REASON_CHARACTERS = 2000


class Case(NamedTuple):
    """One measurement."""

    name: str
    run: Callable[[], dict[str, Any]]
    """Returns figures by name, as JSON can hold them; what it raises is recorded as the reason."""
    limit_s: float = 60.0
    """It is ended after so many seconds."""
    alone: bool = False
    """Whether the next case needs a new process."""


@cache
def where() -> dict[str, Any]:
    """Return card, versions and a digest of this package's source; or the processor's name."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    has_gpu = torch.cuda.is_available()
    card = torch.cuda.get_device_name(0) if has_gpu else f"CPU, {platform.machine()}"
    return {"card": card, "versions": versions, "source": code_digest()[:12]}


@dataclass(frozen=True)
class Records:
    """A file of JSON lines; each is written the moment something is known."""

    path: Path

    def all(self) -> list[dict[str, Any]]:
        """Return every line, in the order in which they were written."""
        return read_lines(self.path) if self.path.is_file() else []

    def ended(self, stage: str) -> dict[str, dict[str, Any]]:
        """Return the last line of each case of a stage that was measured or has failed."""
        lines = [r for r in self.all() if r["stage"] == stage and r["status"] != "started"]
        return {line["case"]: line for line in lines}

    def measured(self, stage: str) -> dict[str, dict[str, Any]]:
        """Return the figures of each case of a stage that was measured."""
        ended = self.ended(stage).items()
        return {name: r["figures"] for name, r in ended if r["status"] == "measured"}

    def unfinished(self, stage: str) -> dict[str, Any] | None:
        """Return the line of the case that was started last and has not ended, if there is one."""
        of_stage = [r for r in self.all() if r["stage"] == stage]
        return of_stage[-1] if of_stage and of_stage[-1]["status"] == "started" else None

    def forget_failed(self) -> None:
        """Remove the lines of what failed, so that it is measured again."""
        kept = [json.dumps(record) for record in self.all() if record["status"] != "failed"]
        write_text(self.path, "".join(f"{line}\n" for line in kept))

    def start(self, stage: str, case: str, limit_s: float) -> None:
        """Note that a case begins."""
        self._write(stage, case, "started", limit_s=limit_s)

    def add(self, stage: str, case: str, figures: dict[str, Any]) -> None:
        """Note what a case found."""
        self._write(stage, case, "measured", figures=figures)

    def fail(
        self, stage: str, case: str, reason: str, like: Mapping[str, Any] | None = None
    ) -> None:
        """Note why a case found nothing.

        Args:
            stage: its stage.
            case: its name.
            reason: the reason; of a long one the end is kept.
            like: a line of the same process, where the device must not be asked.
        """
        known = None if like is None else {key: like[key] for key in _WHERE if key in like}
        self._write(stage, case, "failed", known, reason=reason[-_REASON_CHARACTERS:])

    def _write(
        self,
        stage: str,
        case: str,
        status: str,
        known: dict[str, Any] | None = None,
        **values: Any,
    ) -> None:
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        record = {"stage": stage, "case": case, "status": status, **values, "time": now}
        record |= where() if known is None else known
        append_line(self.path, record)
