"""What a SLURM job asks for of each node: CPUs and memory in proportion to its GPUs.

Without a request of its own a job gets one CPU for all ranks of a node on many clusters, and the
default memory of a CPU.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from diablo_ds.launcher.job import Job

_ASKS_FOR_CPUS = re.compile(r"(--cpus-per-(task|gpu)(?![-\w])|-c)")
_CPUS_PER_TASK = re.compile(r"--cpus-per-task(?![-\w])|-c")
_ASKS_FOR_MEMORY = re.compile(r"--mem(-per-(cpu|gpu))?(?![-\w])")
_GPUS = re.compile(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)")
_COLUMNS = "%c|%m|%Z|%P|%G"
_SINFO_WAIT_S = 30.0
_ALL_MEMORY = "--mem=0"


@dataclass(frozen=True)
class Node:
    """What SLURM says of a node."""

    cpus: int
    memory_mib: int
    """At most 1 where the administrator gave none."""
    threads_per_core: int
    gpus: int


@dataclass(frozen=True)
class NodeRequest:
    """What a job asks for of each node."""

    options: tuple[str, ...]
    """Options of sbatch."""
    text: str
    """The same, for people."""
    has_cpus_per_task: bool = False
    """Whether the job asks for a number of CPUs per task."""

    @property
    def has_memory(self) -> bool:
        """Whether the job asks for memory per node here."""
        return any(option.startswith("--mem=") for option in self.options)


def find_nodes(partition: str) -> list[Node]:
    """Return the nodes of a partition, as `sinfo` shows them; none where it shows none.

    Args:
        partition: its name; empty for the default partition.
    """
    command = ["sinfo", "--noheader", "--Node", f"--format={_COLUMNS}"]
    command += [f"--partition={partition}"] if partition else []
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SINFO_WAIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_nodes(done.stdout, is_default=not partition) if done.returncode == 0 else []


def parse_nodes(text: str, *, is_default: bool) -> list[Node]:
    """Return the nodes in the output of `sinfo`; a line that cannot be read is skipped.

    Args:
        text: lines of CPUs, MiB, threads per core, partition and generic resources.
        is_default: whether to keep only the nodes of the default partition, marked by a star.
    """
    nodes = []
    for line in text.splitlines():
        words = line.strip().split("|", 4)
        numbers = [word.rstrip("+") for word in words[:3]]
        if len(words) < 5 or not all(number.isdecimal() for number in numbers):
            continue
        if not is_default or words[3].endswith("*"):
            cpus, memory, threads = map(int, numbers)
            nodes.append(Node(cpus, memory, threads, sum(map(int, _GPUS.findall(words[4])))))
    return nodes


def node_request(job: Job, nodes: Sequence[Node]) -> NodeRequest:
    """Return what a job asks for of each node.

    What the user asks for stands. The rest is the part of the node's CPUs and memory that the job
    takes of its GPUs, the least of all nodes that have enough of these. A job that takes all GPUs
    of a node, or whose ranks have none, gets the node for itself, and so does one of which SLURM
    does not say what its nodes have.

    Args:
        job: the job.
        nodes: the nodes of its partition; none where they are not known.
    """
    has_cpus = bool(job.cpus_per_task) or _is_given(job, _ASKS_FOR_CPUS)
    has_memory = bool(job.mem) or _is_given(job, _ASKS_FOR_MEMORY)
    options = ["--exclusive"] if job.exclusive else []
    options += [f"--cpus-per-task={job.cpus_per_task}"] if job.cpus_per_task else []
    options += [f"--mem={job.mem}"] if job.mem else []
    if job.exclusive or any(o.startswith("--exclusive") for o in job.sbatch_option):
        options += [] if has_memory else [_ALL_MEMORY]
        return _request(job, options, "nodes of its own")
    if has_cpus and has_memory:
        return _request(job, options, "as asked")
    wanted = job.gpus_per_node
    fitting = [node for node in nodes if wanted is None or node.gpus >= wanted]
    if not fitting or all(wanted in (None, node.gpus) for node in fitting):
        if wanted is None:
            why = "its ranks have no GPUs, by which to share a node"
        elif fitting:
            why = "it takes all GPUs of a node"
        else:
            why = f"sinfo shows no node of the partition with {wanted} GPUs"
        is_all = not has_cpus or (wanted is not None and bool(fitting))
        options += [] if has_cpus else ["--exclusive"]
        options += [_ALL_MEMORY] if is_all and not has_memory else []
        return _request(job, options, why if is_all else "memory as the partition has it")
    assert wanted is not None
    if not has_cpus:
        cpus = min(_share_of_cpus(node, wanted) for node in fitting)
        options.append(f"--cpus-per-task={cpus}")
    known = [node for node in fitting if node.memory_mib > 1]
    if known and not has_memory:
        memory = min(node.memory_mib * wanted // node.gpus for node in known)
        options.append(f"--mem={memory}M")
    most = max(node.gpus for node in fitting)
    return _request(job, options, f"the share of {wanted} of {most} GPUs")


def _share_of_cpus(node: Node, gpus: int) -> int:
    """Return the CPUs that go with some of a node's GPUs, in full cores, as SLURM gives them."""
    threads = max(1, node.threads_per_core)
    return max(1, node.cpus * gpus // node.gpus // threads * threads)


def _is_given(job: Job, pattern: re.Pattern[str]) -> bool:
    return any(pattern.match(option) for option in job.sbatch_option)


def _request(job: Job, options: Sequence[str], why: str) -> NodeRequest:
    shown = " ".join(options) or "as --sbatch-option says"
    return NodeRequest(
        tuple(options),
        f"Each node: {shown}; {why}. --cpus-per-task, --mem and --exclusive change it.",
        any(_CPUS_PER_TASK.match(option) for option in (*options, *job.sbatch_option)),
    )
