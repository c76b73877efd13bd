"""What SLURM is asked for: nodes, ranks, limits, signals, and an array's values."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import setting, settings_of
from diablo_ds.errors import UserError
from diablo_ds.launcher.quoting import check_word, sbatch_option
from diablo_ds.launcher.rank_settings import RankSettings, count_ranks
from diablo_ds.ranks.environment import secret_assignment

SIGNAL_EARLY_S = 60
"""By so much SLURM may send its warning ahead of the time that was asked for (man sbatch)."""
_TIME_OPTIONS = re.compile(r"--(time|signal)(?![-\w])|-t")
_MEMORY = re.compile(r"[0-9]+[KMGT]?B?", re.IGNORECASE)
_NODES = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


@dataclass(frozen=True, kw_only=True)
class Job(RankSettings):
    """What SLURM is asked for.

    Raises:
        UserError: if the parts do not go together.
    """

    name: str = setting("diablo", "Job name.", "job")
    nodes: str = setting("1", "Nodes of the job: a number, or a range such as 2-4.", "job")
    gpus_per_node: int | None = setting(
        None, "GPUs of each node, one rank on each.", "job", minimum=1
    )
    ranks_per_node: int | None = setting(None, "Ranks on each node, on CPUs.", "job", minimum=1)
    cpus_per_task: int | None = setting(
        None,
        "CPUs of each node, for all its ranks.",
        "job",
        minimum=1,
        shown_default="in proportion to the GPUs",
    )
    mem: str = setting(
        "",
        "Memory of each node, in one of SLURM's forms, e.g. 500G; 0 for all of it.",
        "job",
        shown_default="in proportion to the GPUs",
    )
    exclusive: bool = setting(False, "Give the job its nodes for itself.", "job")
    partition: str = setting("", "Partition.", "job")
    account: str = setting("", "Account.", "job")
    time: str = setting("", "Time limit in one of SLURM's forms, e.g. 24:00:00.", "job")
    warning_s: int = setting(
        120,
        "Seconds before the time limit at which the run stops and saves; a micro batch and a save "
        "must fit.",
        "job",
        minimum=1,
    )
    chain: int = setting(
        1, "Jobs in a row, each continuing where the one before stopped.", "job", minimum=1
    )
    sweep: tuple[str, ...] = setting(
        (), "setting=value,value,...: an array job with one run for each value.", "job"
    )
    sbatch_option: tuple[str, ...] = setting(
        (), "Further option for sbatch, e.g. --qos=long; repeatable.", "job"
    )
    setup: tuple[str, ...] = setting(
        (),
        "Shell line before the run, e.g. `module load cuda`; repeatable.",
        "environment",
    )

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if count_ranks(self.gpus_per_node, self.ranks_per_node) is None:
            raise UserError("give gpus_per_node, or ranks_per_node for ranks on CPUs; got neither")
        for name in ("partition", "account", "time"):
            check_word(name, getattr(self, name))
        if self.mem and not _MEMORY.fullmatch(self.mem):
            raise UserError(
                f"mem must be a number with K, M, G or T, or without for MiB; got mem={self.mem!r}"
            )
        if not self.name.strip():
            raise UserError(f"name must not be empty; got name={self.name!r}")
        self._check_time()
        for option in self.sbatch_option:
            sbatch_option(option)
            if _TIME_OPTIONS.match(option):
                raise UserError(
                    "time limit and signal of a job must be given by --time and --warning-s, which "
                    f"are checked together; got sbatch_option={option!r}"
                )
        self._check_secrets()
        low, high = self.node_range()
        if not 1 <= low <= high:
            raise UserError(f"nodes must be a number or a range; got nodes={self.nodes!r}")
        if len(self.sweep) > 1:
            raise UserError(f"sweep goes over one setting; got sweep={', '.join(self.sweep)}")
        if self.sweep and self.master_port:
            raise UserError(
                "the jobs of an array must choose their ports, as they may share a node; got "
                f"sweep={self.sweep[0]}, master_port={self.master_port}; leave master_port out"
            )
        if self.sweep and self.chain > 1:
            raise UserError(
                f"give sweep or chain, not both; got sweep={self.sweep[0]}, chain={self.chain}"
            )

    def _check_secrets(self) -> None:
        """Raise UserError where a batch script would hold a secret."""
        assigning = {
            "setup": self.setup,
            "sbatch_option": [o for o in self.sbatch_option if o.startswith("--export=")],
            "wrap": [word for word in self.wrap.split() if not word.startswith("-")],
        }
        for setting_name, texts in assigning.items():
            if name := next(filter(None, map(secret_assignment, texts)), ""):
                raise UserError(
                    f"{setting_name} must not hold a secret, since batch scripts are kept; got one "
                    f"that sets {name}; export it where you submit, and give --env {name}"
                )

    def _check_time(self) -> None:
        """Raise UserError where a job would be told to stop as soon as it has started."""
        limit_s = time_limit_s(self.time) if self.time else 0
        if 0 < limit_s <= self.warning_s + SIGNAL_EARLY_S:
            raise UserError(
                f"time must be longer than warning_s, by more than the {SIGNAL_EARLY_S} s that "
                f"SLURM may warn early; got time={self.time!r}, warning_s={self.warning_s}: the "
                "job would stop, save and go back into the queue without end"
            )

    @property
    def slots(self) -> int:
        """Ranks on each node."""
        return count_ranks(self.gpus_per_node, self.ranks_per_node) or 1

    def node_range(self) -> tuple[int, int]:
        """Return the least and the most nodes.

        Raises:
            UserError: if ``nodes`` is neither a number nor a range.
        """
        match = _NODES.fullmatch(self.nodes)
        if match is None:
            raise UserError(f"nodes must be a number or a range; got nodes={self.nodes!r}")
        return int(match[1]), int(match[2] or match[1])

    def sweep_runs(self, run_config: RunConfig) -> tuple[str, list[str], list[RunConfig]]:
        """Return the field that an array goes over, its values, and the run config of each.

        Without a sweep these are no field, no values, and the run config itself.

        Raises:
            UserError: if there is no such field, or a value is not one of its.
        """
        if not self.sweep:
            return "", [], [run_config]
        name, _, text = self.sweep[0].partition("=")
        field = name.replace("-", "_")
        # An array hands each job its value as the word after an option, and flags take none.
        known = {s.name: s for s in settings_of(RunConfig) if s.kind is not bool}
        if field not in known or not text or field == "output":
            raise UserError(
                "sweep must read `setting=value,value,...` with a setting of the run config that "
                f"takes a value, and not output; got sweep={self.sweep[0]!r}"
            )
        values = text.split(",")
        runs = []
        for value in values:
            try:
                parsed = (value,) if known[field].is_repeatable else known[field].kind(value)
                changes: dict[str, Any] = {field: parsed}
                runs.append(replace(run_config, **changes))
            except ValueError as error:
                raise UserError(f"sweep: {error}") from None
        return field, values, runs


def time_limit_s(text: str) -> int:
    """Return a time limit in seconds; 0 for none.

    Args:
        text: in one of sbatch's forms: minutes, minutes:seconds, hours:minutes:seconds, days-hours,
            days-hours:minutes, days-hours:minutes:seconds, or UNLIMITED.

    Raises:
        UserError: if it has none of these forms.
    """
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return 0
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    numbers = [days, *parts] if dash else parts
    if len(parts) > 3 or not all(re.fullmatch(r"[0-9]{1,9}", number) for number in numbers):
        raise UserError(
            "time must be minutes, hours:minutes:seconds, days-hours or another form of sbatch's; "
            f"got time={text!r}"
        )
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    seconds = sum(int(part) * unit for part, unit in zip(parts, units, strict=False))
    return seconds + 86400 * int(days or 0)
