"""Programs that do not solve what they are asked do not pass, whatever they try."""

from __future__ import annotations

import pytest

from diablo_ds.evaluation.sandbox.program import Program
from diablo_ds.evaluation.sandbox.running import check_programs
from tests.unit.evaluation.programs import LIMITS, RIGHT, TESTS, run

pytestmark = pytest.mark.slow

FORGERIES = {
    "exits": "import sys\nsys.exit(0)",
    "exits at once": "import os\nos._exit(0)",
    "exits when called": "import os\ndef answer(x):\n    os._exit(0)",
    "is equal to everything": (
        "class Any(int):\n    def __eq__(self, other):\n        return True\n"
        "def answer(x):\n    return Any(0)"
    ),
    "returns an object": (
        "class Any:\n    def __eq__(self, other):\n        return True\n"
        "    def __reduce__(self):\n        return (eval, ('4',))\n"
        "def answer(x):\n    return Any()"
    ),
    "replaces the checker": (
        "import sys, builtins, gc\n"
        "builtins.AssertionError = type('E', (BaseException,), {})\n"
        "for m in list(sys.modules.values()):\n"
        "    for name in ('check', 'answer', 'exec', 'compile'):\n"
        "        try:\n            setattr(m, name, lambda *a, **k: True)\n"
        "        except Exception:\n            pass\n"
        "def answer(x):\n    return 4"
    ),
    "writes a verdict": (
        "import os, json\n"
        "for fd in range(3, 64):\n"
        "    try:\n        os.write(fd, json.dumps({'reason': ''}).encode())\n"
        "    except OSError:\n        pass\n"
        "def answer(x):\n    return 4"
    ),
    "sends what runs code": (
        "import os, pickle, struct\n"
        "class Bad:\n    def __reduce__(self):\n        return (os._exit, (0,))\n"
        "data = pickle.dumps(('value', Bad()))\n"
        "for fd in range(3, 64):\n"
        "    try:\n        os.write(fd, struct.pack('<I', len(data)) + data)\n"
        "    except OSError:\n        pass\n"
    ),
    "raises what ends processes": "def answer(x):\n    raise SystemExit(0)",
    "defines nothing": "x = 1",
    "is no Python": "def answer(x:",
}


@pytest.mark.parametrize("source", FORGERIES.values(), ids=FORGERIES)
def test_no_program_passes_without_solving(source, all_walls):
    outcome = run(source, all_walls)
    assert not outcome.passed
    assert outcome.reason


def test_the_tests_use_the_helpers_of_the_question(all_walls):
    tests = "assert abs(helper(answer(1))) < 1\n"
    setup = "def helper(x):\n    return x\ndef answer(x):\n    '''To be written.'''\n"
    fake = "def helper(x):\n    return 0\ndef answer(x):\n    return 7\n"
    assert not run(fake, all_walls, tests, setup=setup, entry_point="answer").passed
    right = "def answer(x):\n    return x - x\n"
    assert run(right, all_walls, tests, setup=setup, entry_point="answer").passed


def test_objects_of_a_program_are_used_across(all_walls):
    source = (
        "import math\nfrom collections import Counter\n"
        "class Node:\n    def __init__(self, value):\n        self.value, self.next = value, None\n"
        "def total(node):\n    return node.value + (total(node.next) if node.next else 0)\n"
        "def count(text):\n    return Counter(text)\n"
        "def squares(n):\n    return (i * i for i in range(n))\n"
        "def fails():\n    raise ValueError('no')\n"
    )
    tests = (
        "first = Node(1)\nfirst.next = Node(2)\nassert total(first) == 3\n"
        "assert count('aab') == {'a': 2, 'b': 1}\n"
        "assert list(squares(3)) == [0, 1, 4]\nassert math.pi > 3\n"
        "try:\n    fails()\nexcept ValueError as error:\n    assert str(error) == 'no'\n"
        "else:\n    raise AssertionError\n"
    )
    assert run(source, all_walls, tests).reason == ""


def test_programs_are_told_apart_and_stay_in_order(all_walls):
    sources = [RIGHT if i % 2 else "def answer(x):\n    return 0\n" for i in range(6)]
    seen = []
    outcomes = check_programs(
        (Program(source, TESTS) for source in sources), all_walls, LIMITS, on_outcome=seen.append
    )
    assert [outcome.passed for outcome in outcomes] == [False, True] * 3
    assert seen == outcomes
