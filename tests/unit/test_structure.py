"""The package's own rules: who may import what, how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "diablo_ds").rglob("*.py"))
METHOD = (
    *("blocks", "compiled_blocks", "layers", "adapter", "loss", "schedule", "config", "files"),
    *("triton_blocks", "triton_kernels", "triton_tiles"),
    *("strict_json", "settings", "batch_sizes", "whole_tensors"),
    *("labels", "templates", "packing", "targets"),
)
HEAVY = {"deepspeed", "transformers", "datasets", "click"}


def _imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _name(path: Path) -> str:
    """Return a module's name inside the package, e.g. corpora.sources."""
    parts = path.relative_to(ROOT / "diablo_ds").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


NAMES = {_name(path) for path in MODULES}


def _own(path: Path) -> set[str]:
    """Return the package's modules that a module imports."""
    inside = {i.removeprefix("diablo_ds.") for i in _imports(path) if i.startswith("diablo_ds.")}
    return inside & NAMES


def _roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("name", METHOD)
def test_the_method_can_be_used_without_the_trainer(name):
    imports = _imports(ROOT / "diablo_ds" / f"{name}.py")
    assert not HEAVY & _roots(imports)
    assert not any(i.startswith("torch.distributed") for i in imports)
    assert _own(ROOT / "diablo_ds" / f"{name}.py") <= set(METHOD)


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_no_module_imports_scripts_tests_or_heavy_packages_at_the_top(path):
    assert not {"data_prep", "launch", "tests"} & _roots(_imports(path))
    assert not {"deepspeed", "transformers", "datasets"} & _roots(
        _imports(path, top_level_only=True)
    )


def test_only_the_modules_about_deepspeed_import_it():
    users = {_name(path) for path in MODULES if "deepspeed" in _roots(_imports(path))}
    assert users == {
        "ds_sections",
        "engine",
        "optimizer_state",
        "placement",
        "sharded_loading",
        "traffic",
    }


def test_nothing_depends_on_plans():
    users = {_name(path) for path in MODULES if "planning" in _roots(_own(path))}
    assert {name for name in users if not name.startswith("planning.")} <= {
        "cli",
        "startup",  # a memory budget
        "dry_run",
    }
    with_click = {_name(path) for path in MODULES if "click" in _roots(_imports(path))}
    assert {name for name in with_click if name.startswith("planning.")} == {"planning.command"}


def test_the_command_line_starts_without_heavy_packages():
    code = "import diablo_ds.cli, sys; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "deepspeed", "transformers", "datasets"} & set(loaded)


def test_imports_form_no_cycle():
    graph = {_name(path): _own(path) - {""} for path in MODULES}
    for entry_point in ("cli", "__main__"):  # nothing else imports them
        graph.pop(entry_point)
    done: set[str] = set()
    while graph.keys() - done:
        ready = {name for name in graph.keys() - done if graph[name] <= done | {name}}
        assert ready, f"cycle among {sorted(graph.keys() - done)}"
        done |= ready


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_files_stay_short_enough_to_read(path):
    assert len(path.read_text().splitlines()) <= 400
