"""Output of real processes: characters that an encoding lacks, readers that are slow or gone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from diablo_ds.ranks.terminal import Outlet, write_all
from tests.waiting import WAIT_S


def _run(code: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", code], timeout=WAIT_S, **options)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_a_character_that_the_encoding_lacks_is_written_as_an_escape(encoding):
    code = (
        "import sys; from diablo_ds.ranks import terminal; terminal.make_safe()\n"
        "print('\\u6587 \\udce9.'); print('\\u6587 \\udce9.', file=sys.stderr)\n"
        "with terminal.unblocked(): print('\\u6587 \\udce9.')"
    )
    done = _run(code, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding})
    expected = "\u6587" if encoding == "utf-8" else "\\u6587"
    assert done.stdout.decode() == f"{expected} \\udce9.\n" * 2
    assert done.stderr.decode() == f"{expected} \\udce9.\n"


def test_what_a_terminal_would_obey_is_shown_and_bars_are_drawn():
    code = (
        "import sys; from diablo_ds.ranks import terminal; terminal.make_safe()\n"
        "from tqdm import tqdm\n"
        "text = 'a\\x1b]0;title\\x07\\r\\x9b2J\\tb'\n"
        "print(text); sys.__stdout__.write(text + '\\n'); print(text, file=sys.stderr)\n"
        "with terminal.unblocked(): print(text)\n"
        "sys.stdout.write_line('\\r 5%|' + text + '\\n'); sys.stdout.write_as_is(text)\n"
        "outer, inner = tqdm(total=1), tqdm(total=1, position=1); inner.update(); inner.close()\n"
        "raise ValueError(text)\n"
    )
    done = _run(code, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    safe = "a\\x1b]0;title\\x07\\r\\x9b2J\tb\n"
    assert done.stdout.decode() == safe * 3 + (
        "\r 5%|a\\x1b]0;title\\x07\r\\x9b2J\tb\na\x1b]0;title\x07\r\x9b2J\tb"
    )
    errors = done.stderr.decode()
    assert errors.startswith(safe)
    assert f"ValueError: {safe}" in errors
    assert "\r100%" in errors  # a bar
    assert "\x1b[A" in errors  # and its way back
    assert "\x07" not in errors


def test_a_process_without_streams_keeps_its_files_apart_from_them(tmp_path):
    code = (
        "from diablo_ds.ranks import terminal; terminal.make_safe()\n"
        f"file = open({str(tmp_path / 'file')!r}, 'w'); print('lost'); assert file.fileno() > 2"
    )
    closed = f'exec {sys.executable} -c "$0" >&- 2>&-'
    assert subprocess.run(["sh", "-c", closed, code], timeout=WAIT_S).returncode == 0
    assert (tmp_path / "file").read_text() == ""


def test_an_outlet_keeps_order_and_says_what_it_left_out():
    source, end = os.pipe()
    outlet = Outlet("all of it is elsewhere", buffer_bytes=200_000)
    outlet.write(b"first\n", end)
    for _ in range(10):
        outlet.write(b"x" * 99_999 + b"\n", end)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.extend(iter(lambda: os.read(source, 65536), b"")))
    reader.start()
    assert outlet.drain(WAIT_S)
    outlet.write(b"last\n", end)
    assert outlet.drain(WAIT_S)
    os.close(end)
    reader.join(WAIT_S)
    os.close(source)
    lines = b"".join(read).decode().split("\n")
    num_whole = sum(line == "x" * 99_999 for line in lines)
    assert lines[0] == "first"
    remark = f"[{(10 - num_whole) * 100_000:,} bytes of output are missing here; all of it is "
    assert remark + "elsewhere]" in lines
    assert lines[-2:] == ["last", ""]


def test_a_reader_that_is_gone_and_a_full_disk_are_no_errors():
    source, end = os.pipe()
    os.close(source)
    assert write_all(end, b"lost") == 4
    os.close(end)
    with open("/dev/full", "wb", buffering=0) as full:
        outlet = Outlet()
        outlet.write(b"lost", full.fileno())
        assert outlet.drain(WAIT_S)


@pytest.mark.parametrize("is_read", [True, False])
def test_a_block_goes_on_while_nobody_reads_and_its_output_comes_at_its_end(is_read, tmp_path):
    code = (
        "from diablo_ds.ranks.terminal import unblocked\n"
        "from pathlib import Path; import sys, time\n"
        "with unblocked():\n"
        "    for i in range(5000): print(f'{i:0100}', flush=True)\n"
        "    print('error', file=sys.stderr)\n"
        f"    Path({str(tmp_path / 'done')!r}).touch()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=-2)
    while not (tmp_path / "done").exists():
        assert process.poll() is None
    assert process.stdout is not None
    if is_read:
        expected = [*(f"{i:0100}" for i in range(5000)), "error"]
        assert process.stdout.read().decode().split() == expected
    process.stdout.close()
    assert process.wait(timeout=WAIT_S) == 0


def test_a_fork_inside_the_block_writes_by_itself():
    code = (
        "from diablo_ds.ranks.terminal import unblocked; import os\n"
        "with unblocked():\n"
        "    print('parent', flush=True)\n"
        "    child = os.fork()\n"
        "    if not child: print('child', flush=True); os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
    )
    done = _run(code, capture_output=True)
    assert sorted(done.stdout.splitlines()) == [b"child", b"parent"]
