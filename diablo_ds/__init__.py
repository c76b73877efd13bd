"""DiaBlo fine-tuning with DeepSpeed: train only the diagonal blocks of chosen weight matrices.

In Python, for any model and training loop:

    attach  give a model deltas; train what it returns
    save    write the deltas as an adapter's folder
    load    put a saved adapter on a model
    merge   add the deltas to the weights for good
    detach  take the deltas off again

On the command line: ``diablo-ds --help``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diablo_ds.api.functions import attach, detach, load, merge, save

__version__ = "0.1.0"
__all__ = ["__version__", "attach", "detach", "load", "merge", "save"]


def __getattr__(name: str) -> Any:
    """Import a function when it is asked for, and torch with it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module("diablo_ds.api.functions"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
