"""The process of a program: runs it, then calls its functions as the tests ask."""

from __future__ import annotations

import itertools
import sys
import types
from typing import Any

from diablo_ds.evaluation.sandbox.exchange import Channel

_MAX_ITEMS = 1_000_000
PROGRAM = "program"
"""Name of the module that a program is."""


class _Values:
    """What the tests hold by a number."""

    def __init__(self) -> None:
        self._values: list[Any] = []
        self._numbers: dict[int, int] = {}

    def keep(self, value: Any) -> int:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._values)
            self._values.append(value)
        return self._numbers[id(value)]

    def find(self, number: Any) -> Any:
        return self._values[number]


def solve(receiving_fd: int, sending_fd: int) -> None:
    """Run the program that the first message holds, and answer until the tests have ended."""
    values = _Values()
    channel = Channel(receiving_fd, sending_fd, keep=values.keep, find=values.find)
    source = channel.receive()
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 3000))
    module = types.ModuleType(PROGRAM)
    sys.modules[PROGRAM] = module
    try:
        exec(compile(source, "<program>", "exec"), module.__dict__)
        answer: tuple[Any, ...] = ("names", *_names(module, values))
    except BaseException as error:
        answer = _failure(error)
    while True:
        channel.send(answer)
        try:
            answer = _answer(channel.receive())
        except EOFError:
            return


def _names(module: types.ModuleType, values: _Values) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what a program defines, and the modules that it imports, by name."""
    defined: dict[str, Any] = {}
    modules: dict[str, str] = {}
    for name, value in vars(module).items():
        if name.startswith("__"):
            continue
        if isinstance(value, types.ModuleType):
            modules[name] = value.__name__
        else:
            defined[name] = value
    return defined, modules


def _answer(request: tuple[Any, ...]) -> tuple[Any, ...]:
    """Do what the tests ask, and return the answer."""
    action, target, *arguments = request
    try:
        if action == "call":
            args, kwargs = arguments
            value = target(*args, **kwargs)
        elif action == "attribute":
            value = getattr(target, arguments[0])
        elif action == "set":
            setattr(target, *arguments)
            value = None
        elif action == "items":
            value = list(itertools.islice(target, _MAX_ITEMS))
        else:
            value = repr(target)
        if type(value).__module__ == "numpy":
            value = value.tolist()
        return ("value", value)
    except BaseException as error:
        return _failure(error)


def _failure(error: BaseException) -> tuple[str, str, str]:
    names = [kind.__name__ for kind in type(error).__mro__]
    name = next((n for n in names if n in _BUILTIN), "Exception")
    try:
        text = str(error)[:500]
    except BaseException:
        text = ""
    return ("error", name, text if name == names[0] else f"{names[0]}: {text}")


_BUILTIN = {
    name
    for name, value in vars(__import__("builtins")).items()
    if isinstance(value, type) and issubclass(value, BaseException)
}
