"""The process of a program's tests: runs them with the program's functions called across."""

from __future__ import annotations

import builtins
import contextlib
import importlib
import json
import os
import pickle
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from diablo_ds.evaluation.sandbox.exchange import Channel


class ProgramEndedError(BaseException):
    """The process of the program ended, or sent what no answer is. No test can catch it by class
    Exception."""


class Remote:
    """Something of the program that is not a plain value: a function, a class, an object."""

    _exchange: _Exchange
    _number: int

    def __init__(self, exchange: _Exchange, number: int) -> None:
        vars(self).update(_exchange=exchange, _number=number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it, in the program's process."""
        return self._exchange.ask("call", self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._exchange.ask("attribute", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._exchange.ask("set", self, name, value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._exchange.ask("items", self))

    def __len__(self) -> int:
        return len(self._exchange.ask("items", self))

    def __getitem__(self, place: Any) -> Any:
        return self._exchange.ask("items", self)[place]

    def __repr__(self) -> str:
        return str(self._exchange.ask("text", self))


class _Exchange:
    """Asks the program's process."""

    def __init__(self, receiving_fd: int, sending_fd: int) -> None:
        self._remotes: dict[int, Remote] = {}
        self._channel = Channel(receiving_fd, sending_fd, keep=_number_of, find=self._find)

    def load(self, source: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Run a program; return what it defines, and the modules that it imports, by name."""
        _, defined, modules = self._send(source)
        return defined, modules

    def ask(self, *request: Any) -> Any:
        """Return the program's answer to a request, or raise the exception that it raised."""
        return self._send(request)[1]

    def _send(self, message: Any) -> tuple[Any, ...]:
        try:
            self._channel.send(message)
            answer = self._channel.receive()
            if answer[0] == "error":
                _, name, text = answer
                kind = getattr(builtins, name, Exception)
                raised = _as_exception(kind, str(text))
            elif answer[0] in ("value", "names"):
                return tuple(answer)
            else:
                raise ValueError(answer[0])
        except (EOFError, OSError):
            raise ProgramEndedError("the program ended before its tests did") from None
        except Exception as error:
            if isinstance(error, _NotPlainError):
                raise
            raise ProgramEndedError(
                f"the program's process sent no answer: {error!r:.200}"
            ) from None
        raise raised

    def _find(self, number: Any) -> Remote:
        if type(number) is not int:
            raise pickle.UnpicklingError("a number of a value")
        if number not in self._remotes:
            self._remotes[number] = Remote(self, number)
        return self._remotes[number]


class _NotPlainError(TypeError):
    """The tests pass something that stays on their side."""


def _number_of(value: Any) -> int:
    if isinstance(value, Remote):
        return value._number
    raise _NotPlainError(f"tests must pass plain values; got {type(value).__name__}")


def _as_exception(kind: Any, text: str) -> BaseException:
    """Return an exception as the program raised it; what ends a process is told as an error."""
    if isinstance(kind, type) and issubclass(kind, Exception):
        with contextlib.suppress(Exception):
            return kind(text)
    name = getattr(kind, "__name__", "Exception")
    return RuntimeError(
        f"the program raised {name}: {text}" if text else f"the program raised {name}"
    )


def check(receiving_fd: int, sending_fd: int, verdict_fd: int) -> None:
    """Run the tests that stdin brings as JSON, and write the verdict."""
    spec = json.load(sys.stdin)
    reason = ""
    try:
        exchange = _Exchange(receiving_fd, sending_fd)
        names: dict[str, Any] = {"__name__": "tests"}
        exec(compile(spec["setup"], "<setup>", "exec"), names)
        defined, modules = exchange.load(spec["source"])
        for name, module in modules.items():
            if name not in names and module.split(".")[0] in sys.stdlib_module_names:
                names[name] = importlib.import_module(module)
        for name, value in defined.items():
            if name not in names or name == spec["entry_point"]:
                names[name] = value
        if spec["entry_point"] and spec["entry_point"] not in defined:
            raise NameError(f"the program defines no {spec['entry_point']}")
        exec(compile(spec["tests"], "<tests>", "exec"), names)
    except BaseException as error:
        reason = "".join(traceback.format_exception_only(error)).strip()[:500]
        if isinstance(error, ProgramEndedError):
            reason = str(error)
        if isinstance(error, AssertionError):
            reason = f"{_failed_line(error, spec['tests'])}: {reason}"
    os.write(verdict_fd, json.dumps({"reason": reason}).encode())
    os._exit(0)


def _failed_line(error: BaseException, tests: str) -> str:
    """Return the line of the tests that an error was raised in."""
    frames = traceback.extract_tb(error.__traceback__)
    numbers = [f.lineno for f in frames if f.filename == "<tests>" and f.lineno]
    return tests.splitlines()[numbers[-1] - 1].strip()[:200] if numbers else "tests"
