"""The GPUs that the user or the scheduler gave to a host, and how its ranks get just those.

DeepSpeed's launcher drops CUDA_VISIBLE_DEVICES where it is told a number of ranks or a hostfile,
and has ranks count from 0: on a host that several users share, these are somebody else's GPUs. The
guard above every rank takes what was given from the environment in which DeepSpeed was started on
this host, and puts it back. Only the standard library is used here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from diablo_ds.errors import UserError
from diablo_ds.files.process_status import process_status

NAMES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""Variables that choose GPUs. CUDA's and HIP's count among those that ROCR's leaves."""
_NUMBERED = NAMES[0]
"""What DeepSpeed sets for its ranks."""
_NONE = ("-1", "NoDevFiles")
"""Entries at which a list ends: CUDA's for no GPU, and SLURM's."""
AGENT = b"deepspeed.launcher.launch"
"""In the command line of the process by which DeepSpeed starts the ranks of a host."""
_RUNNERS = (b"deepspeed", b"ds", b"deepspeed.launcher.runner")
"""The command that starts that process."""


def devices(text: str) -> list[str]:
    """Return the devices in such a variable: indices, or UUIDs of GPUs or MIG instances."""
    found: list[str] = []
    for entry in map(str.strip, text.split(",")):
        if not entry or entry in _NONE:
            break
        found.append(entry)
    return found


def count_devices(environment: Mapping[str, str]) -> int | None:
    """Return how many devices the variables leave; None where none of them is set."""
    counts = [len(devices(environment[name])) for name in NAMES if name in environment]
    return min(counts, default=None)


def check_devices(environment: Mapping[str, str], num_ranks: int) -> None:
    """Raise UserError where fewer devices were given than ranks are to start on this host.

    An empty list is none of them: it makes ranks run on CPUs.
    """
    for name in NAMES:
        found = devices(environment.get(name, ""))
        if len(set(found)) < len(found):
            raise UserError(
                f"a device must be named once; got {name}={environment[name]}; CUDA would see none"
            )
        if found and len(found) < num_ranks:
            tasks = "; srun must show a task all of its node's (--gpu-bind=none)"
            raise UserError(
                f"each rank needs a device of its own; got {num_ranks} ranks on this host, and "
                f"{name}={environment[name]}, which is {len(found)}; start {len(found)}, name more "
                f"devices, or none for ranks on CPUs{tasks * ('SLURM_STEP_ID' in environment)}"
            )


def put_back(environment: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Return a rank's environment with the devices that were given to its host.

    What DeepSpeed selected counts among them: the first ones, or those of its --include.

    Args:
        environment: as DeepSpeed made it.
        given: the environment in which DeepSpeed was started on this host.

    Raises:
        UserError: if DeepSpeed was told to use devices that were not given.
    """
    own = {name: given[name] for name in NAMES if name in given}
    result = dict(environment)
    if not own:  # the run has the host to itself
        return result
    selected = devices(result.pop(_NUMBERED, ""))
    result |= own
    top = [name for name in NAMES[:2] if name in own] or [NAMES[2]]
    return result | {name: _select(name, own[name], selected) for name in top}


def given_environment() -> dict[str, str] | None:
    """Return the environment in which DeepSpeed was started on this host.

    Returns:
        None where it is not DeepSpeed's launcher that started this process.
    """
    agent = os.getppid()
    if AGENT not in _read(agent, "cmdline"):
        return None
    with contextlib.suppress(OSError):
        runner = process_status(agent).parent
        words = _read(runner, "cmdline").split(b"\0")
        if any(word.rpartition(b"/")[2] in _RUNNERS for word in words[:4]):
            agent = runner
    pairs = (entry.partition(b"=") for entry in _read(agent, "environ").split(b"\0"))
    return {os.fsdecode(name): os.fsdecode(value) for name, equals, value in pairs if equals}


def _select(name: str, text: str, selected: Sequence[str]) -> str:
    """Return the devices of a list that DeepSpeed selected by index or by name."""
    found = devices(text)
    if not found or set(selected) == set(found):
        return text
    if all(entry.isdecimal() and int(entry) < len(found) for entry in selected):
        chosen = [found[int(entry)] for entry in selected]
    else:
        chosen = [entry for entry in found if entry in selected]
    if len(chosen) < len(selected):
        raise UserError(
            f"ranks must use devices that were given; got {','.join(selected)} from DeepSpeed, and "
            f"{name}={text}, which is {len(found)}; start at most {len(found)} ranks here, and let "
            "--include count among these"
        )
    return text if chosen == found else ",".join(chosen)


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
