from __future__ import annotations

from pathlib import Path

import pytest

from diablo_ds.errors import UserError
from diablo_ds.launcher.cluster import Cluster, Host, hostfile_text, read_hostfile
from tests.unit.launcher.cases import HOSTS


def test_a_hostfile_is_read_as_it_is_written(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# ours\n\n" + hostfile_text(HOSTS) + "10.0.0.3  slots=2  # old\n")
    assert read_hostfile(path) == (*HOSTS, Host("10.0.0.3", 2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a slots=1\nb 4\n", "got 'b 4' in .*hosts, line 2"),
        ("a slots=0\n", "at least one slot"),
        ("-Fplanted slots=1\n", "got '-Fplanted slots=1'"),  # an option of ssh
        ("a slots=" + "9" * 5000, "at least one slot; got 'a slots=999"),
        ("\ufeffa slots=1\nb\0 slots=1", r"got 'b\\x00 slots=1' in .*hosts, line 2"),
        ("a slots=1\n\na slots=2\n", "a again in .*, line 3"),
        ("a;id slots=1\n", "a line of"),
        ("a$(id) slots=1\n", "a line of"),
        ("a b slots=1\n", "a line of"),
        ("u@h slots=1\n", "a line of"),
        ("../x slots=1\n", "a line of"),
        ("a" * 64 + " slots=1\n", "a line of"),  # longer than DNS allows
        ("a." * 127 + " slots=1\n", "a line of"),
        ("# nothing\n", "at least one host; got none"),
    ],
)
def test_a_wrong_hostfile_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_hostfile(path)


def test_a_hostfile_in_another_encoding_is_named(tmp_path):
    (tmp_path / "hosts").write_text("a slots=1\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"text file; got .*hosts, line 1: .* it is UTF-16"):
        read_hostfile(tmp_path / "hosts")
    (tmp_path / "hosts").write_bytes(b"a slots=1\nb\xe9 slots=1\n")
    with pytest.raises(UserError, match="hosts, line 2: the text must be UTF-8"):
        read_hostfile(tmp_path / "hosts")
    with pytest.raises(UserError, match=r"must be readable; got .*: Is a directory"):
        read_hostfile(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runner": "no-ssh"}, "node_rank goes with --no-ssh"),
        ({"runner": "pdsh", "node_rank": 0}, "node_rank goes with --no-ssh"),
        ({"runner": "openmpi", "ssh_port": 22}, "ssh_port is for the runner pdsh"),
        ({"runner": "local", "master_addr": "1.2.3.4"}, "master_addr is for the hosts"),
        ({"runner": "no-ssh", "node_rank": 2}, "from 0 to 1"),
        ({"runner": "pdsh", "interface": "ib0;id"}, "interface must be a word"),
        ({"runner": "pdsh", "wrap": "a\nb"}, "wrap must be text without control characters"),
        ({"runner": "pdsh", "hostfile": None}, "needs a hostfile"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, message):
    values = {"hosts": HOSTS, "hostfile": Path("hosts"), **changes}
    with pytest.raises(UserError, match=message):
        Cluster(**values)
