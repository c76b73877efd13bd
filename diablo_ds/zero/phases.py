"""Phases of a step that carry a name in a trace: what DeepSpeed gathers, and what it reduces.

Names that PyTorch's profiler records cost some microseconds where nothing is traced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch.profiler import record_function

from diablo_ds.zero import traffic

FORWARD, BACKWARD, GATHER, REDUCE, UPDATE = "forward", "backward", "gather", "reduce", "update"
PHASES = (GATHER, FORWARD, BACKWARD, REDUCE, UPDATE)
"""Gathers of the base lie inside forward and backward; those of the deltas are the update's."""


@contextlib.contextmanager
def named_exit(name: str, context: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
    """Enter a context whose exit is a phase."""
    with contextlib.ExitStack() as phase, context:
        try:
            yield
        finally:
            phase.enter_context(record_function(name))


@contextlib.contextmanager
def naming_gathers() -> Iterator[None]:
    """Name DeepSpeed's gathers of the base while this is entered; nothing else changes."""

    def named(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def gather(*args: Any, **kwargs: Any) -> Any:
            if traffic.is_updating():
                return method(*args, **kwargs)
            with record_function(GATHER):
                return method(*args, **kwargs)

        return gather if "gather" in name else method

    with traffic.wrapping_collectives(named):
        yield
