"""A real SLURM on this machine: a controller and two nodes, in a folder of their own."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from diablo_ds.ranks.free_port import free_port
from tests.cluster.packages import require
from tests.e2e.commands import BIN
from tests.waiting import WAIT_S

NODES = ("node-a", "node-b")
CPUS = 2
"""Of each node, whatever the machine has."""
_CONF = """\
ClusterName=diablo
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPort={port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_min_interval=100000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=600
SlurmdParameters=config_overrides
{nodes}
PartitionName=main Nodes=node-a,node-b Default=YES MaxTime=INFINITE State=UP
"""


class SlurmCluster:
    """Munge, slurmctld and two slurmd of two CPUs each, started here and stopped on exit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.processes: list[subprocess.Popen[bytes]] = []
        kept = {name: value for name, value in os.environ.items() if "SLURM" not in name}
        path = f"{BIN}:{os.environ['PATH']}:/usr/sbin:/sbin"
        self.env = {**kept, "PATH": path, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> SlurmCluster:
        require(
            ("slurmctld", "slurmd", "munged", "sbatch"),
            ("slurmctld", "slurmd", "slurm-client", "munge"),
        )
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    # --- clients ---------------------------------------------------------------------------------

    def run(self, *command: str, timeout: float = WAIT_S) -> str:
        """Run a client command and return what it prints."""
        done = subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}\n{self._logs()}"
        return done.stdout

    def job_field(self, job: int, name: str) -> str:
        """Return a field of `scontrol show job`."""
        text = self.run("scontrol", "show", "job", str(job))
        return next(
            word.partition("=")[2] for word in text.split() if word.partition("=")[0] == name
        )

    def wait_for(self, job: int, states: Sequence[str]) -> str:
        """Wait until a job is in one of the states, and return it."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            if (state := self.job_field(job, "JobState")) in states:
                return state
            time.sleep(0.5)
        raise AssertionError(f"job {job} must come to {states}; is {state}\n{self._logs()}")

    def release(self, job: int) -> None:
        """Wait for a job to be requeued, and let it start at once instead of in two minutes."""
        self.wait_for(job, ("PENDING",))
        time.sleep(3)  # the nodes refuse a job that was revoked in the same second
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    # --- start and stop --------------------------------------------------------------------------

    def _start(self) -> None:
        for name in ("munge", "state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(mode=0o755)
        munge = self.folder / "munge"
        key = munge / "key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 "
            f"Port={free_port()} CPUs={CPUS} RealMemory=8000"
            for node in NODES
        )
        conf = self.folder / "slurm.conf"
        conf.write_text(
            _CONF.format(
                host=socket.gethostname(), folder=self.folder, port=free_port(), nodes=nodes
            )
        )
        files = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
        # The folder of a test is open to others, which munge would refuse.
        self._spawn("munged", "--foreground", "--force", f"--socket={munge / 'socket'}", *files)
        self._spawn("slurmctld", "-D", "-f", str(conf))
        for node in NODES:
            self._spawn("slurmd", "-D", "-f", str(conf), "-N", node)
        deadline = time.monotonic() + WAIT_S
        states = ""
        while time.monotonic() < deadline:
            with suppress(AssertionError, subprocess.TimeoutExpired):
                states = self.run("sinfo", "-h", "-N", "-o", "%T", timeout=10)
                if states.split() == ["idle"] * len(NODES):
                    return
            time.sleep(0.5)
        raise AssertionError(f"both nodes must become idle; got {states!r}\n{self._logs()}")

    def _spawn(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("ab") as out:
            self.processes.append(
                subprocess.Popen(
                    command, env=self.env, stdout=out, stderr=out, start_new_session=True
                )
            )

    def _stop(self) -> None:
        with suppress(AssertionError, subprocess.TimeoutExpired):
            self.run("scancel", "--user=root", timeout=60)
            time.sleep(1)
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=60)
        self._kill_left()

    def _kill_left(self) -> None:
        """Kill the step managers and tasks that outlived their slurmd: all know our folder."""
        for process in Path("/proc").iterdir():
            if not process.name.isdigit() or int(process.name) == os.getpid():
                continue
            with suppress(OSError):
                known = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
                if f"{self.folder}/".encode() in known and b"pytest" not in known:
                    os.kill(int(process.name), signal.SIGKILL)

    def _logs(self) -> str:
        logs = sorted(self.folder.glob("*.log")) + sorted(self.folder.glob("*.out"))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-1500:]}" for log in logs)
