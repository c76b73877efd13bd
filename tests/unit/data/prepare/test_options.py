from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from diablo_ds.data.prepare.options import PrepareOptions
from diablo_ds.errors import UserError
from tests.unit.data.prepare.preparing import pairs, write_rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 1}, "max_length must be >= 2; got max_length=1"),
        ({"max_length": 10**30}, "max_length must be <= 2147483647"),
        ({"seed": 2**64}, "seed must be <= 9223372036854775807"),
        ({"val_share": float("nan")}, "val_share must be a finite number"),
        ({"licence": "a\nb"}, "without control characters"),
        ({"val_share": 0.9}, "val_share must be <= 0.5"),
        ({"val_share": 0.1, "val_source": ("x",)}, "val_share or val_source, not both"),
        ({"template": "alpacca"}, "template must be one of auto, alpaca, gsm8k, plain, chat"),
        ({"overlong": "cut"}, "overlong must be one of drop, cut-prompt"),
        ({"mix": ("d=2.5",)}, "mix must be NAME=ROWS or NAME=SHARE"),
        ({"mix": ("d",)}, "mix must be NAME=ROWS or NAME=SHARE"),
        ({"mix": ("x=1",)}, "mix must name sources; got 'x', known are d"),
        ({"mix": ("d=9",)}, "got d=9, 5 good"),
        ({"mix": ("d=0",)}, "the part train must have at least one row"),
        ({"max_length": 3}, "the part train must have at least one row; got none of 5 rows"),
        ({"exclude": ("nowhere.json",)}, "nowhere.json"),
        ({"template": "chat"}, "needs a tokenizer with a chat template"),
        ({"template": "chat", "control_tokens": "read"}, "control_tokens needs the template plain"),
    ],
)
def test_wrong_options_are_named(prepare, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        prepare(write_rows(tmp_path / "d.jsonl", pairs(5)), **changes)
    assert not (tmp_path / "out").exists()
    for work in tmp_path.glob(".out.*"):  # only finished work is kept
        assert any(work.glob("chunk-*"))


def test_options_that_change_the_result_are_recorded(prepare):
    recorded = set(
        PrepareOptions(family="math", source=("a",), tokenizer="t", output=Path("o")).recorded()
    )
    fields = {field.name for field in dataclasses.fields(PrepareOptions)}
    assert fields - recorded == {
        "source",  # this and the next three are recorded by their content
        "val_source",
        "exclude",
        "tokenizer",
        "output",
        "num_proc",
        "max_bad_rows",
    }
