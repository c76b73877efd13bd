"""Pictures as files, for packages that take nothing else."""

from __future__ import annotations

import base64
import contextlib
import os
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def png_file(step: int, png: str) -> Iterator[str]:
    """Yield the path of a picture, which is removed when the block ends.

    Args:
        step: in its name.
        png: a PNG file in base64.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"step-{step:06d}.png")
        with open(path, "wb") as file:
            file.write(base64.b64decode(png))
        yield path
