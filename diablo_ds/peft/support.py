"""Whether PEFT can take a method from outside: its version, and the one member it lacks."""

from __future__ import annotations

import importlib.metadata
from typing import Any

METHOD = "DIABLO"
"""Name of the method in PEFT: `peft_type` in an adapter's config."""
SUPPORTED = "0.21"
"""The release of PEFT whose internals this package uses; patch releases included."""


def check_peft() -> None:
    """Raise ImportError unless a supported PEFT is installed."""
    try:
        version = importlib.metadata.version("peft")
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(
            f"diablo_ds.peft needs PEFT {SUPPORTED}; got none; install it with "
            "pip install 'diablo-ds[peft]'"
        ) from None
    if version.split(".")[:2] != SUPPORTED.split("."):
        raise ImportError(
            f"diablo_ds.peft needs PEFT {SUPPORTED}, whose internals it uses; got peft {version}; "
            f"install pip install 'peft~={SUPPORTED}.0'"
        )


def add_peft_type() -> Any:
    """Give `peft.PeftType` the member DIABLO, unless it has it, and return the member.

    `peft.utils.register_peft_method` takes members of this enumeration only, and Python offers no
    way to extend one: this writes what `enum.EnumType` writes for a member of a class body.

    Raises:
        ImportError: if the enumeration does not behave as one with this member afterwards.
    """
    from peft import PeftType

    if METHOD not in PeftType.__members__:
        member = str.__new__(PeftType, METHOD)
        member._name_ = member._value_ = METHOD
        member._sort_order_ = len(PeftType._member_names_)
        member.__objclass__ = PeftType
        setattr(PeftType, METHOD, member)
        PeftType._member_names_.append(METHOD)
        PeftType._member_map_[METHOD] = member
        PeftType._value2member_map_[METHOD] = member
        if hasattr(PeftType, "_hashable_values_"):  # Python 3.13: what `in` looks at
            PeftType._hashable_values_.append(METHOD)
    member = PeftType.__members__[METHOD]
    if not (
        PeftType(METHOD) is PeftType[METHOD] is getattr(PeftType, METHOD) is member
        and member in list(PeftType)
        and member == METHOD
    ):
        raise ImportError(
            f"peft.PeftType must take {METHOD} as a member; it did not under this Python and peft "
            f"{importlib.metadata.version('peft')}"
        )
    return member
