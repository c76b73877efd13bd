from __future__ import annotations

import json

import pytest

from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_json
from diablo_ds.files.strict_json import MAX_DEPTH, Decoder, loads


@pytest.mark.parametrize("value", [{}, [], 0, -1.5e3, "\u00e9\U0001f98a", None, {"a": [1, {}]}])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_what_json_holds_is_read(value, mark):
    assert loads(mark + json.dumps(value).encode()) == value
    assert loads(mark + json.dumps(value, indent=1, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    ("data", "line", "column", "message"),
    [
        (b"", 1, 1, "text is empty"),
        (b" \n ", 2, 2, "text is empty"),
        (b'{"a": 1,\n "a": 2}', 1, 1, "each key of an object must be there once: 'a'"),
        (b"{}\n{}", 2, 1, "nothing may follow"),
        (b'{\n"a": NaN}', 1, 1, "must be finite: NaN"),
        (b"[-Infinity]", 1, 1, "must be finite: -Infinity"),
        (b"[1e999]", 1, 1, "in the range of a double: 1e999"),
        (b'{"a": 1' + b"0" * 400 + b"}", 1, 1, "in the range of a double: 1000"),
        (b"[" + b"7" * 5000 + b"]", 1, 1, "at most 4,300 digits: 5,000"),
        (b"[" * 200_000, 1, 1, "may be nested"),
        (b"[" * 150 + b"]" * 150, 1, 1, "at most 100 lists and objects may be nested"),
        (b'["\\ud800"]', 1, 1, "surrogate must be one of a pair"),
        (b'["\\udc00\\ud800"]', 1, 1, "surrogate must be one of a pair"),
        (b'{"a":\n"\xe9"}', 2, 2, "must be UTF-8"),
        (b'\xef\xbb\xbf{"a":\n"\xe9"}', 2, 2, "must be UTF-8"),
        ('{"a": 1}'.encode("utf-16"), 1, 1, "it is UTF-16"),
        ('{"a": 1}'.encode("utf-16-be"), 1, 1, "it is UTF-16 without a byte-order mark"),
        ('{"a": 1}'.encode("utf-32"), 1, 1, "it is UTF-32"),
        ("{}".encode("utf-32-le"), 1, 1, "it is UTF-32 without a byte-order mark"),
    ],
)
def test_what_has_no_single_meaning_is_refused_with_its_place(data, line, column, message):
    with pytest.raises(json.JSONDecodeError) as caught:
        loads(data)
    assert message in caught.value.msg
    assert (caught.value.lineno, caught.value.colno) == (line, column)


def test_the_deepest_value_that_is_taken():
    deepest = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert json.dumps(loads(deepest)).encode() == deepest
    with pytest.raises(json.JSONDecodeError, match="nested"):
        loads(b"[" + deepest + b"]")


def test_surrogate_pairs_and_brackets_in_text_are_no_problem():
    assert loads(b'["\\ud83e\\udd8a"]') == ["\U0001f98a"]
    assert loads(json.dumps("[" * 1000).encode()) == "[" * 1000


def test_rows_may_hold_numbers_that_are_not_finite():
    decoded = Decoder(finite=False).decode('{"a": NaN, "b": 1e999}')
    assert decoded.problem == ""
    assert decoded.end == 22


@pytest.mark.parametrize("name", ["", "nowhere", "a/b"])
def test_files_that_cannot_be_read_are_named(tmp_path, name):
    (tmp_path / "a").touch()
    with pytest.raises(UserError, match="file must be readable; got") as caught:
        read_json(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
