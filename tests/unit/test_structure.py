"""The package's own rules: who may import what, how long a file may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from diablo_ds.files import layout

ROOT = Path(__file__).parents[2]
FLOORS = (
    ("cli",),
    ("reporting",),
    ("launcher",),
    ("training",),
    ("planning", "evaluation", "conversion", "peft"),
    ("generation",),
    ("api",),
    ("zero",),
    ("model",),
    ("data",),
    ("adapter", "config", "trackers"),
    ("ranks",),
    ("files",),
    ("errors",),
)
"""Packages from the top to the ground: an import goes down, or stays within its package."""
FLOOR_OF = {name: number for number, floor in enumerate(FLOORS) for name in floor}
MODULES = sorted((ROOT / "diablo_ds").rglob("*.py"))
SOURCES = sorted(
    path
    for folder in ("diablo_ds", "launch", "data_prep", "tests", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)
USERS = {
    "deepspeed": ("zero.",),
    "transformers": ("model.", "data.text.tokenization", "data.text.chat_template"),
    "click": ("cli.",),
    "triton": ("adapter.kernels.",),
    "peft": ("peft",),
    "wandb": ("trackers.wandb_run",),
    "mlflow": ("trackers.mlflow_run",),
    "trackio": ("trackers.trackio_run",),
}
"""Packages that only some modules may import, by how these modules' names begin."""


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
    """Return a module's name inside the package, e.g. data.corpora.sources."""
    parts = path.relative_to(ROOT / "diablo_ds").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def _own_packages(path: Path) -> set[str]:
    """Return the packages of this program that a module imports from."""
    inside = {i.removeprefix("diablo_ds.") for i in _imports(path) if i.startswith("diablo_ds.")}
    return _roots(inside) & FLOOR_OF.keys()


PACKAGED = [path for path in MODULES if _name(path) not in ("", "__main__")]


@pytest.mark.parametrize("path", PACKAGED, ids=_name)
def test_imports_go_down(path):
    own = _name(path).split(".")[0]
    upwards = {p for p in _own_packages(path) - {own} if FLOOR_OF[p] <= FLOOR_OF[own]}
    assert not upwards


@pytest.mark.parametrize("path", PACKAGED, ids=_name)
def test_each_library_has_its_room(path):
    for library in USERS.keys() & _roots(_imports(path)):
        assert _name(path).startswith(USERS[library]), library


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_no_module_imports_scripts_tests_or_heavy_packages_at_the_top(path):
    assert not {"data_prep", "launch", "tests"} & _roots(_imports(path))
    assert not {"deepspeed", "transformers", "datasets"} & _roots(
        _imports(path, top_level_only=True)
    )


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_no_module_reaches_for_files_outside_the_package(path):
    text = path.read_text()
    depth = len(path.relative_to(ROOT / "diablo_ds").parts)
    assert all(int(n) < depth for n in re.findall(r"__file__\)[.\w()]*\.parents\[(\d+)\]", text))
    assert all(
        steps.count(".parent") <= depth for steps in re.findall(r"__file__\)([.\w()]*)", text)
    )


def test_the_method_needs_torch_alone():
    libraries = set().union(
        *(_roots(_imports(path)) for path in MODULES if _name(path).startswith("adapter."))
    )
    assert libraries - sys.stdlib_module_names == {"torch", "triton", "diablo_ds"}


def test_the_command_line_starts_without_heavy_packages():
    code = "import diablo_ds.cli.main, sys; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "deepspeed", "transformers", "datasets"} & set(loaded)


def _strings(path: Path) -> set[str]:
    """Return the string constants of a module, without its docstrings."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    said = {
        id(statement.value)
        for node in ast.walk(tree)
        if isinstance(node, documented)
        for statement in node.body
        if isinstance(statement, ast.Expr)
    }
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return {n.value for n in nodes if isinstance(n.value, str) and id(n) not in said}


@pytest.mark.parametrize("path", [p for p in MODULES if _name(p) != "files.layout"], ids=_name)
def test_one_module_names_what_is_in_a_run_folder(path):
    files = (
        layout.RUN_CONFIG_FILE,
        layout.METRICS_FILE,
        layout.PROGRESS_FILE,
        layout.LOSS_PLOT,
        layout.ADAPTER_CONFIG_FILE,
        layout.ADAPTER_TENSOR_FILE,
        layout.EARLY_CONFIG_FILE,
        layout.EARLY_TENSOR_FILE,
        layout.CHECKSUMS_FILE,
        layout.OPTIMIZER_FILE,
        layout.RANK_RECORDS,
        layout.OWNER_FOLDER,
    )
    folders = (layout.CHECKPOINTS_FOLDER, layout.LOGS_FOLDER, layout.ADAPTER_FOLDER)
    for text in _strings(path):
        assert not [name for name in files if name in text]
        assert not [name for name in folders if re.search(rf"/{name}\\b|\\b{name}/", text)]
    paths = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.BinOp)]
    joined = {n.right.value for n in paths if isinstance(n.right, ast.Constant)}
    assert not joined & {*folders, layout.TENSORBOARD_FOLDER}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_short_enough_to_read(path):
    assert len(path.read_text().splitlines()) <= 300
