from __future__ import annotations

import pytest

from diablo_ds.errors import UserError
from diablo_ds.model.default_model import converted_model


def test_a_cache_that_cannot_be_written_names_the_option(tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "home").touch()
    with pytest.raises(UserError, match=r"cache folder must be writable; .*--cache-folder"):
        converted_model(tmp_path / "home" / ".cache" / "diablo_ds")
