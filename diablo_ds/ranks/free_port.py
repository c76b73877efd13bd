"""A port of this machine that nothing listens on; only the standard library is used here."""

from __future__ import annotations

import contextlib
import secrets
import socket

FIRST_PORT, NUM_PORTS = 20000, 12000
"""Below those that systems give to connections; strangers cannot guess which one is taken."""


def free_port() -> int:
    """Return a random port of this machine that nothing listens on.

    Raises:
        OSError: if there is none.
    """
    for port in secrets.SystemRandom().sample(range(FIRST_PORT, FIRST_PORT + NUM_PORTS), 1000):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            return port
    raise OSError(f"a port from {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1} must be free")
