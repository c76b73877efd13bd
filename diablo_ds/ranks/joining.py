"""Who may join a run: ranks prove to one another that they have its secret, before anything else.

Each start has a secret of 32 random bytes, which its launcher hands to its ranks by environment or
by a file of mode 0600. What a rank says while ranks meet carries a keyed hash (HMAC-SHA256, RFC
2104) over what it says, its number and the number of ranks. Each rank adds a random text, so that
all of it together is told once in a lifetime and stands for this run: over that they prove the
secret once more in the group that they have formed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from diablo_ds.errors import UserError
from diablo_ds.ranks import distributed

PROOF_BYTES = hashlib.sha256().digest_size
_RANDOM_BYTES = 16
_TELLING_S = 60.0
"""How long rank 0 stays to tell the other ranks why the run cannot start."""


class PortInUseError(OSError):
    """Another process has the master port; the next attempt uses another one."""


class StrangerError(PortInUseError):
    """A process without the run's secret came to the place where its ranks meet."""


class Store(Protocol):
    """What is used of PyTorch's stores."""

    def set(self, key: str, value: Any, /) -> None:
        """Set a value."""

    def get(self, key: str, /) -> bytes:
        """Wait for a value and return it."""

    def add(self, key: str, value: int, /) -> int:
        """Add to a counter and return it."""


@dataclass(frozen=True)
class Membership:
    """One rank of a run, and the secret by which it knows the others.

    Args:
        secret: the run's secret; empty for none, in which case nothing is proved.
        rank: this rank.
        world_size: number of ranks.
        run: digest of all that its ranks said as they met; empty before.
    """

    secret: bytes
    rank: int
    world_size: int
    run: str = ""

    def proof(self, rank: int, what: str, data: bytes = b"") -> bytes:
        """Return the bytes by which a rank proves that it has the secret; zeros without one."""
        if not self.secret:
            return bytes(PROOF_BYTES)
        head = f"diablo_ds {what}, rank {rank} of {self.world_size}, run {self.run}\0"
        return hmac.digest(self.secret, head.encode() + data, "sha256")

    def seal(self, what: str, value: object) -> bytes:
        """Return a value with the proof that this rank says it."""
        data = json.dumps(value).encode()
        return self.proof(self.rank, what, data) + data

    def unseal(self, rank: int, what: str, message: bytes) -> Any:
        """Return the value that another rank sealed.

        Raises:
            StrangerError: if it was not sealed by that rank of this run.
        """
        proof, data = message[:PROOF_BYTES], message[PROOF_BYTES:]
        if not hmac.compare_digest(proof, self.proof(rank, what, data)):
            raise _stranger([rank], self.rank)
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise _stranger([rank], self.rank) from None

    def check_proofs(self, proofs: Sequence[bytes]) -> None:
        """Raise StrangerError where a rank of the group has not proved that it has the secret."""
        wrong = [
            rank
            for rank, proof in enumerate(proofs)
            if not hmac.compare_digest(proof, self.proof(rank, "group"))
        ]
        if wrong:
            raise _stranger(wrong, self.rank)

    def label(self) -> str:
        """Return a text that all ranks of this start have in common, and nobody can guess."""
        text = f"label {self.run}"
        return hmac.digest(self.secret or b"none", text.encode(), "sha256").hex()[:32]


def meet(store: Store, mine: Membership, facts: Mapping[str, str]) -> Membership:
    """Find out who the other ranks are, and that all have the same facts.

    Meant for what a process group needs in order to form, such as the kind of device: ranks
    that differ in it would wait for each other forever. Collective: every rank must call this,
    before the process group exists.

    Args:
        store: where all ranks write.
        mine: this rank.
        facts: what this rank found on its machine, by name.

    Returns:
        This rank, as a member of a run that all ranks know.

    Raises:
        StrangerError: if a process without the secret came.
        UserError: on every rank, if two ranks differ; names them and their hosts.
    """
    prefix = f"diablo_ds-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    own = [distributed.host_name(), dict(facts), secrets.token_hex(_RANDOM_BYTES)]
    hello = mine.seal("hello", own)
    if mine.rank:
        store.set(f"{prefix}-{mine.rank}", hello)
        message = store.get(f"{prefix}-answer")
        store.add(f"{prefix}-told", 1)
        answer = mine.unseal(0, "answer", message)
    else:
        others = [store.get(f"{prefix}-{rank}") for rank in range(1, mine.world_size)]
        answer = _answer(mine, own, [hello, *others])
        store.set(f"{prefix}-answer", mine.seal("answer", answer))
        deadline = time.monotonic() + _TELLING_S
        while store.add(f"{prefix}-told", 0) < mine.world_size - 1 and time.monotonic() < deadline:
            time.sleep(0.01)  # with this process the store ends, from which the others read
    strangers, difference, said = answer
    if strangers:
        raise _stranger(strangers, 0)
    if said[mine.rank] != _digest(hello):  # another process spoke in this rank's place
        raise _stranger([mine.rank], 0)
    if difference:
        raise UserError(difference)
    run = _digest(json.dumps(said).encode())
    return Membership(mine.secret, mine.rank, mine.world_size, run)


def _answer(
    mine: Membership, own: list[Any], hellos: Sequence[bytes]
) -> tuple[list[int], str, list[str]]:
    """Return the ranks that are strangers, how hosts differ, and digests of what all said."""
    strangers, found = [], [(own[0], own[1])]
    for rank, hello in enumerate(hellos[1:], 1):
        try:
            host, facts, _ = mine.unseal(rank, "hello", hello)
            found.append((str(host), {name: str(facts[name]) for name in own[1]}))
        except (StrangerError, ValueError, TypeError, KeyError):
            strangers.append(rank)
    difference = "" if strangers else distributed.first_difference(found, "host")
    return strangers, difference, list(map(_digest, hellos))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _stranger(ranks: Sequence[int], seen_by: int) -> StrangerError:
    return StrangerError(
        "every rank must have the secret that the launcher gave to this run; got another, or "
        f"none, on ranks {', '.join(map(str, ranks))} as seen by rank {seen_by}; a process of "
        "somebody else's has come to the place where ranks meet, or hosts do not share the log "
        "folder; the run ends before it believes anything that was said there"
    )
