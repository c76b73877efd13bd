"""Splits of folders, and texts, in a preparation."""

from __future__ import annotations

import json

import pytest

from tests.unit.data.prepare.preparing import pairs, write_rows


def _folder(tmp_path):
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    rows = pairs(9)
    write_rows(folder / "train-00000-of-00001.jsonl", rows[:5])
    write_rows(folder / "validation-00000-of-00001.jsonl", rows[5:7])
    write_rows(folder / "test-00000-of-00001.jsonl", rows[7:])
    return folder.parent


def test_the_validation_split_of_a_folder_is_the_held_out_part(prepare, tmp_path, capsys):
    manifest = prepare(_folder(tmp_path))
    assert {name: part["rows"] for name, part in manifest["parts"].items()} == {
        "train": 5,
        "heldout": 2,
    }
    said = capsys.readouterr().err
    assert "Held-out part: " in said
    assert "Not read, as it looks like test data or notes: " in said


@pytest.mark.parametrize("changes", [{"val_share": 0.2}, {"exclude": ("hub",)}])
def test_other_held_out_rows_take_its_place(prepare, tmp_path, monkeypatch, capsys, changes):
    folder = _folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    manifest = prepare(folder, **changes)
    expected = {"val_share": {"train": 4, "heldout": 1}, "exclude": {"train": 5, "heldout": 2}}
    found = {name: part["rows"] for name, part in manifest["parts"].items()}
    assert found == expected[next(iter(changes))]


@pytest.mark.parametrize("num_rows", [3, 25])
def test_texts_are_joined_and_cut(prepare, tmp_path, num_rows):
    texts = [
        f"text number {i} " + " ".join(str(100 * i + k) for k in range(i)) for i in range(num_rows)
    ]
    source = tmp_path / "t.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    manifest = prepare(source, max_length=16)
    train = manifest["parts"]["train"]
    # A single token may remain at the end of each chunk, of ten rows here.
    lost = sum(len(text) + 1 for text in texts) - train["tokens"]
    assert 0 <= lost <= -(-num_rows // 10)
    assert train["longest"] == 16
    assert manifest["rows_left_out"]["too_long"] == 0
    assert manifest["rows_in"] == {"t": num_rows}
    assert prepare(source, max_length=16, output="out") == manifest
    by_row = prepare(source, max_length=16, text="row", overlong="cut-completion", output="rows")
    assert by_row["parts"]["train"]["rows"] <= num_rows


def test_a_long_text_file_is_prepared_to_its_end(prepare, tmp_path):
    text = "".join(f"line {i} of a book\n" for i in range(400))
    (tmp_path / "book.txt").write_text(text)
    manifest = prepare(tmp_path / "book.txt", max_length=64, val_share=0.1)
    parts = manifest["parts"]
    assert sum(part["tokens"] for part in parts.values()) in (len(text), len(text) + 1)
    assert parts["heldout"]["rows"] == round(0.1 * -(-(len(text) + 1) // 64))
