from __future__ import annotations

from diablo_ds.launcher import hosts
from tests.unit.test_structure import MODULES

LOOSENED = ("StrictHostKeyChecking", "UserKnownHostsFile", "ForwardAgent", "ForwardX11")


def test_ssh_checks_host_keys_as_the_user_has_it_and_forwards_nothing():
    assert not {"-A", "-X", "-Y"} & set(hosts._OPTIONS)
    for path in MODULES:
        text = path.read_text()
        assert not [word for word in LOOSENED if word in text], path
