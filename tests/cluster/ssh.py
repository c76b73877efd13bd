"""Two hosts on this machine that ssh and pdsh can reach, at addresses of the loopback network."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from diablo_ds.ranks.free_port import free_port
from tests.cluster.packages import require
from tests.e2e.commands import BIN, environment
from tests.waiting import WAIT_S

ADDRESSES = {"node-a": "127.0.0.2", "node-b": "127.0.0.3"}
_SSHD_CONF = """\
ListenAddress {address}:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile {folder}/sshd-{name}.pid
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
PrintMotd no
"""
_HOST_CONF = """\
Host {name}
    HostName {address}
    HostKeyAlias diablo
    Port {port}
"""
_USER_CONF = """\
Host *
    IdentityFile {folder}/user_key
    UserKnownHostsFile {folder}/known_hosts
    StrictHostKeyChecking no
    LogLevel ERROR
"""


class SshHosts:
    """Two ssh servers with keys of their own; neither ~/.ssh nor /etc is touched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.servers: dict[str, subprocess.Popen[bytes]] = {}
        # ssh does not look at HOME; a wrapper that comes first on the PATH passes our settings.
        self.env = {**environment(), "PDSH_RCMD_TYPE": "ssh"}
        self.env["PATH"] = f"{self.folder}/bin:{BIN}:{os.environ['PATH']}"

    def __enter__(self) -> SshHosts:
        require(("sshd", "ssh", "pdsh"), ("openssh-server", "openssh-client", "pdsh"))
        self._made_run_folder = not Path("/run/sshd").exists()
        Path("/run/sshd").mkdir(exist_ok=True)
        port = free_port()
        for key in ("host_key", "user_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / key]
            subprocess.run(command, check=True)
        hosts = [
            _HOST_CONF.format(name=name, address=address, port=port)
            for name, address in ADDRESSES.items()
        ]
        config = self.folder / "ssh_config"
        config.write_text("".join(hosts) + _USER_CONF.format(folder=self.folder))
        wrapper = self.folder / "bin" / "ssh"
        wrapper.parent.mkdir()
        wrapper.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {config} "$@"\n')
        wrapper.chmod(0o755)
        for name, address in ADDRESSES.items():
            file = self.folder / f"sshd_config-{name}"
            file.write_text(
                _SSHD_CONF.format(folder=self.folder, name=name, address=address, port=port)
            )
            self.start_host(name)
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.servers):
            self.stop_host(name)
        if self._made_run_folder:
            with suppress(OSError):
                Path("/run/sshd").rmdir()

    def hostfile(self, slots: int = 1) -> Path:
        """Write a hostfile and return it."""
        path = self.folder / "hostfile"
        path.write_text("".join(f"{name} slots={slots}\n" for name in ADDRESSES))
        return path

    def start_host(self, name: str) -> None:
        """Start a host's server and wait until it answers."""
        command = ["/usr/sbin/sshd", "-D", "-e", "-f", str(self.folder / f"sshd_config-{name}")]
        with (self.folder / f"sshd-{name}.log").open("ab") as log:
            self.servers[name] = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            done = subprocess.run(["ssh", name, "true"], env=self.env, check=False)
            if done.returncode == 0:
                return
            time.sleep(0.2)
        raise AssertionError((self.folder / f"sshd-{name}.log").read_text())

    def stop_host(self, name: str) -> None:
        """Kill a host's server and everything that it started, all at once."""
        server = self.servers.pop(name)
        doomed = _descendants(server.pid)
        for number in (signal.SIGSTOP, signal.SIGKILL):  # none may start another in between
            for pid in (server.pid, *doomed):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            doomed = doomed | _descendants(server.pid)
        server.wait()


def _descendants(pid: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(process.name))
    found, waiting = set(), [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found.add(child)
            waiting.append(child)
    return found
