"""An adapter's deltas, read from its file block by block, so that it never has to fit in memory."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from diablo_ds.adapter.storage import load_adapter_header
from diablo_ds.errors import UserError
from diablo_ds.files.tensor_files import StoredTensor, file_tensors

_READ_BYTES = 2**24


class StoredDeltas:
    """The deltas of an adapter folder, of which one or a few blocks are in memory at a time.

    Args:
        folder: of the adapter.

    Raises:
        UserError: if a file is missing or damaged, the two disagree, or a delta is not finite.
    """

    def __init__(self, folder: Path) -> None:
        header = load_adapter_header(folder)
        self.file, self.config = header.file, header.config
        tensors = file_tensors(self.file)
        self.tensors = {layer: tensors[key] for layer, key in header.keys.items()}
        self._check_values()

    def shape(self, layer: str) -> tuple[int, int, int]:
        """Return ``(num_blocks, in_block, out_block)`` of a layer's delta."""
        num_blocks, in_block, out_block = self.tensors[layer].shape
        return num_blocks, in_block, out_block

    def read(self, layer: str, first: int, stop: int) -> Tensor:
        """Return the blocks ``[first, stop)`` of a layer's delta, fp32.

        Returns:
            ``[stop - first, in_block, out_block]``.
        """
        tensor = self.tensors[layer]
        _, in_block, out_block = self.shape(layer)
        size = in_block * out_block
        flat = self._read(tensor, first * size, stop * size)
        return flat.view(stop - first, in_block, out_block)

    def _read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        raw = torch.empty((stop - start) * tensor.dtype.itemsize, dtype=torch.uint8)
        view, done = raw.numpy().data, 0
        with self.file.open("rb", buffering=0) as stream:
            stream.seek(tensor.offset + start * tensor.dtype.itemsize)
            while done < len(view):
                count = stream.readinto(view[done:])
                if not count:
                    raise OSError(f"{self.file} ended early")
                done += count
        return raw.view(tensor.dtype).float()

    def _check_values(self) -> None:
        is_zero = True
        for layer, tensor in self.tensors.items():
            step = _READ_BYTES // tensor.dtype.itemsize
            for start in range(0, tensor.num_elements, step):
                part = self._read(tensor, start, min(start + step, tensor.num_elements))
                if not bool(part.isfinite().all()):
                    raise UserError(
                        "deltas must be finite; got NaN or infinite elements in the delta of "
                        f"{layer} in {self.file}; take an earlier checkpoint"
                    )
                is_zero = is_zero and not bool(part.any())
        if is_zero:
            raise UserError(
                "an adapter must change its base to be merged; got deltas that are all 0 in "
                f"{self.file}"
            )
