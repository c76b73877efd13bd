"""Declared fields: what each type allows, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from diablo_ds.config.setting import (
    LARGEST,
    REQUIRED,
    check_settings,
    option_words,
    setting,
    settings_of,
)
from diablo_ds.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Example:
    path: Path = setting(REQUIRED, "A path.", "run")
    kind: Literal["one", "two"] = setting("one", "A kind.", "run")
    share: float = setting(0.5, "A share.", "run", above=0, maximum=1)
    size: int | None = setting(None, "A size.", "run", minimum=2, shown_default="all")
    names: tuple[str, ...] = setting((), "Names.", "run")
    flag: bool = setting(False, "A flag.", "run", on_resume="free")
    left: int = setting(0, "A number that may be open.", "run", minimum=0, is_open=True)
    other: int = 3

    def __post_init__(self) -> None:
        check_settings(self)


SETTINGS = {declared.name: declared for declared in settings_of(Example)}


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("path", "a", "must be Path"),
        ("path", Path("a\nb"), "must be text without control characters"),
        ("kind", "three", "must be one of one, two"),
        ("share", 0.0, "must be > 0"),
        ("share", 1.5, "must be <= 1"),
        ("share", float("nan"), "must be a finite number"),
        ("share", None, "must be float"),
        ("size", 1, "must be >= 2"),
        ("size", LARGEST + 1, "must be <= 2147483647"),
        ("size", 2.0, r"must be int \| None"),
        ("size", True, r"must be int \| None"),
        ("names", ["a"], "must be a list of strings"),
        ("names", ("a", 1), "must be a list of strings"),
        ("flag", 1, "must be bool"),
    ],
)
def test_a_value_that_is_not_legal_is_named_with_the_rule(name, value, rule):
    with pytest.raises(UserError, match=f"{name} {rule}; got {name}="):
        Example(**{"path": Path("p"), name: value})


def test_legal_values_are_left_as_they_are():
    values = {"path": Path("p"), "kind": "two", "share": 1, "size": None, "names": ("a",)}
    example = Example(**values, flag=True, left=-0)
    assert [getattr(example, name) for name in values] == list(values.values())


def test_fields_that_are_no_settings_are_not_looked_at():
    assert "other" not in SETTINGS
    assert Example(path=Path("p"), other="anything").other == "anything"


def test_defaults_and_ranges_in_words():
    assert {name: s.default_text() for name, s in SETTINGS.items()} == {
        "path": "",
        "kind": "one",
        "share": "0.5",
        "size": "all",
        "names": "",
        "flag": "off",
        "left": "auto",
    }
    assert [SETTINGS[name].range_text() for name in ("share", "size", "left", "kind")] == [
        "above 0, at most 1",
        "at least 2",
        "at least 0",
        "",
    ]


def test_the_words_of_an_option():
    assert option_words("max_steps", 3) == ["--max-steps", "3"]
    assert option_words("names", ("a", "b c")) == ["--names", "a", "--names", "b c"]
    assert option_words("flag", True) == ["--flag"]
    assert option_words("flag", False) == ["--no-flag"]
