from __future__ import annotations

import pytest
import torch

from diablo_ds.errors import UserError
from diablo_ds.files.whole_tensors import load_tensors, save_tensors, tensor_shapes


def test_loaded_equals_saved_and_the_header_tells_shapes(tmp_path):
    path = tmp_path / "a.safetensors"
    saved = {"x": torch.rand(2, 3).T, "y": torch.ones(4, dtype=torch.bfloat16)}
    save_tensors(path, saved)
    loaded = load_tensors(path)
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())
    assert tensor_shapes(path) == {"x": ([3, 2], "F32"), "y": ([4], "BF16")}


@pytest.mark.parametrize("read", [load_tensors, tensor_shapes])
def test_a_missing_or_damaged_file_is_named(read, tmp_path):
    with pytest.raises(UserError, match=r"safetensors file; got .*none"):
        read(tmp_path / "none")
    (tmp_path / "cut").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    with pytest.raises(UserError, match=r"safetensors file; got .*cut"):
        read(tmp_path / "cut")


def test_a_file_that_cannot_be_written_is_an_error_of_the_system(tmp_path):
    with pytest.raises(OSError, match="none"):
        save_tensors(tmp_path / "none" / "a.safetensors", {"x": torch.ones(1)})
