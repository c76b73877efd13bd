"""Errors that a user can act on, told from defects of the program by their type alone."""

from __future__ import annotations


class UserError(ValueError):
    """A setting, file or folder is wrong; the message names the rule, what was got and a repair.

    Commands print it without a traceback and leave with `EXIT_USER_ERROR`. Any other error but an
    `OSError` or a `NonFiniteError` is taken for a defect of the program: it keeps its traceback,
    and the exit code 1, after which a launcher may try again.

    Args:
        message: its text; halves of surrogate pairs, which names in files and of files may hold and
            no UTF-8 text can, are written out.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(message.encode(errors="backslashreplace").decode())


class NonFiniteError(RuntimeError):
    """A loss or gradient norm was infinite or not a number; the run cannot continue."""


def is_reported(error: BaseException) -> bool:
    """Return whether an error is for the user, so that its message says all: no traceback."""
    return isinstance(error, UserError | OSError | NonFiniteError)
