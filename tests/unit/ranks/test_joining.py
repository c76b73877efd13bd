"""Who may join: ranks with the run's secret; strangers cost an error on every rank, and no more."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from diablo_ds.errors import UserError
from diablo_ds.ranks.environment import new_key, shared_key
from diablo_ds.ranks.joining import Membership, StrangerError, meet
from tests.waiting import WAIT_S

SECRET = b"5" * 64
CPU = {"device": "cpu"}
Meeting = Callable[[Any], Any]


def _all(*meetings: Meeting) -> list[Any]:
    """Return what each of several ranks, which meet in one store, returns or raises."""
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=WAIT_S))
    found: list[Any] = [None] * len(meetings)

    def run(place: int) -> None:
        try:
            found[place] = meetings[place](store)
        except (UserError, StrangerError) as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=[place]) for place in range(len(meetings))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def _rank(number: int, secret: bytes = SECRET, world_size: int = 2, **facts: str) -> Meeting:
    return lambda store: meet(store, Membership(secret, number, world_size), CPU | facts)


def test_ranks_with_one_secret_come_to_know_the_same_run_and_each_start_another():
    first, second = _all(_rank(0), _rank(1))
    assert first.run == second.run
    assert first.label() == second.label()
    proofs = [rank.proof(rank.rank, "group") for rank in (first, second)]
    first.check_proofs(proofs)
    second.check_proofs(proofs)
    later, _ = _all(_rank(0), _rank(1))
    assert later.run != first.run
    with pytest.raises(StrangerError, match="on ranks 0, 1 as seen by rank 0"):
        later.check_proofs(proofs)


@pytest.mark.parametrize(
    "changes", [{"rank": 1}, {"world_size": 3}, {"run": "another"}, {"secret": b"x"}]
)
def test_a_proof_is_one_ranks_of_one_run(changes):
    mine = Membership(SECRET, 0, 2, "run")
    other = dataclasses.replace(mine, **changes)
    assert other.proof(other.rank, "group") != mine.proof(0, "group")
    with pytest.raises(StrangerError):
        mine.check_proofs([other.proof(other.rank, "group")])


@pytest.mark.parametrize("secrets", [(SECRET, b"x"), (SECRET, b""), (b"", SECRET)])
def test_without_the_secret_nobody_gets_in_on_either_side(secrets):
    found = _all(_rank(0, secrets[0]), _rank(1, secrets[1]))
    assert [type(error) for error in found] == [StrangerError, StrangerError]
    assert not any(SECRET.decode() in str(error) for error in found)


def test_ranks_without_any_secret_meet_all_the_same():
    first, second = _all(_rank(0, b""), _rank(1, b""))
    assert first.run == second.run


@pytest.mark.parametrize("said", [b"", b"x", b"\0" * 32 + b"[" * 100_000, b"\0" * 32 + b"[1]"])
def test_what_a_stranger_says_in_a_ranks_place_costs_an_error(said):
    def stranger(store):
        store.set("diablo_ds-0-1", said)
        store.add("diablo_ds-0-told", 1)

    for secret in (SECRET, b""):
        error, _ = _all(_rank(0, secret), stranger)
        assert isinstance(error, StrangerError)
        assert "on ranks 1" in str(error)


def test_a_stranger_in_rank_0s_place_is_not_believed():
    def stranger(store):
        store.set("diablo_ds-0-answer", bytes(32) + json.dumps([[], "obey", ["a", "b"]]).encode())

    _, error = _all(stranger, _rank(1))
    assert isinstance(error, StrangerError)
    assert "on ranks 0 as seen by rank 1" in str(error)


def test_what_a_rank_said_at_another_start_serves_nobody():
    kept = {}

    def listening(store):
        found = _rank(1)(store)
        kept["hello"] = store.get("diablo_ds-0-1")
        return found

    _all(_rank(0), listening)

    def replaying(store):
        store.set("diablo_ds-0-1", kept["hello"])
        store.add("diablo_ds-0-told", 1)

    first, _ = _all(_rank(0), replaying)
    # Its replay is let into the store, but cannot prove anything in the group of this start.
    with pytest.raises(StrangerError, match="on ranks 1"):
        first.check_proofs([first.proof(0, "group"), Membership(b"", 1, 2).proof(1, "group")])


def test_ranks_whose_hosts_differ_are_told_so():
    found = _all(_rank(0), _rank(1, device="cuda"))
    assert {type(error) for error in found} == {UserError}
    assert len({str(error) for error in found}) == 1
    assert "got cpu on rank 0" in str(found[0])


def test_a_secret_has_32_random_bytes_in_a_file_of_this_user_alone(tmp_path, monkeypatch):
    assert len(bytes.fromhex(new_key())) == 32
    assert new_key() != new_key()
    monkeypatch.setenv("DIABLO_SHARED_WITH", "group-readable")
    secret = shared_key(tmp_path)
    assert shared_key(tmp_path) == secret
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
