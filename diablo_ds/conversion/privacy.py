"""What must not be published: secrets, and paths of the machine."""

from __future__ import annotations

import re

_SECRETS = {
    "a token of Hugging Face": r"\bhf_[A-Za-z0-9]{20,}",
    "a token of GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})",
    "a key of OpenAI or Anthropic": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a key of AWS": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a token of Slack": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@]+:[^\s/@]+@",
}
_NAMED_SECRET = (
    r"(?i)\b[\w-]*(?:password|passwd|secret|api_?key|access_?key|auth_?token)"
    r"[\"']?\s*[=:]\s*[\"']?[^\s\"',;|]{6,}"
)
_PRIVATE_PATH = re.compile(
    r"(?<![\w.:/~<>\\-])(?:~?(?:/[\w.@+-]+){2,}|~/[\w.@+-]+|file:///[\w./@+-]+|[A-Za-z]:\\[\w.\\-]+)"
)
"""An absolute path of two parts at least, or one in a home folder; no address and no option."""


def find_secrets(text: str, *, is_prose: bool = True) -> list[str]:
    """Return what a text holds that looks like a secret, as "line 3: a token of ...".

    Args:
        text: of a file.
        is_prose: whether a word such as "password" before a value shows a secret; in a vocabulary
            it is an entry with its number.
    """
    patterns = {**_SECRETS, "a password or key": _NAMED_SECRET} if is_prose else _SECRETS
    return [
        f"line {number}: {what}"
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in patterns.items()
        if re.search(pattern, line)
    ]


def find_private_paths(text: str) -> list[str]:
    """Return the absolute paths in a text, as "line 3: /home/me/model"."""
    return [
        f"line {number}: {found[0]}"
        for number, line in enumerate(text.splitlines(), 1)
        for found in _PRIVATE_PATH.finditer(line)
    ]
