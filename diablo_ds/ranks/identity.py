"""Which rank of which run this process is: from the complete set of one launcher, or alone.

Every launcher has variables of its own, and shells, start-up files and batch jobs leave single ones
behind. Only this module decides what they mean. Only the standard library is used here, since a
guard asks too, and so that a refusal costs nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from diablo_ds.errors import UserError
from diablo_ds.ranks.free_port import free_port

RANK_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
PLACE_NAMES = ("MASTER_ADDR", "MASTER_PORT")
LAUNCHER = "DIABLO_LAUNCHER"
"""Variable by which a guard tells its rank which launcher's variables it translated."""
ANY_PORT = 0
_REPAIR = (
    "start the ranks with diablo-ds launch, deepspeed or torchrun; for one process alone, first "
    "unset {names}"
)
_announced: list[Identity] = []


class IdentityError(UserError):
    """The variables do not tell which rank this process is, so that each one has to say so."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which rank of which run a process is."""

    launcher: str = ""
    """Whose variables told it; empty for a process alone."""
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int | None = 1
    """Ranks on this host, where the launcher tells."""
    address: str = "127.0.0.1"
    """Where rank 0 listens."""
    port: int = ANY_PORT
    """The port there; 0 where it has yet to be chosen."""

    def describe(self) -> str:
        """Return it as a line of text."""
        origin = f"from {self.launcher}" if self.launcher else "alone"
        return f"rank {self.rank} of {self.world_size}, {origin}"

    def variables(self) -> dict[str, str]:
        """Return it as torch's variables."""
        found: dict[str, object] = {
            "RANK": self.rank,
            "WORLD_SIZE": self.world_size,
            "LOCAL_RANK": self.local_rank,
            "MASTER_ADDR": self.address,
            "MASTER_PORT": self.port,
        }
        if self.local_size is not None:
            found["LOCAL_SIZE"] = self.local_size
        if self.launcher:
            found[LAUNCHER] = self.launcher
        return {name: str(value) for name, value in found.items()}


@dataclass(frozen=True)
class _TaskLauncher:
    """A launcher that numbers its tasks and names no master.

    Args:
        name: its name.
        sign: a variable that only a task that it started has.
        rank: variable with a task's rank.
        size: variable with the number of tasks.
        local_rank: variable with the rank on the host.
        local_size: variable with the number of tasks on the host; may be missing.
        hand_over: how a variable gets to all tasks, for messages.
    """

    name: str
    sign: str
    rank: str
    size: str
    local_rank: str
    local_size: str
    hand_over: str


_TASK_LAUNCHERS = (
    _TaskLauncher(
        name="OpenMPI",
        sign="OMPI_COMM_WORLD_SIZE",
        rank="OMPI_COMM_WORLD_RANK",
        size="OMPI_COMM_WORLD_SIZE",
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        local_size="OMPI_COMM_WORLD_LOCAL_SIZE",
        hand_over="give mpirun -x MASTER_ADDR -x MASTER_PORT",
    ),
    # A batch script and the shell of an allocation have a task's number too, but are none.
    _TaskLauncher(
        name="SLURM",
        sign="SLURM_STEP_ID",
        rank="SLURM_PROCID",
        size="SLURM_STEP_NUM_TASKS",
        local_rank="SLURM_LOCALID",
        local_size="SLURM_STEP_TASKS_PER_NODE",
        hand_over="export both before srun",
    ),
    _TaskLauncher(
        name="MPICH",
        sign="PMI_SIZE",
        rank="PMI_RANK",
        size="PMI_SIZE",
        local_rank="MPI_LOCALRANKID",
        local_size="MPI_LOCALNRANKS",
        hand_over="give mpirun -genv MASTER_ADDR and -genv MASTER_PORT",
    ),
)


def find_identity(environment: Mapping[str, str]) -> Identity:
    """Return which rank of which run a process with this environment is.

    Torch's variables, which DeepSpeed's launcher and torchrun set, come before those of the task
    that such a launcher runs in. A master address and port alone make no rank.

    Raises:
        IdentityError: if the set of a launcher is not complete, contradicts itself or another one,
            or names no master for several ranks.
    """
    given = {name: value for name, value in environment.items() if value}
    tasks = [task for task in _TASK_LAUNCHERS if task.sign in given]
    if any(name in given for name in RANK_NAMES):
        return _from_torch(given, tasks)
    for task in tasks:
        found = _from_task(given, task)
        if found.world_size > 1:
            return found
    return Identity()


def announce() -> Identity:
    """Find out which rank this process is, and set torch's variables accordingly.

    Raises:
        IdentityError: as `find_identity` does, or if no port was chosen yet.
    """
    found = find_identity(os.environ)
    if found.launcher and found.port == ANY_PORT:
        raise IdentityError(
            f"rank 0 must listen at a port that all ranks know; got MASTER_PORT={ANY_PORT}; any "
            "free one is chosen by diablo-ds launch, and by deepspeed launch/train.py on one host"
        )
    variables = found.variables()
    if not found.launcher:
        # Nothing listens there; DeepSpeed's op for CPUs makes a name in shared memory of it.
        variables["MASTER_PORT"] = str(free_port())
    os.environ.update(variables)
    _announced.append(found)
    return found


def is_announced() -> bool:
    """Return whether this process is a rank, whatever the variables that it inherited say."""
    return bool(_announced)


def _from_torch(given: Mapping[str, str], tasks: list[_TaskLauncher]) -> Identity:
    """Return the identity that torch's variables tell."""
    names = (*RANK_NAMES, *PLACE_NAMES)
    shown = ", ".join(f"{name}={given[name]}" for name in names if name in given)
    here = " ".join(name for name in RANK_NAMES if name in given)
    missing = [name for name in names if name not in given]
    if missing:
        raise IdentityError(
            f"a launcher's variables must be complete; got {shown}, without {', '.join(missing)}; "
            + _REPAIR.format(names=here)
        )
    rank, size, local_rank, port = (_number(given, n) for n in (*RANK_NAMES, "MASTER_PORT"))
    if rank >= size or local_rank >= size:
        raise IdentityError(
            f"RANK and LOCAL_RANK must be below WORLD_SIZE; got {shown}; "
            + _REPAIR.format(names=here)
        )
    if port > 65535:
        raise IdentityError(f"MASTER_PORT must be at most 65535; got {shown}")
    launcher = given.get(LAUNCHER) or (
        "torchrun"
        if "TORCHELASTIC_RUN_ID" in given
        else "DeepSpeed"
        if "CROSS_SIZE" in given
        else ""
    )
    for task in () if launcher else tasks:
        if _number(given, task.size) > size:
            raise IdentityError(
                f"the ranks must be those of one launcher; got {shown}, and "
                f"{task.size}={given[task.size]} from {task.name}; unset {here}"
            )
    local_size = given.get("LOCAL_SIZE", given.get("LOCAL_WORLD_SIZE"))
    return Identity(
        launcher=launcher or "RANK and WORLD_SIZE",
        rank=rank,
        world_size=size,
        local_rank=local_rank,
        local_size=int(local_size) if local_size and local_size.isdecimal() else None,
        address=given["MASTER_ADDR"],
        port=port,
    )


def _from_task(given: Mapping[str, str], task: _TaskLauncher) -> Identity:
    """Return the identity of a task that names no master itself; one of a single task is alone."""
    names = (task.rank, task.size, task.local_rank)
    missing = [name for name in names if name not in given]
    if missing:
        raise IdentityError(
            f"the variables of {task.name} must be complete; got {task.sign}={given[task.sign]}, "
            f"without {', '.join(missing)}; " + _REPAIR.format(names=task.sign)
        )
    rank, size, local_rank = (_number(given, name) for name in names)
    if size == 1:
        return Identity()
    unnamed = [name for name in PLACE_NAMES if name not in given]
    if unnamed:
        how = "diablo-ds slurm" if task.name == "SLURM" else "diablo-ds launch --runner"
        raise IdentityError(
            f"the {size} tasks that {task.name} started must know where rank 0 listens; got no "
            f"{' and no '.join(unnamed)} in task {rank}; use {how}, which sees to it, or "
            f"{task.hand_over} (the first host's name, and a free port there); for one process "
            "start one task"
        )
    port = _number(given, "MASTER_PORT")
    return Identity(
        launcher=task.name,
        rank=rank,
        world_size=size,
        local_rank=local_rank,
        local_size=_tasks_here(given.get(task.local_size, ""), given.get("SLURM_NODEID", "")),
        address=given["MASTER_ADDR"],
        port=port,
    )


def _tasks_here(text: str, node: str) -> int | None:
    """Return the tasks of this host from a number or from SLURM's list, such as 2(x3),1."""
    if text.isdecimal():
        return int(text)
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            return None
        counts += [int(match[1])] * int(match[2] or 1)
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else None


def _number(given: Mapping[str, str], name: str) -> int:
    text = given.get(name, "")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise IdentityError(f"{name} must be an integer; got {name}={text!r}")
    return int(text)
