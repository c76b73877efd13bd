"""Values that ranks exchange, as JSON: what arrives is data and never runs as code.

A pickle may call any function where it is read. Here a value is made of numbers, texts, lists and
the like; of classes only those of this package that this process has loaded are built, field by
field, without calling them.
"""

from __future__ import annotations

import builtins
import dataclasses
import json
import re
import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from diablo_ds.errors import UserError

_CLASS = re.compile(r"diablo_ds(?:\.\w+)+:\w+")
_CONTAINERS: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}


def encode(value: object) -> bytes:
    """Return a value as bytes.

    Raises:
        TypeError: if it holds what no message can hold.
    """
    return json.dumps(_to_json(value)).encode("ascii")


def decode(data: bytes) -> Any:
    """Return the value of such bytes.

    Raises:
        UserError: if they are none of this program.
    """
    try:
        return _from_json(json.loads(data))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise UserError(
            f"ranks must send what this program sends; got {data[:60]!r}: {error}; a process of "
            "another program may have joined at the master port"
        ) from None


def _to_json(value: Any) -> Any:
    if isinstance(value, Enum):
        return {"enum": _class_name(type(value)), "of": _to_json(value.value)}
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, BaseException):
        return _error_to_json(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {"named": _class_name(type(value)), "of": [_to_json(item) for item in value]}
    for name, kind in _CONTAINERS.items():
        if isinstance(value, kind):
            return {name: [_to_json(item) for item in value]}
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {"dict": [[_to_json(key), _to_json(item)] for key, item in value.items()]}
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"dataclass": _class_name(type(value)), "of": fields}
    raise TypeError(f"a message must be made of plain values; got {type(value).__name__}")


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind: str
    inner: Any
    kind, inner = next(iter(value.items()), ("", None))
    if kind in _CONTAINERS:
        return _CONTAINERS[kind](_from_json(item) for item in inner)
    if kind == "dict":
        return {_from_json(key): _from_json(item) for key, item in inner}
    if kind == "path":
        return Path(inner)
    if kind == "dtype":
        return _checked(getattr(torch, inner), torch.dtype)
    if kind == "error":
        return _error_from_json(inner, [_from_json(item) for item in value["of"]])
    return _instance(kind, _find_class(inner), value["of"])


def _instance(kind: str, cls: Any, content: Any) -> Any:
    if kind == "enum" and issubclass(cls, Enum):
        return cls(_from_json(content))
    if kind == "named" and issubclass(cls, tuple):
        return tuple.__new__(cls, [_from_json(item) for item in content])
    if kind == "dataclass" and {f.name for f in dataclasses.fields(cls)} == content.keys():
        made = object.__new__(cls)
        for name, item in content.items():
            object.__setattr__(made, name, _from_json(item))
        return made
    raise TypeError(f"{kind} of {cls.__name__}")


def _class_name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _find_class(name: str) -> type:
    """Return a class of this package, in a module that is loaded."""
    if not _CLASS.fullmatch(name):
        raise TypeError(f"class {name!r:.80}")
    module, _, attribute = name.partition(":")
    found: type = _checked(getattr(sys.modules[module], attribute), type)
    return found


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.80}")
    return value


# --- errors --------------------------------------------------------------------------------------


def _error_to_json(error: BaseException) -> Any:
    if isinstance(error, OSError) and error.errno is not None:
        names = [None if n is None else str(n) for n in (error.filename, error.filename2)]
        known = [error.errno, error.strerror, names[0], None, names[1]]
        return {"error": "OSError", "of": known}  # the number makes it a FileNotFoundError again
    cls = type(error)
    if isinstance(error, UserError | OSError) and cls.__module__.startswith("diablo_ds."):
        name = _class_name(cls)
    elif isinstance(error, OSError):
        name = cls.__name__ if cls is getattr(builtins, cls.__name__, None) else "OSError"
    else:
        return {"error": "RuntimeError", "of": [f"{cls.__name__}: {error}"]}
    return {"error": name, "of": [str(error)]}


def _error_from_json(name: str, arguments: list[Any]) -> BaseException:
    cls = _find_class(name) if ":" in name else getattr(builtins, name)
    if not (isinstance(cls, type) and issubclass(cls, UserError | OSError | RuntimeError)):
        raise TypeError(f"error {name!r:.80}")
    made: BaseException = cls(*arguments)
    return made
