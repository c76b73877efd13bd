"""What has to hold before a launch, on every host, as a table."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import read_ds_config
from diablo_ds.data.corpora.sources import split_name
from diablo_ds.files import owned
from diablo_ds.files.text_table import text_table
from diablo_ds.launcher.cluster import SSH_RUNNERS, Cluster, Host
from diablo_ds.launcher.hosts import Answer, on_all_hosts
from diablo_ds.ranks.software import PACKAGES
from diablo_ds.training.run_folder import find_initial_adapter

_COMMANDS = {"pdsh": "pdsh", "openmpi": "ompi_info", "mpich": "mpirun", "slurm": "srun"}


@dataclass(frozen=True)
class HostCheck:
    """What was found on a host."""

    host: Host
    found: dict[str, Any]
    """The probe's answer; empty where there was none."""
    problems: tuple[str, ...]

    def row(self) -> tuple[str, ...]:
        """Return the host's line of the table."""
        found = self.found
        if not found:
            return (self.host.name, "no", "", "", "", "")
        versions = " ".join(found["versions"][name] for name in ("python", *PACKAGES))
        gpus = found["gpus"]
        shown = f"{len(gpus)} x {gpus[0]}" if gpus else "none"
        return (
            self.host.name,
            "yes",
            versions,
            found["code"][:10],
            f"{self.host.slots} wanted, {shown}",
            found["port_problem"] or "free",
        )


HEADER = (
    "host",
    "reached",
    "python torch deepspeed transformers diablo-ds",
    "code",
    "GPUs",
    "master port",
)


def check_hosts(run_config: RunConfig, ds_config: Path, cluster: Cluster) -> list[HostCheck]:
    """Look at every host that can be looked at from here: over ssh all, otherwise this one.

    Leaves nothing behind. Compares every host with the first."""
    hosts = cluster.hosts if cluster.runner in SSH_RUNNERS else (_this_host(cluster),)
    paths = [str(ds_config.resolve()), *_local_paths(run_config)]
    with _shared_folder(run_config) as shared:
        question = {"paths": paths, "folders": nvme_folders(ds_config), "shared": str(shared)}
        answers = on_all_hosts(
            cluster,
            lambda host: [
                *cluster.python(),
                "-m",
                "diablo_ds.launcher.probe",
                json.dumps({**question, "host": host.name, "port": _port(cluster, host)}),
            ],
            hosts,
        )
        marks = {path.name.removeprefix("host-") for path in shared.iterdir()}
    found = [_parse(answer) for answer in answers]
    first = next((f for f in found if f), {})
    return [
        HostCheck(
            host,
            f,
            (
                *_problems(host, answer, f, first, marks),
                *_missing_interfaces(cluster.interface, f.get("interfaces")),
            ),
        )
        for host, answer, f in zip(hosts, answers, found, strict=True)
    ]


def missing_command(cluster: Cluster) -> str:
    """Return a sentence about the command that the runner needs and that is not here, or none."""
    command = _COMMANDS.get(cluster.runner)
    if command is None or shutil.which(command):
        return ""
    return f"runner {cluster.runner} needs the command {command}, which is not on this machine"


def table(checks: Sequence[HostCheck]) -> str:
    """Return what was found as a table, and below it the problems."""
    lines = [text_table([HEADER, *(check.row() for check in checks)], rule=False)]
    lines += [f"{check.host.name}: {problem}" for check in checks for problem in check.problems]
    return "\n".join(lines)


def nvme_folders(ds_config: Path) -> list[str]:
    """Return the folders for NVMe offload that a DeepSpeed config file names."""
    values = read_ds_config(ds_config)
    zero = values.get("zero_optimization") if isinstance(values, dict) else None
    sections = zero.values() if isinstance(zero, dict) else ()
    named = [s.get("nvme_path") for s in sections if isinstance(s, dict)]
    return list(dict.fromkeys(path for path in named if isinstance(path, str)))


def _this_host(cluster: Cluster) -> Host:
    return cluster.hosts[cluster.node_rank or 0]


def _port(cluster: Cluster, host: Host) -> int:
    """Return the port that a host has to listen on; 0 for none."""
    return cluster.master_port if host == cluster.hosts[0] else 0


def _local_paths(run_config: RunConfig) -> list[str]:
    """Return the files and folders of a run that must be the same on all hosts."""
    data = (split_name(text)[1] for text in (*run_config.data, *run_config.heldout_data))
    tasks = (text.partition("=")[2] for text in run_config.eval_task_data)
    named = [run_config.model, *data, *tasks]
    if adapter := find_initial_adapter(run_config):
        named.append(str(adapter))
    return [str(Path(name).resolve()) for name in named if name and Path(name).exists()]


@contextmanager
def _shared_folder(run_config: RunConfig) -> Iterator[Path]:
    """Yield a new folder beside the output folder, which all hosts should see."""
    parent = Path(run_config.output).resolve().parent
    made = [p for p in (parent, *parent.parents) if not p.exists()]
    owned.make_parents(parent / "run")
    folder = Path(tempfile.mkdtemp(prefix=".shared-check-", dir=parent))
    mine = folder.lstat()
    try:
        yield folder
    finally:
        with suppress(OSError):
            owned.remove_own(folder, made=mine)
        for path in made:
            path.rmdir()


def _missing_interfaces(wanted: str, there: Sequence[str] | None) -> Iterator[str]:
    for name in filter(None, wanted.split(",")):
        if there is not None and name not in there:
            yield f"interface must be one of {', '.join(there)}; got interface={name!r}"


def _parse(answer: Answer) -> dict[str, Any]:
    try:
        parsed: dict[str, Any] = json.loads(answer.output.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return {}
    return parsed


def _problems(
    host: Host, answer: Answer, found: dict[str, Any], first: dict[str, Any], marks: set[str]
) -> Iterator[str]:
    if not found:
        last = (answer.error.strip().splitlines() or ["no answer"])[-1]
        reached = "could not be reached by ssh" if answer.exit_code == 255 else "has no diablo_ds"
        yield f"{reached}: {last}"
        return
    for name, number in found["versions"].items():
        if number != first["versions"][name]:
            first_number = first["versions"][name]
            yield f"{name} must be the same everywhere; got {number}, first host {first_number}"
    if found["code"] != first["code"]:
        yield "diablo_ds must have the same source files everywhere; its digest differs"
    for path, digest in found["paths"].items():
        if digest != first["paths"][path]:
            what = "is missing" if not digest else "differs from the first host's"
            yield f"input must be the same everywhere; {path} {what}"
    for folder, problem in found["folders"].items():
        if problem:
            yield f"NVMe offload needs a folder that can be written; {folder} {problem}"
    gpus = found["gpus"]
    if bool(gpus) != bool(first["gpus"]) or (gpus and gpus[0] != first["gpus"][0]):
        yield (
            f"GPUs must be of one kind; got {gpus[0] if gpus else 'none'}, first host "
            f"{first['gpus'][0] if first['gpus'] else 'none'}"
        )
    if gpus and len(gpus) < host.slots:
        yield f"slots must be at most the number of GPUs; got slots={host.slots}, GPUs={len(gpus)}"
    if found["devices"] and found["devices"] < host.slots:
        yield (
            "slots must be at most the devices that *_VISIBLE_DEVICES names there; got "
            f"slots={host.slots}, devices={found['devices']}"
        )
    if len(set(gpus)) > 1:
        yield f"GPUs must be of one kind; got {', '.join(sorted(set(gpus)))}"
    if found["port_problem"]:
        yield f"master port must be free; {found['port_problem']}; choose another --master-port"
    if found["shared"] or host.name not in marks:
        why = found["shared"] or "what this host writes there is not seen here"
        yield f"output folder must be shared by all hosts; {why}"
