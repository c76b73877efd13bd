"""All that a shell, ssh, pdsh, srun or sbatch takes apart again, written so that it stays one.

What a user, a config or a folder's name says reaches another program in this form only, so that
none of it becomes a command, a further option or a further line. Where a program has no form for a
text, the text is refused. Only the standard library is used here.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence

from diablo_ds.errors import UserError
from diablo_ds.files.strict_json import is_one_line

HOST_NAME = r"(?![A-Za-z0-9._-]{254})[A-Za-z0-9][A-Za-z0-9_-]{0,62}(?:\.[A-Za-z0-9_-]{0,63})*"
"""A host's name: with another first character ssh and pdsh would take it for an option. It is as
long as DNS allows: 253 characters, and 63 between two dots."""
LONGEST_SBATCH_VALUE = 1024
"""Bytes of a value in an #SBATCH line; SLURM's own limit for a path."""
_ADDRESS = re.compile(rf"{HOST_NAME}|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9._-]+)?")
_WORD = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.,:@/+=-]*")
_IN_DOUBLE_QUOTES = re.compile(r'([\\"$`])')
_SBATCH_PLAIN = re.compile(r"[\w./%:@+=,-]+", re.ASCII)
_SBATCH_OPTION = re.compile(r"(--[A-Za-z][A-Za-z0-9-]*|-[A-Za-z])(?:(=)|\s+)?(.*)", re.DOTALL)


class Variable(str):
    """A word that the shell fills in; its value is the variable's name."""


# --- a shell -------------------------------------------------------------------------------------


def bash_word(word: str) -> str:
    """Return a word for a shell, or a variable that stays one word whatever its value is."""
    return f'"${word}"' if isinstance(word, Variable) else shlex.quote(word)


def bash_option(name: str, value: str) -> str:
    """Return an option and its value as one word for a shell.

    As a word of its own, a value that begins with a dash could be read as another option.
    """
    return f"{name}={bash_word(value)}"


def bash_line(words: Iterable[str]) -> str:
    """Return a command as a line for a shell."""
    return " ".join(map(bash_word, words))


def bash_comment(text: str) -> str:
    """Return a comment of a script.

    Raises:
        UserError: if it would not end with its line.
    """
    check_line("a comment of a script", text)
    return f"# {text}"


def split_words(name: str, text: str) -> list[str]:
    """Return the words of a setting that holds a command's words, as a shell would split them.

    Raises:
        UserError: if a quote is not closed.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(
            f"{name} must be words as for a shell; got {name}={text!r}: {error}"
        ) from None


# --- ssh and pdsh --------------------------------------------------------------------------------


def ssh_words(host: str, port: int | None, options: Sequence[str], line: str) -> list[str]:
    """Return the words that have a host's shell run a line.

    Raises:
        UserError: if the host's name could be read as an option.
    """
    check_host("host", host)
    to_port = [] if port is None else ["-p", str(port)]
    return ["ssh", *options, *to_port, host, line]


def line_in_folder(folder: str, command: Sequence[str]) -> str:
    """Return a line for a shell that runs a command in a folder."""
    return f"cd -- {shlex.quote(folder)} && {bash_line(command)}"


def pdsh_word(word: str) -> str:
    """Return a word of a script's command line for DeepSpeed's runner "pdsh".

    pdsh replaces %h, %u and %n, and the shell of the other host reads what is left. DeepSpeed puts
    double quotes around words with a space, and nothing around others.

    Raises:
        UserError: if a word with a space holds something that double quotes do not protect.
    """
    word = word.replace("%", "%%")
    if " " not in word:
        return shlex.quote(word)
    if any(character in word for character in '$`\\!"'):
        raise UserError(
            'an option that goes through pdsh must not hold a space and one of $ ` \\ ! "; got '
            f"{word!r}; put the setting into a file and give --config"
        )
    return word


def pdsh_export(value: str) -> str:
    """Return the value of a variable for DeepSpeed's runner "pdsh", which exports it on each host.

    DeepSpeed puts double quotes around all but plain values.
    """
    return _IN_DOUBLE_QUOTES.sub(r"\\\1", value).replace("%", "%%")


def check_plain(what: str, text: str) -> None:
    """Refuse a text that DeepSpeed's runner "pdsh" hands on unquoted and a shell would change.

    Args:
        what: its name in the error, such as "the working folder".
        text: the text.

    Raises:
        UserError: if it is not one plain word.
    """
    if shlex.quote(text) != text or "%" in text:
        raise UserError(
            f"{what} of a run through pdsh must have a name without blanks, quotes, % and other "
            f"characters that pdsh or a shell understands; got {text!r}"
        )


# --- sbatch --------------------------------------------------------------------------------------


def sbatch_line(name: str, value: str | None = None) -> str:
    """Return an #SBATCH line with one option.

    sbatch takes such a line apart by rules of its own: a blank ends a word, # begins a comment, and
    double quotes and a backslash before them protect.

    Args:
        name: the option, such as "--job-name".
        value: its value; None where it takes none.

    Raises:
        UserError: if the value is too long, or would not end with its line.
    """
    if value is None:
        return f"#SBATCH {name}"
    check_line(name, value)
    if (size := len(value.encode())) > LONGEST_SBATCH_VALUE:
        raise UserError(
            f"{name} of a job must have at most {LONGEST_SBATCH_VALUE} bytes; got {size}: "
            f"{value!r:.60}"
        )
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    shown = value if _SBATCH_PLAIN.fullmatch(value) else f'"{escaped}"'
    return f"#SBATCH {name}={shown}" if name.startswith("--") else f"#SBATCH {name} {shown}"


def sbatch_option(text: str) -> str:
    """Return the #SBATCH line of an option in a user's words: --name, --name=value or -n value.

    Raises:
        UserError: if it is not one option.
    """
    match = _SBATCH_OPTION.fullmatch(text)
    if match is None:
        raise UserError(
            f"sbatch_option must be one option, --name or --name=value; got sbatch_option={text!r}"
        )
    name, value = match[1], match[3] if match[2] else match[3].strip()
    return sbatch_line(name, value if value or match[2] else None)


# --- checks --------------------------------------------------------------------------------------


def check_word(name: str, value: str) -> None:
    """Raise UserError unless a setting is empty or one plain word that is no option."""
    if value and not _WORD.fullmatch(value):
        raise UserError(
            f"{name} must be a word of letters, digits and _ . , : @ / + = -; got {name}={value!r}"
        )


def check_host(name: str, value: str) -> None:
    """Raise UserError unless a setting is empty, a host's name or an address."""
    if value and not _ADDRESS.fullmatch(value):
        raise UserError(
            f"{name} must be an address, or a name that begins with a letter or digit and goes on "
            "with these, dots, dashes and underscores, at most 253 in all and 63 between two dots; "
            f"got {name}={value!r:.80}"
        )


def check_line(what: str, text: str) -> None:
    """Raise UserError where a text would not end with its line of a script."""
    if not is_one_line(text):
        raise UserError(f"{what} must be text without control characters; got {text!a:.60}")
