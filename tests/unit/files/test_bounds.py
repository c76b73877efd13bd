from __future__ import annotations

import io

import pytest

from diablo_ds.errors import UserError
from diablo_ds.files import bounds, strict_json, yaml_files
from diablo_ds.files.bounds import Growth, read_lines


def test_a_file_grows_in_proportion_to_its_size(monkeypatch, tmp_path):
    monkeypatch.setattr(bounds, "FREE_BYTES", 1000)
    growth = Growth(tmp_path, 10)
    growth.add(1000)
    growth.add(10 * bounds.MAX_GROWTH)
    with pytest.raises(UserError, match="200 times its size"):
        growth.add(1)


def test_a_line_of_a_record_has_a_limit(monkeypatch):
    monkeypatch.setattr(bounds, "MAX_LINE_BYTES", 10)
    assert list(read_lines(io.BytesIO(b"a\nb\n"))) == [b"a\n", b"b\n"]
    assert list(read_lines(io.BytesIO(b"a\n" + b"b" * 50))) == [b"a\n", b"b" * 11]


def test_json_of_very_many_values_is_refused_before_it_is_parsed(monkeypatch):
    monkeypatch.setattr(bounds, "MAX_VALUES", 100)
    assert strict_json.loads(b"[" + b"1," * 90 + b"1]")
    with pytest.raises(ValueError, match="at most 100 values"):
        strict_json.loads(b"[" + b"[]," * 60 + b"[]]")
    assert strict_json.loads(b'["' + b"a" * 200 + b'"]')  # long, and few


@pytest.mark.parametrize(
    ("text", "rule"),
    [(b"[" * 100_000, "nested"), (b"- " * 500 + b"a", "nested"), (b"a" * (2 << 20), "bytes")],
)
def test_yaml_has_a_depth_and_a_size(text, rule):
    with pytest.raises(UserError, match=rule):
        yaml_files.loads(text)
