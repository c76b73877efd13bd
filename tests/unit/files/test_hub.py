"""Names of the hub: told from paths, and taken with the revision that is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from diablo_ds.adapter.storage import AdapterConfig
from diablo_ds.errors import UserError
from diablo_ds.files.hub import (
    Repository,
    find_repository,
    is_same_source,
    recorded_revisions,
    with_revision,
)
from diablo_ds.model.finding import find_base, find_model, find_tokenizer, hub_model, lasting_name

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hf://owner/name", Repository("dataset", "owner/name")),
        ("hf://datasets/owner/name@v1.0", Repository("dataset", "owner/name", "v1.0")),
        ("hf://o/n@refs/pr/1", Repository("dataset", "o/n", "refs/pr/1")),
        ("owner/name", None),
        ("./hf://owner/name", None),
    ],
)
def test_only_what_is_named_so_is_on_the_hub(text, found):
    assert find_repository(text, "dataset") == found


@pytest.mark.parametrize(
    "text",
    [
        "hf://",
        "hf://a/b/c",
        "hf://../b",
        "hf://a/..",
        "hf://a/b@",
        "hf://a/b@../../x",
        "hf://a/b@x/../../y",
        "hf://a/b@-x\n",
        "hf://-a/b",
    ],
)
def test_what_could_leave_the_cache_is_no_name(text):
    with pytest.raises(UserError, match=r"must be named hf://owner/name"):
        find_repository(text, "model")


@pytest.mark.parametrize("find", [find_model, find_tokenizer])
@pytest.mark.parametrize("name", ["prepared/base", "base", "a/b/c"])
def test_a_missing_folder_is_an_error(name, find, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="must be an existing folder"):
        find(name)


def test_a_published_model_is_known_by_its_name_unless_it_could_be_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_model("qwen/qwen3-8b") == Repository("model", "Qwen/Qwen3-8B")
    assert lasting_name("hf://owner/name@v1") == "owner/name"
    Path("qwen").mkdir()
    assert hub_model("qwen/qwen3-8b") is None


def test_a_recorded_base_is_on_the_hub_where_a_revision_is_recorded(monkeypatch):
    taken = []
    monkeypatch.setattr(
        "diablo_ds.model.finding.find_model", lambda name: taken.append(name) or Path(name)
    )
    for revision in (SHA, None, "../x"):
        find_base("", AdapterConfig("o/n", "", {}, revision=revision), Path("adapter"))
    assert taken == [f"hf://o/n@{SHA}", "o/n", "o/n"]


def test_a_record_names_the_last_revision_of_each():
    starts = [{"hub": {"models/o/n": "a", "datasets/o/d": "b"}}, {}, {"hub": {"models/o/n": "c"}}]
    revisions = recorded_revisions(starts)
    assert revisions == {"models/o/n": "c", "datasets/o/d": "b"}
    for nonsense in (None, [3, {"hub": 4}, {"hub": {"models/o/n": 5}}]):
        assert recorded_revisions(nonsense) == {}
    assert with_revision("hf://o/n", "model", revisions) == "hf://o/n@c"
    assert with_revision("x=hf://o/d", "dataset", revisions) == "x=hf://o/d@b"
    for same in ("hf://o/n@v1", "hf://o/other", "o/n", "x/hf://o/n"):
        assert with_revision(same, "model", revisions) == same


def test_a_revision_makes_no_other_source():
    assert is_same_source(("x=hf://o/d@b", "p"), ("x=hf://o/d", "p"))
    assert is_same_source("hf://o/n", "hf://o/n@a")
    assert not is_same_source("hf://o/n@b", "hf://o/n@a")
    assert not is_same_source("hf://o/n", "hf://o/nn")
    assert not is_same_source("o/n", "o/n@a")
    assert not is_same_source(("a",), ("a", "b"))
    assert is_same_source(1, 1.0)
