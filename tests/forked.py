"""Processes that find everything imported: forked from a server that has done it once.

A process that imports torch, transformers and DeepSpeed spends five seconds of a core on it, before
it does anything. Ranks and commands whose start is not what a test looks at are forked from one
process (multiprocessing's fork server) that has the imports behind it, and nothing else: no thread,
no process group, no random numbers drawn. Each is a process of its own, with environment, output
and exit code. The real `diablo-ds` and `deepspeed` are in `tests.e2e.commands`.
"""

from __future__ import annotations

import gc
import importlib.abc
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Mapping
from multiprocessing import connection
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from diablo_ds.ranks.environment import RUN_KEY, new_key
from diablo_ds.ranks.free_port import free_port
from tests.e2e.commands import ROOT, environment
from tests.overriding import with_last_options
from tests.waiting import WAIT_S

ASK_VARIABLE = "DIABLO_TEST_ASK_EVERY_S"
"""Seconds between two questions among the ranks whether to stop: a test's steps are short."""
HIDDEN_VARIABLE = "DIABLO_TEST_HIDDEN"
"""A package that a process does not find, as where it is not installed."""
GRACE_S = 60.0
"""How long ranks may go on when one has ended with another code than 0: to end in the same way."""


def start_method() -> str:
    """Return how processes are started: a process that knows of a GPU must not be forked."""
    if torch.accelerator.is_available():
        return "spawn"
    multiprocessing.set_forkserver_preload(["tests.imported"])
    return "forkserver"


def diablo_ds(*args: Any, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `diablo-ds` in a forked process."""
    return Command(*args).result(check)


def ranks(
    *args: Any,
    num_ranks: int = 2,
    check: bool = True,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.CompletedProcess[str]:
    """Run `diablo-ds train` on forked ranks, as a launcher of this machine starts them."""
    port = free_port()
    command = Command("train", *args, num_ranks=num_ranks, port=port, variables=variables)
    result = command.result(check)
    assert not list(Path("/dev/shm").glob(f"deepspeed*_{port}_*")), "memory is left behind"
    return result


class Command:
    """A command in one forked process, or on several as the ranks of one run.

    Args:
        args: words after `diablo-ds`.
        num_ranks: how many processes; for 0 one that is no rank.
        port: where rank 0 listens.
        variables: of their environment, besides the tests' own.
    """

    def __init__(
        self,
        *args: Any,
        num_ranks: int = 0,
        port: int = 0,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.words = ["diablo-ds", *with_last_options(args)]
        self._folder = tempfile.TemporaryDirectory(prefix="forked-")
        self._outputs = [os.path.join(self._folder.name, name) for name in ("stdout", "stderr")]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": num_ranks}
        shared |= {"LOCAL_SIZE": num_ranks, RUN_KEY: new_key()}
        numbers = [shared | {"RANK": n, "LOCAL_RANK": n} for n in range(num_ranks)] or [{}]
        context = multiprocessing.get_context(start_method())
        self.processes = []
        for values in numbers:
            place = {name: str(value) for name, value in values.items()}
            arguments = (self.words, environment() | place | dict(variables), self._outputs)
            process = context.Process(target=_run, args=arguments)
            process.start()
            self.processes.append(process)

    def has_ended(self) -> bool:
        """Return whether a process has ended."""
        return any(process.exitcode is not None for process in self.processes)

    def result(self, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Wait for the end; where a rank fails, the others are ended after a while."""
        deadline = time.monotonic() + WAIT_S
        running = {process.sentinel: process for process in self.processes}
        code = 0
        while running:
            ended = connection.wait(list(running), max(0.0, deadline - time.monotonic()))
            for sentinel in ended:
                process = running.pop(sentinel)
                process.join()
                if process.exitcode and not code:
                    code = process.exitcode
                    deadline = time.monotonic() + GRACE_S
            if not ended:
                for process in running.values():
                    process.kill()
                assert code, f"{self.words} still runs after {WAIT_S} s\n{self._texts()}"
        stdout, stderr = self._texts()
        self._folder.cleanup()
        assert code == 0 or not check, f"{self.words}\n{stdout}\n{stderr}"
        return subprocess.CompletedProcess(self.words, code, stdout, stderr)

    def _texts(self) -> list[str]:
        return [Path(path).read_text() for path in self._outputs]


class _Hidden(importlib.abc.MetaPathFinder):
    """Finds no module of a package."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        """Raise for the package, and leave other modules to other finders."""
        if name.partition(".")[0] == self._package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _run(words: list[str], variables: Mapping[str, str], outputs: list[str]) -> None:
    """Be the command, from its entry point on."""
    gc.freeze()  # what was imported need not be looked through again and again
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(ROOT)
    for stream, path in enumerate(outputs, start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, stream)
        os.close(file)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    # As in a process that was started by itself.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv = words
    if hidden := variables.get(HIDDEN_VARIABLE):
        for name in [name for name in sys.modules if name.partition(".")[0] == hidden]:
            del sys.modules[name]
        sys.meta_path.insert(0, _Hidden(hidden))
    from diablo_ds.cli.main import entry_point
    from diablo_ds.ranks import stopping

    stopping.ASK_EVERY_S = float(variables.get(ASK_VARIABLE, stopping.ASK_EVERY_S))

    entry_point()
