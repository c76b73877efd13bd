from __future__ import annotations

import os
import stat

from diablo_ds.config import given_file
from diablo_ds.config.given_file import keep_given_file


def test_the_copy_has_the_comments_and_replaces_an_earlier_one(tmp_path):
    yaml, as_json, run = tmp_path / "a.yml", tmp_path / "b.json", tmp_path / "run"
    yaml.write_text("seed: 3  # the lucky one\n")
    as_json.write_text('{"seed": 4}')
    yaml.chmod(0o644)
    keep_given_file(yaml, run)
    copy = run / "given_config.yaml"
    assert copy.read_bytes() == yaml.read_bytes()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    keep_given_file(copy, run)  # the copy itself, to continue
    assert copy.read_bytes() == yaml.read_bytes()
    keep_given_file(as_json, run)
    assert os.listdir(run) == ["given_config.json"]


def test_neither_records_nor_large_files_are_copied(tmp_path, monkeypatch):
    (tmp_path / "run.json").write_text('{"seed": 3}')
    keep_given_file(tmp_path, tmp_path / "run")
    monkeypatch.setattr(given_file, "MAX_KEPT_BYTES", 4)
    (tmp_path / "large.yaml").write_text("seed: 3")
    keep_given_file(tmp_path / "large.yaml", tmp_path / "run")
    assert not (tmp_path / "run").exists()
