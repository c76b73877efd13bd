"""Where compiled layers are kept."""

from __future__ import annotations

import os

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.model.compile_cache import CACHE_VARIABLE, THREADS_VARIABLE, set_up_cache


def test_compiled_code_lies_in_the_users_cache_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, "")
    monkeypatch.delenv(THREADS_VARIABLE, raising=False)
    cache = tmp_path / "cache"
    folder = set_up_cache(RunConfig(cache_folder=str(cache)))
    assert folder.is_relative_to(cache)
    assert os.environ[CACHE_VARIABLE] == str(folder)
    assert int(os.environ[THREADS_VARIABLE]) >= 1

    own = tmp_path / "own"
    monkeypatch.setenv(CACHE_VARIABLE, str(own))
    assert set_up_cache(RunConfig(cache_folder=str(cache))) == own
    (own / "ab").mkdir()
    (own / "ab").chmod(0o777)
    with pytest.raises(UserError, match=f"folder of compiled layers must .* got {own}/ab"):
        set_up_cache(RunConfig())
    own.chmod(0o777)
    with pytest.raises(UserError, match="folder of compiled layers must belong to you and be"):
        set_up_cache(RunConfig())
