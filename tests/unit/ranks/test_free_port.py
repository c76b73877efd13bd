from __future__ import annotations

import secrets
import socket

from diablo_ds.ranks.free_port import free_port


def test_a_port_in_use_is_not_chosen(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as free:
        free.bind(("", 0))
        numbers = [taken.getsockname()[1], free.getsockname()[1]]
        free.close()
        sample = type("Sample", (), {"sample": lambda *_: numbers})
        monkeypatch.setattr(secrets, "SystemRandom", sample)
        assert free_port() == numbers[1]
