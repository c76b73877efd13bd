"""Headers of strangers' safetensors files: checked before anything is read by what they say."""

from __future__ import annotations

import json
import struct

import pytest
import torch

from diablo_ds.errors import UserError
from diablo_ds.files.tensor_files import TensorReader, find_tensors
from diablo_ds.files.whole_tensors import save_tensors

GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def _file(header, data=bytes(8)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _one(**changes):
    return _file({"a": {**GOOD, **changes}})


HOSTILE = {
    "a length beyond the file": struct.pack("<Q", 2**63) + b"{}",
    "a length beyond the limit": struct.pack("<Q", 2**40) + b"{}",
    "no object": _file([1]),
    "deep": _file(b"[" * 100_000),
    "the same name twice": _file(b'{"a": 1, "a": 2}'),
    "no entry": _file({"a": None}),
    "one offset": _one(data_offsets=[8]),
    "offsets of text": _one(data_offsets=["0", "8"]),
    "a negative offset": _one(data_offsets=[-8, 0]),
    "an end before the start": _one(data_offsets=[8, 0]),
    "an end beyond the file": _one(data_offsets=[0, 2**40]),
    "a number of 65 bits": _one(data_offsets=[0, 2**64]),
    "negative dims": _one(shape=[-1, -2]),
    "dims that are too large": _one(shape=[2**40, 2**40]),
    "very many dims": _one(shape=[0] * 1000),
    "dims of text": _one(shape=["2"]),
    "a dtype that is a list": _one(dtype=["F32"]),
    "an unknown dtype": _one(dtype="F4"),
    "bools": _one(data_offsets=[False, 8]),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_headers_are_refused(kind, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(HOSTILE[kind])
    with pytest.raises(UserError, match=str(tmp_path)):
        find_tensors(tmp_path)


def test_what_the_library_writes_is_read(tmp_path):
    stored = torch.arange(6.0).view(2, 3)
    save_tensors(tmp_path / "model.safetensors", {"a": stored, "b": torch.zeros(0, 4)})
    tensors = find_tensors(tmp_path)
    reader, found = TensorReader(tensors), torch.empty(6)
    reader.read("a", found)
    reader.close()
    assert torch.equal(found.view(2, 3), stored)
    assert tensors["b"].shape == (0, 4)


def test_an_index_names_files_of_its_folder(tmp_path):
    index = {"weight_map": {"a": "../x.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="files of its folder"):
        find_tensors(tmp_path)
