"""Reports: a JSON file, a dated page and a plot, with the machine they were measured on."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from diablo_ds.files.atomic import write_json, write_text

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "datasets")


def machine() -> dict[str, Any]:
    """Return hardware and versions."""
    if torch.cuda.is_available():
        hardware = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    else:
        cpu = next(
            (
                line.split(":")[1].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")
            ),
            platform.processor(),
        )
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        hardware = f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GiB"
    versions = {name: version(name) for name in _PACKAGES}
    return {"hardware": hardware, "python": platform.python_version(), "versions": versions}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_report(name: str, title: str, figures: dict[str, Any], text: str, device: str) -> Path:
    """Write ``results/<date>-<name>-<device>.json`` and ``.md``, and print the page.

    Args:
        name: of the benchmark.
        title: first line of the page.
        figures: what was measured.
        text: the page's body.
        device: "cpu", or the GPU's short name.

    Returns:
        The path without its suffix, for plots.
    """
    date = datetime.date.today().isoformat()
    where = machine()
    path = RESULTS / f"{date}-{name}-{device}"
    RESULTS.mkdir(exist_ok=True)
    command = " ".join(["python -m", _module_name(), *sys.argv[1:]])
    write_json(path.with_suffix(".json"), {"date": date, **where, "command": command, **figures})
    versions = ", ".join(f"{package} {number}" for package, number in where["versions"].items())
    page = (
        f"# {title}\n\n{date}; {where['hardware']}; Python {where['python']}, {versions}.\n"
        f"Command: `{command}`\n\n{text}\n"
    )
    write_text(path.with_suffix(".md"), page)
    print(page)  # noqa: T201
    print(json.dumps(figures))  # noqa: T201
    return path


def _module_name() -> str:
    path = Path(sys.argv[0])
    return f"benchmarks.{path.parent.name if path.stem == '__main__' else path.stem}"
