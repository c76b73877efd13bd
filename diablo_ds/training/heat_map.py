"""A picture of one number for each layer with a delta: decoder layers by modules."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diablo_ds.files.figures import figure_class

_CELL = (12, 24)
"""Pixels of a cell without matplotlib, rows and columns."""
_LOW, _HIGH = np.array([68, 1, 84]), np.array([253, 231, 37])
_UNKNOWN = np.array([200, 200, 200])
_MOST_LABELS = 40


@dataclass(frozen=True)
class HeatMap:
    """Numbers by decoder layer and module.

    Args:
        values: ``[num_layers, num_modules]``; NaN where there is no delta or no number.
        layers: index of each decoder layer.
        modules: name of each module in its decoder layer.
    """

    values: np.ndarray
    layers: Sequence[int]
    modules: Sequence[str]

    @classmethod
    def of(cls, numbers: Mapping[str, float]) -> HeatMap | None:
        """Arrange numbers by the names of their deltas; None where none is finite."""
        placed = {_place(name): number for name, number in numbers.items()}
        if not any(map(math.isfinite, placed.values())):
            return None
        layers = sorted({layer for layer, _ in placed})
        modules = list(dict.fromkeys(module for _, module in placed))
        values = [[placed.get((layer, m), math.nan) for m in modules] for layer in layers]
        return cls(np.array(values), layers, modules)

    def png(self, title: str) -> bytes:
        """Return the picture, with labels where matplotlib is installed."""
        if not has_labels():
            return self._plain_png()
        figure_of = figure_class()
        num_layers, num_modules = self.values.shape
        size = (2.5 + min(0.8 * num_modules, 16), 1.8 + min(max(0.22 * num_layers, 2), 18))
        figure = figure_of(figsize=size, layout="constrained")
        axes = figure.subplots()
        shown = axes.imshow(self.values, aspect="auto", vmin=0, interpolation="nearest")
        figure.colorbar(shown, ax=axes)
        axes.set_title(title, fontsize="medium")
        axes.set_ylabel("decoder layer")
        every = [-(-count // _MOST_LABELS) for count in (num_modules, num_layers)]
        names = [name.rpartition(".")[2] if self._is_clear else name for name in self.modules]
        axes.set_xticks(
            range(0, num_modules, every[0]), names[:: every[0]], rotation=30, ha="right"
        )
        axes.set_yticks(range(0, num_layers, every[1]), self.layers[:: every[1]])
        file = io.BytesIO()
        figure.savefig(file, dpi=100, format="png")
        return file.getvalue()

    def legend(self) -> str:
        """Return what rows, columns and colours are, for a picture without labels."""
        return (
            f"Rows are the decoder layers {self.layers[0]} to {self.layers[-1]}, from above; "
            f"columns are {', '.join(self.modules)}; colours go from 0, dark, to "
            f"{np.nanmax(self.values):.3g}, light."
        )

    @property
    def _is_clear(self) -> bool:
        return len({name.rpartition(".")[2] for name in self.modules}) == len(self.modules)

    def _plain_png(self) -> bytes:
        known = np.isfinite(self.values)
        top = self.values[known].max() or 1.0
        share = np.where(known, self.values, 0.0)[..., None] / top  # [layers, modules, 1]
        colours = np.where(known[..., None], _LOW + share * (_HIGH - _LOW), _UNKNOWN)
        pixels = np.kron(colours.astype(np.uint8), np.ones((*_CELL, 1), np.uint8))
        return _encode_png(pixels)


def has_labels() -> bool:
    """Return whether pictures have labels: whether matplotlib is installed."""
    try:
        figure_class()
    except ImportError:
        return False
    return True


def _place(name: str) -> tuple[int, str]:
    """Return the decoder layer of a delta, and the name of its module there; -1 outside all."""
    parts = name.removesuffix(".delta").split(".")
    index = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    if index is None:
        return -1, ".".join(parts)
    return int(parts[index]), ".".join(parts[index + 1 :])


def _encode_png(pixels: np.ndarray) -> bytes:
    """Return ``[height, width, 3]``, uint8, as a PNG file."""
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows.tobytes())),
        (b"IEND", b""),
    )
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
