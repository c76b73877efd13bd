"""The package's own rules: who may import what, how long a file may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

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


class _Source(NamedTuple):
    """What the rules look at in a module."""

    text: str
    imports: set[str]
    imports_at_the_top: set[str]
    strings: set[str]
    """String constants, without docstrings."""
    right_operands: set[object]
    """Constants that an operator has on its right, such as the name in `folder / "name"`."""


@cache
def source(path: Path) -> _Source:
    """Read a module once for all rules; its syntax tree would fill memory."""
    text = path.read_text()
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    said = {
        id(statement.value)
        for node in nodes
        if isinstance(node, documented)
        for statement in node.body
        if isinstance(statement, ast.Expr)
    }
    constants = [node for node in nodes if isinstance(node, ast.Constant)]
    operands = [node.right for node in nodes if isinstance(node, ast.BinOp)]
    return _Source(
        text,
        _imported(nodes),
        _imported(tree.body),
        {n.value for n in constants if isinstance(n.value, str) and id(n) not in said},
        {operand.value for operand in operands if isinstance(operand, ast.Constant)},
    )


def _imported(nodes: Iterable[ast.AST]) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def breaches(
    rule: Callable[[Path], Iterable[object]], paths: Iterable[Path]
) -> dict[str, list[object]]:
    """Return what breaks a rule, by module."""
    found = {_name(path): list(rule(path)) for path in paths}
    assert len(found) > 100  # of all modules
    return {name: broken for name, broken in found.items() if broken}


def _name(path: Path) -> str:
    """Return a module's name inside the package, e.g. data.corpora.sources."""
    parts = path.relative_to(ROOT / "diablo_ds").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def _own_packages(path: Path) -> set[str]:
    """Return the packages of this program that a module imports from."""
    inside = {
        i.removeprefix("diablo_ds.") for i in source(path).imports if i.startswith("diablo_ds.")
    }
    return _roots(inside) & FLOOR_OF.keys()


PACKAGED = [path for path in MODULES if _name(path) not in ("", "__main__")]


def _upwards(path: Path) -> set[str]:
    own = _name(path).split(".")[0]
    return {p for p in _own_packages(path) - {own} if FLOOR_OF[p] <= FLOOR_OF[own]}


def test_imports_go_down():
    assert breaches(_upwards, PACKAGED) == {}


def _out_of_room(path: Path) -> set[str]:
    libraries = USERS.keys() & _roots(source(path).imports)
    return {library for library in libraries if not _name(path).startswith(USERS[library])}


def test_each_library_has_its_room():
    assert breaches(_out_of_room, PACKAGED) == {}


def _scripts_and_heavy(path: Path) -> set[str]:
    at_the_top = {"deepspeed", "transformers", "datasets"} & _roots(source(path).imports_at_the_top)
    return {"data_prep", "launch", "tests"} & _roots(source(path).imports) | at_the_top


def test_no_module_imports_scripts_tests_or_heavy_packages_at_the_top():
    assert breaches(_scripts_and_heavy, MODULES) == {}


def _outside(path: Path) -> list[str]:
    text, depth = source(path).text, len(path.relative_to(ROOT / "diablo_ds").parts)
    numbers = re.findall(r"__file__\)[.\w()]*\.parents\[(\d+)\]", text)
    steps = re.findall(r"__file__\)([.\w()]*)", text)
    return [
        *(n for n in numbers if int(n) >= depth),
        *(s for s in steps if s.count(".parent") > depth),
    ]


def test_no_module_reaches_for_files_outside_the_package():
    assert breaches(_outside, MODULES) == {}


def test_the_method_needs_torch_alone():
    libraries = set().union(
        *(_roots(source(path).imports) for path in MODULES if _name(path).startswith("adapter."))
    )
    assert libraries - sys.stdlib_module_names == {"torch", "triton", "diablo_ds"}


def test_the_command_line_starts_without_heavy_packages():
    code = "import diablo_ds.cli.main, sys; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "deepspeed", "transformers", "datasets"} & set(loaded)


_FILES = (
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
_FOLDERS = (layout.CHECKPOINTS_FOLDER, layout.LOGS_FOLDER, layout.ADAPTER_FOLDER)


def _named_in_a_run_folder(path: Path) -> list[object]:
    found: list[object] = []
    for text in source(path).strings:
        found += [name for name in _FILES if name in text]
        found += [name for name in _FOLDERS if re.search(rf"/{name}\b|(?<!\$)\b{name}/", text)]
    return [*found, *(source(path).right_operands & {*_FOLDERS, layout.TENSORBOARD_FOLDER})]


def test_one_module_names_what_is_in_a_run_folder():
    others = [path for path in MODULES if _name(path) != "files.layout"]
    assert breaches(_named_in_a_run_folder, others) == {}


def test_a_name_in_a_run_folder_is_found(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        'a = "logs/rank"\nb = folder / "adapter"\nc = "see run.json"\nd = "$logs/host"\n'
    )
    assert sorted(_named_in_a_run_folder(path)) == ["adapter", "logs", "run.json"]


def test_files_stay_short_enough_to_read():
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in SOURCES}
    assert len(lengths) > 500
    assert {path: length for path, length in lengths.items() if length > 300} == {}
