"""Programs that mean harm, and those that are right, behind the walls of this machine."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from diablo_ds.errors import UserError
from diablo_ds.evaluation.sandbox import walled
from diablo_ds.evaluation.sandbox import walls as walls_module
from diablo_ds.evaluation.sandbox.program import Limits
from diablo_ds.evaluation.sandbox.walls import WALLS, Walls, check_walls
from tests.unit.evaluation.programs import RIGHT, run

pytestmark = pytest.mark.slow


def test_what_is_right_passes_and_what_is_wrong_does_not(walls):
    assert run(RIGHT, walls) == run(RIGHT, walls)
    assert run(RIGHT, walls).passed
    wrong = run("def answer(x):\n    return 4\n", walls)
    assert not wrong.passed
    assert wrong.reason == "assert answer(3) == 9: AssertionError"


@pytest.mark.parametrize(
    "source",
    [
        "while True:\n    pass",
        "import time\ntime.sleep(1000)",
        "def answer(x):\n    while True:\n        pass",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True:\n    pass",
    ],
    ids=["loop", "sleep", "loop in the call", "ignores the limit"],
)
def test_an_endless_program_is_ended(source, all_walls):
    outcome = run(source, all_walls, limits=Limits(cpu_s=1, wall_s=5.0))
    assert not outcome.passed
    assert "1 s of computation" in outcome.reason or "longer than 5 s" in outcome.reason


def test_a_fork_bomb_is_ended_with_all_its_processes(walls):
    source = (
        "import os, time\n"
        "def bomb():\n"
        "    while True:\n"
        "        try:\n            os.fork()\n"
        "        except OSError:\n            time.sleep(0.05)\n"
        "try:\n    os.setsid()\nexcept OSError:\n    pass\n"
        "for _ in range(3):\n    os.fork()\n"
        "time.sleep(60)\n"
    )
    if "namespaces" in walls.names:  # without them only a user who is not root is limited
        source = source.replace("for _ in range(3):\n    os.fork()\n", "bomb()\n")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, source, walls, limits=Limits(cpu_s=2, wall_s=4.0))
        while not running.done() and _num_walled() < 8:
            time.sleep(0.02)
        assert not running.done()
        outcome = running.result()
    assert not outcome.passed
    deadline = time.monotonic() + 60
    while _num_walled() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _num_walled() == 0


def _num_walled():
    """Return how many processes that this one had started for programs are left."""
    mine = f"diablo-program-{os.getpid()}-"
    found = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    found += mine.encode() in file.read()
            except OSError:
                pass
    return found


def test_a_memory_bomb_is_an_error_of_the_program(walls):
    outcome = run("data = bytearray(8 << 30)", walls)
    assert not outcome.passed
    assert "MemoryError" in outcome.reason


def test_a_flood_of_output_is_cut(all_walls):
    outcome = run("while True:\n    print('x' * 100000)", all_walls)
    assert not outcome.passed
    assert "printed more than" in outcome.reason
    assert len(outcome.output) <= 2000


def test_a_large_file_is_refused(walls):
    source = "with open('large', 'wb') as file:\n    file.write(bytes(64 << 20))\n"
    outcome = run(source, walls)
    assert not outcome.passed
    assert "OSError" in outcome.reason or "SIGXFSZ" in outcome.reason


def test_nothing_of_the_home_folder_and_the_environment_is_seen(walls, tmp_path, monkeypatch):
    home = os.path.expanduser("~")
    secret = tmp_path / "token"
    secret.write_text("very secret")
    monkeypatch.setenv("SECRET_TOKEN", "very secret")
    source = (
        "import os\n"
        "def read(path):\n"
        "    try:\n        with open(path, 'rb') as file:\n"
        "            return file.read().decode()\n"
        "    except OSError as error:\n        return type(error).__name__\n"
        "def environment():\n    return dict(os.environ)\n"
        "def parents():\n"
        "    return [read(f'/proc/{pid}/environ') for pid in ('self', os.getppid(), 1)]\n"
        "def entries(path):\n"
        "    try:\n        return os.listdir(path)\n"
        "    except OSError:\n        return []\n"
    )
    tests = (
        f"assert 'secret' not in read({str(secret)!r})\n"
        "assert 'SECRET_TOKEN' not in environment()\n"
        "assert not any('SECRET' in text for text in parents())\n"
        f"assert all(entry in {str(walled.readable())!r} for entry in entries({home!r}))\n"
        "assert set(entries('/etc')) <= {'ld.so.cache', 'localtime'}\n"
    )
    assert run(source, walls, tests).reason == ""


def test_nothing_is_written_outside_its_folder(walls, tmp_path):
    target = tmp_path / "written"
    source = (
        "import os\n"
        "def write(path):\n"
        "    try:\n        with open(path, 'w') as file:\n            file.write('x')\n"
        "        return True\n"
        "    except OSError:\n        return False\n"
        "def own():\n    return write('own')\n"
        "library = os.path.dirname(os.__file__)\n"
    )
    tests = (
        f"assert own()\nassert not write({str(target)!r})\n"
        f"assert not write({str(tmp_path.parent / 'x')!r})\n"
        "assert not write(library + '/written')\nassert not write('/dev/shm/written')\n"
    )
    assert run(source, walls, tests).reason == ""
    assert not target.exists()


def test_no_socket_reaches_anything(walls, tmp_path):
    with socket.socket() as server, socket.socket(socket.AF_UNIX) as local, _at(tmp_path) as file:
        server.bind(("127.0.0.1", 0))
        server.listen()
        local.bind(f"\0diablo-{os.getpid()}")
        local.listen()
        source = (
            "import os, socket\n"
            "def reaches(family, address, kind=socket.SOCK_STREAM):\n"
            "    try:\n"
            "        with socket.socket(family, kind) as client:\n"
            "            client.settimeout(2)\n            client.connect(address)\n"
            "            client.send(b'x')\n"
            "        return True\n"
            "    except OSError:\n        return False\n"
            "def local(name):\n"
            "    return reaches(socket.AF_UNIX, name)\n"
            "def file(folder, name):\n"
            "    try:\n        os.chdir(folder)\n"
            "    except OSError:\n        return False\n"
            "    return local(name)\n"
            "def tcp(*address):\n    return reaches(socket.AF_INET, address)\n"
            "def udp(*address):\n    return reaches(socket.AF_INET, address, socket.SOCK_DGRAM)\n"
        )
        address = repr(server.getsockname())
        tests = [f"assert not tcp(*{address})", f"assert not local('\\0diablo-{os.getpid()}')"]
        more = [f"assert not udp(*{address})", f"assert not file({str(tmp_path)!r}, {file!r})"]
        # Landlock has no rule for either: by itself it does not count as keeping the network out.
        is_kept = walls_module._try(walls.names)["network"]
        assert is_kept == (walls.names != ("landlock",))
        assert run(source, walls, "\n".join(tests + more * is_kept)).reason == ""


@contextlib.contextmanager
def _at(folder):
    """A Unix socket that is reached by a name in a folder."""
    with socket.socket(socket.AF_UNIX) as server:
        walls_module._bind(server, folder / "local")
        yield "local"


_CALLS = {
    "x86_64": {"tgkill": 234, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "prlimit64": 302},
    "aarch64": {"tgkill": 131, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240, "prlimit64": 261},
}


def test_no_other_process_is_killed(walls):
    numbers = _CALLS[platform.machine()]
    with subprocess.Popen(["sleep", "300"]) as victim:
        pids = f"(os.getppid(), {os.getpid()}, {victim.pid}, -1)"
        source = (
            "import ctypes, os, signal, struct\n"
            "call = ctypes.CDLL(None).syscall\n"
            "queued = struct.pack('iiiiii104x', 9, 0, -1, 0, os.getpid(), 0)\n"
            "no_time = struct.pack('QQ', 0, 0)\n"
            f"for pid in {pids}:\n"
            "    try:\n        os.kill(pid, signal.SIGKILL)\n"
            "    except OSError:\n        pass\n"
            f"    call({numbers['tgkill']}, pid, pid, 9)\n"
            f"    call({numbers['rt_sigqueueinfo']}, pid, 9, queued)\n"
            f"    call({numbers['rt_tgsigqueueinfo']}, pid, pid, 9, queued)\n"
        )
        if walls.names != ("landlock",):  # which knows nothing of limits
            source += f"    call({numbers['prlimit64']}, pid, 0, no_time, None)\n"
        outcome = run(source + RIGHT, walls)
        assert victim.poll() is None
        assert resource.prlimit(victim.pid, resource.RLIMIT_CPU)[0] != 0
        assert resource.getrlimit(resource.RLIMIT_CPU)[0] != 0
        victim.kill()
    assert outcome.passed or "ended before" in outcome.reason


def test_a_program_may_still_end_itself_and_use_pairs_of_sockets(walls):
    source = (
        "import asyncio, signal\n"
        "async def add(x):\n    await asyncio.sleep(0)\n    return x * x\n"
        "def answer(x):\n    return asyncio.run(add(x))\n"
        "def fail():\n    signal.raise_signal(signal.SIGABRT)\n"
    )
    assert run(source, walls).passed
    assert "SIGABRT" in run(source, walls, "fail()").reason


def test_the_walls_that_stand_are_said(all_walls):
    text = all_walls.describe()
    for name in all_walls.names:
        assert WALLS[name] in text


def test_without_walls_programs_are_refused_unless_that_is_asked_for(monkeypatch):
    none = Walls((), False, False, ("namespaces (not permitted)",))
    monkeypatch.setattr(walls_module, "find_walls", lambda: none)
    with pytest.raises(UserError, match="--weak-sandbox"):
        check_walls(may_be_weak=False)
    assert check_walls(may_be_weak=True) is none
    assert run(RIGHT, none).passed
    assert not run("import sys\nsys.exit(0)", none).passed
