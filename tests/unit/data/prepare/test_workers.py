from __future__ import annotations

import sys

import pytest

from diablo_ds.data.prepare import workers, writing
from diablo_ds.errors import UserError
from tests.unit.data.prepare.preparing import pairs, read_files, write_rows


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_number_of_processes(prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "TOKENS_PER_SHARD", 500)
    sources = [write_rows(tmp_path / f"{name}.jsonl", pairs(73, name)) for name in ("one", "two")]
    options = {"val_share": 0.2, "mix": ("one=31", "two=0.5"), "seed": 3}
    for num_proc in (1, 3):
        prepare(*sources, output=f"out{num_proc}", num_proc=num_proc, **options)
    files = read_files(tmp_path / "out1")
    assert sum(name.endswith(".arrow") for name in files) > 2
    assert files == read_files(tmp_path / "out3")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_a_tokenizer_is_loaded_by_another_process_as_by_this_one(tokenizer_folder, monkeypatch):
    expected = workers.load_tokenizer(tokenizer_folder)
    monkeypatch.delitem(sys.modules, "transformers")  # as in a process that has not imported it
    assert workers.load_tokenizer(tokenizer_folder).probe() == expected.probe()
    with pytest.raises(UserError, match="must hold a tokenizer"):
        workers.load_tokenizer(tokenizer_folder / "none")
