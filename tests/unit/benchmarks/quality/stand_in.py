"""A worker's process that trains nothing: it speaks the same lines, and answers by a parabola.

Started with the name of a misbehaviour and the number of specs after which it begins.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from typing import Any


def _say(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Answer specs until the input ends."""
    how, after = sys.argv[1], int(sys.argv[2])
    sys.stdout.write("a library's own line\n")
    for number, line in enumerate(sys.stdin):
        spec = json.loads(line)
        _say({"progress": {"step": 1, "num_steps": 2, "loss": 1.0}})
        if number >= after and how == "die":
            sys.stderr.write("out of memory\n")
            sys.stderr.flush()
            os.kill(os.getpid(), 9)
        if number >= after and how == "hang":
            time.sleep(600)
        if number >= after and how == "refuse":
            _say({"error": "num_held_out must be at most 10"})
            continue
        loss = 1 + 0.03 * math.log2(spec["rate"] / 3e-3) ** 2
        seconds = {"build": 0.0, "train": 0.01, "heldout": 0.0, "questions": 0.0, "total": 0.01}
        values = {"status": "done", "heldout": loss, "seconds": seconds, "trainable": 7}
        _say({"record": {"key": "", "spec": spec, **values}})


main()
