"""What a user says about a cluster: hosts, slots, addresses, and how to reach them."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from json import JSONDecodeError
from pathlib import Path

from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_bytes
from diablo_ds.files.strict_json import check_text, decode_text
from diablo_ds.launcher.quoting import HOST_NAME, check_host, check_word, split_words
from diablo_ds.ranks.identity import ANY_PORT

RUNNERS = ("local", "pdsh", "openmpi", "mpich", "slurm", "no-ssh")
"""How ranks get to their hosts: DeepSpeed's own runners, and "no-ssh", where `diablo-ds launch` is
started on each host."""
SSH_RUNNERS = ("pdsh", "openmpi", "mpich")
_HOST_LINE = re.compile(rf"(?P<name>{HOST_NAME})\s+slots=(?P<slots>[0-9]{{1,6}})\s*(#.*)?")
_INTERFACE_VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


@dataclass(frozen=True)
class Host:
    """A host and how many ranks it takes."""

    name: str
    slots: int


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where a run goes, and how.

    Raises:
        UserError: if the parts do not go together.
    """

    runner: str = "local"
    hosts: tuple[Host, ...]
    """In the order of the ranks; one host for the runner "local"."""
    hostfile: Path | None = None
    num_nodes: int | None = None
    """Use only the first num_nodes hosts of the hostfile; ``hosts`` are these already."""
    num_gpus: int | None = None
    """Use only num_gpus slots of each host."""
    node_rank: int | None = None
    """This host's place among the hosts; for the runner "no-ssh" only."""
    master_addr: str = ""
    """Where rank 0 listens; empty for the first host's name."""
    master_port: int = ANY_PORT
    """0 for any: rank 0's guard chooses a free one for each start."""
    ssh_port: int | None = None
    interface: str = ""
    """Network interface for NCCL and Gloo; empty lets them choose."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the ranks, which may be seen."""
    hidden_env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """More of them, which must not be seen by other users, on screens or in files."""
    venv: Path | None = None
    """Virtual environment of the ranks; by default they get the launching Python."""
    wrap: str = ""
    """Words before each rank's Python, such as `apptainer exec --nv image.sif`."""
    launcher_args: str = ""
    """Further arguments for pdsh, mpirun or srun."""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.runner not in RUNNERS:
            raise UserError(
                f"runner must be one of {', '.join(RUNNERS)}; got runner={self.runner!r}"
            )
        if not self.hosts:
            raise UserError("a cluster must have at least one host; got none")
        if self.runner != "local" and self.hostfile is None:
            raise UserError(
                f"runner {self.runner} needs a hostfile; got none; give --hostfile, with a line "
                "`name slots=gpus` for each host"
            )
        if (self.node_rank is None) == (self.runner == "no-ssh"):
            raise UserError(
                "node_rank goes with --no-ssh, which needs it; got "
                f"node_rank={self.node_rank}, runner={self.runner!r}"
            )
        if self.node_rank is not None and not 0 <= self.node_rank < len(self.hosts):
            raise UserError(
                f"node_rank must be from 0 to {len(self.hosts) - 1}; got node_rank={self.node_rank}"
            )
        if self.ssh_port is not None and self.runner != "pdsh":
            raise UserError(
                f"ssh_port is for the runner pdsh; got ssh_port={self.ssh_port} with runner "
                f"{self.runner!r}"
            )
        if self.master_addr and self.runner == "local":
            raise UserError(
                "master_addr is for the hosts of a hostfile, this machine's ranks need none; got "
                f"master_addr={self.master_addr!r}"
            )
        if self.launcher_args and self.runner in ("local", "no-ssh"):
            raise UserError(
                "launcher_args are for pdsh, mpirun and srun; got "
                f"launcher_args={self.launcher_args!r} with runner {self.runner!r}"
            )
        for host in self.hosts:
            check_host("host", host.name)
        check_host("master_addr", self.master_addr)
        check_word("interface", self.interface)
        for name in ("wrap", "launcher_args"):
            split_words(name, getattr(self, name))
        check_text(
            wrap=self.wrap,
            launcher_args=self.launcher_args,
            venv=str(self.venv),
            hostfile=str(self.hostfile),
        )
        if len({host.slots for host in self.hosts}) > 1 and self.runner in ("mpich", "slurm"):
            slots = ", ".join(f"{host.name} {host.slots}" for host in self.hosts)
            raise UserError(
                f"runner {self.runner} needs the same number of slots on each host; got {slots}"
            )

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return sum(host.slots for host in self.hosts)

    def rank_env(self) -> dict[str, str]:
        """Return the environment variables that ranks get by their command."""
        env = interface_env(self.interface)
        if self.runner in ("openmpi", "slurm"):  # these tell ranks their number, but not where
            env |= {"MASTER_ADDR": self.first_address, "MASTER_PORT": str(self.master_port)}
        return {**env, **self.env}

    def python(self) -> list[str]:
        """Return the words that start Python as the ranks get it, on every host."""
        return rank_python(self.venv, self.wrap)

    @property
    def first_address(self) -> str:
        """Where rank 0 listens."""
        return self.master_addr or self.hosts[0].name

    def describe(self) -> str:
        """Return the hosts as a line of text."""
        hosts = ", ".join(f"{host.name} x {host.slots}" for host in self.hosts)
        return f"{self.world_size} ranks on {hosts}"


def interface_env(interface: str) -> dict[str, str]:
    """Return the variables that make NCCL and Gloo use a network interface."""
    return dict.fromkeys(_INTERFACE_VARIABLES, interface) if interface else {}


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """Read a hostfile: a line `name slots=number` for each host; "#" starts a comment.

    Raises:
        UserError: if it cannot be read or a line is wrong; names file and line.
    """
    try:
        lines = decode_text(read_bytes(path)).splitlines()
    except JSONDecodeError as error:
        raise UserError(
            f"hostfile must be a text file; got {path}, line {error.lineno}: {error.msg}"
        ) from None
    hosts: dict[str, Host] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        match = _HOST_LINE.fullmatch(line.strip())
        if match is None or int(match["slots"]) == 0:
            raise UserError(
                "a line of a hostfile must read `name slots=number`, with at least one slot; got "
                f"{line.strip()!r:.60} in {path}, line {number}"
            )
        name = match["name"]
        if name in hosts:
            raise UserError(
                f"a host must be named once; got {name:.60} again in {path}, line {number}"
            )
        hosts[name] = Host(name, int(match["slots"]))
    if not hosts:
        raise UserError(f"a hostfile must name at least one host; got none in {path}")
    return tuple(hosts.values())


def hostfile_text(hosts: tuple[Host, ...]) -> str:
    """Return hosts in the form of a hostfile."""
    return "".join(f"{host.name} slots={host.slots}\n" for host in hosts)


def rank_python(venv: Path | None, wrap: str) -> list[str]:
    """Return the words that start a rank's Python: this one, a venv's, or a container's own.

    It imports nothing from the working folder (-P), where a file may be named like a module.
    """
    inside = "python3" if wrap else sys.executable
    return [
        *split_words("wrap", wrap),
        inside if venv is None else str(venv / "bin" / "python"),
        "-P",
    ]
