"""Messages between ranks: equal on both sides, and never code."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import pytest
import torch

from diablo_ds.config.run import RunConfig
from diablo_ds.data.masks import EXAMPLES, MaskRule
from diablo_ds.errors import UserError
from diablo_ds.model.recomputation import Recomputation
from diablo_ds.model.separation import Separation
from diablo_ds.ranks.identity import IdentityError
from diablo_ds.ranks.messages import decode, encode

VALUES = {
    "nothing": None,
    "numbers": [0.1, -0.0, 1e308, 2**70, math.inf, True],
    "text": "\u20ac \udc80 \x1b",
    "containers": {("a", 1): {1, 2}, None: frozenset({"x"}), 3: [(), [()]]},
    "path": Path("/a/b c"),
    "config": RunConfig(micro_batch=1, global_batch=2, data=("a", "b")),
    "nested": Separation(MaskRule(EXAMPLES, {"full": 0}, torch.bfloat16), text="so"),
    "named tuple": (Recomputation(3, keep_attention=True), 4),
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_value_arrives_equal_and_of_the_same_type(value):
    arrived = decode(encode(value))
    assert (arrived, type(arrived)) == (value, type(value))
    assert repr(arrived) == repr(value)


@pytest.mark.parametrize(
    "error",
    [
        UserError("rule; got x=1"),
        IdentityError("no rank"),
        FileNotFoundError(2, "No such file", "/a"),
        PermissionError("must be yours"),
        OSError("disk"),
    ],
    ids=repr,
)
def test_an_error_arrives_with_its_type_and_text(error):
    arrived = decode(encode(error))
    assert (type(arrived), str(arrived)) == (type(error), str(error))


class Evil:
    """Runs a function where it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a message ran code",))


def test_what_no_message_can_hold_is_not_sent():
    with pytest.raises(TypeError, match="plain values; got Evil"):
        encode([Evil()])


FORGED = {
    "a pickle": pickle.dumps(Evil()),
    "nothing": b"",
    "a function": {"error": "exec", "of": ["pytest.fail('ran')"]},
    "another error": {"error": "SystemExit", "of": [0]},
    "a foreign class": {"dataclass": "subprocess:Popen", "of": {"args": "true"}},
    "a module that is not loaded": {"dataclass": "diablo_ds.__main__:Any", "of": {}},
    "what a module imports": {"enum": "diablo_ds.ranks.messages:Path", "of": "/"},
    "a function of the package": {"named": "diablo_ds.ranks.messages:decode", "of": []},
    "missing fields": {"dataclass": "diablo_ds.data.masks:MaskRule", "of": {"kind": "none"}},
    "no dtype": {"dtype": "load"},
    "an unknown kind": {"call": "print", "of": []},
    "an empty object": {},
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_what_is_no_message_is_refused(forged):
    data = forged if isinstance(forged, bytes) else json.dumps(forged).encode()
    with pytest.raises(UserError, match="ranks must send what this program sends"):
        decode(data)


def test_a_message_as_deep_as_one_likes_is_refused():
    with pytest.raises(UserError, match="recursion"):
        decode(b"[" * 100_000)
