"""What the kernel tells of a kill, from its files as containers, hosts and jobs see them."""

from __future__ import annotations

from pathlib import Path

import pytest

from diablo_ds.ranks.memory_kills import (
    KILLER,
    count_of_kills,
    explain_kill,
    log_of_kill,
    read_counter,
)

V1_MOUNT = "35 31 0:32 {top} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory"
CPU_MOUNT = "34 31 0:31 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct"
V2_MOUNT = "41 31 0:38 {top} /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate"


def _write(root: Path, **files: str) -> Path:
    """Write files under a root; the names have __ for / and _dot_ for a dot."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def _events(root: Path, folder: str, count: int) -> Path:
    folder = root / folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.events").write_text(f"low 0\noom {count}\noom_kill {count}\n")
    return folder


@pytest.mark.parametrize(
    ("path", "top", "inside"),
    [
        ("/slurm/job 5/step", "/", "slurm/job 5/step"),
        ("/docker/abc", "/docker/abc", ""),  # a container without a namespace of its own
        ("/", "/", ""),
        ("/../other", "/", ""),  # outside of what this namespace shows
    ],
)
def test_the_own_cgroup_of_version_1_is_found(tmp_path, path, top, inside):
    mounts = f"{CPU_MOUNT}\n{V1_MOUNT.format(top=top)}\n"
    cgroups = f"9:name=systemd:/\n4:cpu,memory:{path}\n0::/\n"
    _write(tmp_path, proc__self__mountinfo=mounts, proc__self__cgroup=cgroups)
    folder = tmp_path / "sys/fs/cgroup/memory" / inside
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    (folder / "memory.limit_in_bytes").write_text("8000000000\n")
    before = read_counter(tmp_path)
    assert before is not None
    assert (before.count, before.limit_bytes, before.is_own) == (2, 8_000_000_000, True)
    (folder / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert f"{folder}/memory.oom_control grew from 2 to 3, with a limit of 8.00 GB" in (
        count_of_kills(before, root=tmp_path)
    )


def test_kernels_that_count_no_kills_count_how_often_the_limit_was_hit(tmp_path):
    _write(
        tmp_path,
        proc__self__mountinfo=V1_MOUNT.format(top="/"),
        proc__self__cgroup="4:memory:/a\n",
        sys__fs__cgroup__memory__a__memory_dot_oom_control="oom_kill_disable 0\nunder_oom 0\n",
        sys__fs__cgroup__memory__a__memory_dot_failcnt="7\n",
        sys__fs__cgroup__memory__a__memory_dot_limit_in_bytes="9223372036854771712\n",
    )
    counter = read_counter(tmp_path)
    assert counter is not None
    assert (counter.count, counter.limit_bytes) == (7, None)
    assert counter.what.endswith("memory/a/memory.failcnt")


def test_the_nearest_cgroup_of_version_2_with_a_counter_is_taken(tmp_path):
    _write(
        tmp_path,
        proc__self__mountinfo=V2_MOUNT.format(top="/").replace("cgroup rw", "c\\040g rw", 1),
        proc__self__cgroup="0::/user.slice/run.scope/inner\n",
    )
    mount = tmp_path / "sys/fs/c g"
    (mount / "user.slice/run.scope/inner").mkdir(parents=True)
    folder = _events(tmp_path, "sys/fs/c g/user.slice/run.scope", 0)
    (folder / "memory.max").write_text("max\n")
    before = read_counter(tmp_path)
    assert before is not None
    assert before.limit_bytes is None
    assert count_of_kills(before, root=tmp_path) == ""
    _events(tmp_path, "sys/fs/c g/user.slice/run.scope", 1)
    text = explain_kill(1, 0.0, before, root=tmp_path)
    assert text.startswith(f"most likely {KILLER}: oom_kill in ")
    assert text.endswith("run.scope/memory.events grew from 0 to 1")


def test_without_cgroups_the_machine_counts(tmp_path):
    _write(tmp_path, proc__vmstat="nr_free_pages 5\noom_kill 3\n")
    before = read_counter(tmp_path)
    assert before is not None
    assert not before.is_own
    _write(tmp_path, proc__vmstat="nr_free_pages 5\noom_kill 4\n")
    assert explain_kill(1, 0.0, before, root=tmp_path).startswith(f"perhaps {KILLER}: ")


def test_where_nothing_can_be_read_nothing_is_said(tmp_path):
    assert read_counter(tmp_path) is None
    assert explain_kill(1, 0.0, None, root=tmp_path) == ""
    _write(tmp_path, proc__self__cgroup="nonsense", proc__vmstat="oom_kill many")
    assert read_counter(tmp_path) is None


_VICTIM = "Killed process {pid} (py) thon) total-vm:9kB, anon-rss:61000kB, file-rss:1kB, UID:0"


@pytest.mark.parametrize(
    "line",
    [
        "6,1234,500000000,-;Memory cgroup out of memory: " + _VICTIM,
        "3,1234,500000000,-,caller=T9;Out of memory: " + _VICTIM,
        "<6>[  500.000000] Out of memory: " + _VICTIM,
        "3,9,500000000,-;Killed process {pid} (python), UID 1000, total-vm:1kB, anon-rss:61000kB",
    ],
)
def test_the_log_names_the_process_and_what_it_held(tmp_path, line):
    lines = [
        "6,1,400000000,-;python invoked oom-killer: gfp_mask=0x0\n SUBSYSTEM=x",
        line.format(pid=77),
        line.format(pid=78),
        "no record",
    ]
    _write(tmp_path, dev__kmsg="\n".join(lines))
    assert log_of_kill(77, 499.0, root=tmp_path) == 61_000 * 1024
    assert log_of_kill(79, 499.0, root=tmp_path) is None
    assert log_of_kill(77, 600.0, root=tmp_path) is None  # an earlier process of that number
    assert "it held 0.06 GB" in explain_kill(77, 499.0, None, root=tmp_path)
