from __future__ import annotations

import pytest

from diablo_ds.errors import UserError
from diablo_ds.files import yaml_files


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1e-4", {"a": 1e-4}),
        ("a: [1, -2, .5, 3.]", {"a": [1, -2, 0.5, 3.0]}),
        ("a: on\nb: no\nc: true", {"a": "on", "b": "no", "c": True}),
        ("a: 010\nb: 1:30\nc: 2026-11-27", {"a": 10, "b": "1:30", "c": "2026-11-27"}),
        ("a: '1'\nb: \"true\"", {"a": "1", "b": "true"}),
        ("a:\nb: ~", {"a": None, "b": None}),
        ("a: {b: {c: é}}", {"a": {"b": {"c": "é"}}}),
        ("", None),
    ],
)
def test_values_are_those_of_the_core_schema(text, value):
    assert yaml_files.loads(text.encode()) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "be there once; got a, line 2, column 1"),
        ("a: &x 1\nb: *x", "aliases are not read"),
        ("a: &x [*x]", "aliases are not read"),
        ("a: !!python/object:os.system {}", "must have no tag"),
        ("? [1]\n: 2", "each key must be text"),
        ("a: [1", "line 1|line 2"),
        ("a: 1\n--- \nb: 2", "single document"),
        ("a: 1e999", "must be finite"),
        (f"a: {'7' * 5000}", "at most 4,300 digits"),
        ("[" * 2000, "may be nested|expected"),
        ("a: " + "{b: " * 200 + "1" + "}" * 200, "may be nested"),
        ("a: \x07", "special characters|unacceptable"),
    ],
    ids=lambda text: text[:20],
)
def test_what_has_several_meanings_or_none_is_an_error(text, message):
    with pytest.raises(UserError, match=message):
        yaml_files.loads(text.encode())


def test_bytes_that_are_no_utf_8_are_an_error():
    with pytest.raises(UserError, match="must be UTF-8"):
        yaml_files.loads("a: é".encode("utf-16"))
