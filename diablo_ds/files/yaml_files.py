"""YAML read strictly, as the values that JSON has: one meaning, or an error that says where.

Plain scalars mean what the core schema of YAML 1.2 says: `on` and `no` are text, `1e-4` is a
number. A key that is there twice, an anchor, an alias and a tag are errors.
"""

from __future__ import annotations

import json
import re
from typing import Any

from diablo_ds.errors import UserError
from diablo_ds.files import strict_json

MAX_BYTES = 1 << 20
"""PyYAML reads some 100 KB per second."""

_INTEGER = re.compile(r"[-+]?[0-9]+")
_NUMBER = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))


def loads(data: bytes) -> Any:
    """Return the value of a YAML document.

    Raises:
        UserError: if it is none, with line and column where these are known.
    """
    import yaml

    if len(data) > MAX_BYTES:
        raise UserError(f"a document must have at most {MAX_BYTES:,} bytes")
    try:
        text = strict_json.decode_text(data)
        _check_events(text)
        node = yaml.compose(text, yaml.BaseLoader)
        value = None if node is None else _value(node)
        # Depth, numbers beyond a float's range and halves of surrogate pairs, as in JSON.
        return strict_json.loads(json.dumps(value).encode())
    except yaml.YAMLError as error:
        raise UserError(_complaint(error)) from None
    except json.JSONDecodeError as error:
        raise UserError(error.msg) from None
    except RecursionError:
        raise UserError(strict_json.TOO_DEEP) from None


def _check_events(text: str) -> None:
    """Refuse aliases, and nesting so deep that the parser's time would grow with its square."""
    import yaml

    depth = 0
    for event in yaml.parse(text, yaml.BaseLoader):
        if isinstance(event, yaml.AliasEvent):
            raise UserError("each value must be written out: anchors and aliases are not read")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > strict_json.MAX_DEPTH:
            raise UserError(strict_json.TOO_DEEP)


def _value(node: Any) -> Any:
    """Return the value of a node of a document that was composed without resolving scalars."""
    import yaml

    if node.tag not in _TAGS:
        raise UserError(f"a value must have no tag; got {node.tag:.60}{_place(node.start_mark)}")
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node) if node.style is None else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    values: dict[str, Any] = {}
    for key, item in node.value:
        name = key.value
        if not isinstance(name, str) or name in values:
            rule = "be there once" if isinstance(name, str) else "be text"
            raise UserError(f"each key must {rule}; got {name!s:.60}{_place(key.start_mark)}")
        values[name] = _value(item)
    return values


def _scalar(node: Any) -> Any:
    text = node.value
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > strict_json.MAX_DIGITS and _NUMBER.fullmatch(text):
        raise UserError(f"a number must have at most {strict_json.MAX_DIGITS:,} digits")
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text


def _complaint(error: Any) -> str:
    found = [getattr(error, name, None) for name in ("context", "problem", "reason")]
    problem = " ".join(filter(None, found)) or str(error)
    return f"{problem}{_place(getattr(error, 'problem_mark', None))}"


def _place(mark: Any) -> str:
    return "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
