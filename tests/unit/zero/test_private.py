"""DeepSpeed's private names: used in one package only, each listed, missing ones refused."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from diablo_ds.zero.private import names
from diablo_ds.zero.private.names import NAMES, PRIVATE, missing_names

ZERO = Path(names.__file__).parents[1]
OUTSIDE = sorted(path for path in ZERO.glob("*.py"))
INSIDE = sorted(path for path in (ZERO / "private").glob("*.py") if path.name != "names.py")


def _touched(path: Path) -> set[str]:
    """Attributes that a module reads or sets, other than its own object's; also through getattr."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            found |= set() if of_self else {node.attr}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("attr"):
            found |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    return {name for name in found if isinstance(name, str)}


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: path.name)
def test_no_other_module_touches_a_private_name(path):
    assert not {name for name in _touched(path) if name in NAMES or _is_private(name)}


def test_each_listed_name_is_used_and_each_private_name_used_is_listed():
    used = set().union(*map(_touched, INSIDE))
    own = {"_init", "_ds_engine", "_foreach_norm"}  # this program's and PyTorch's
    assert used >= NAMES
    assert {name for name in used if _is_private(name)} <= NAMES | own
    assert all(private.reason and private.elsewhere for private in PRIVATE)


@pytest.mark.parametrize(("stage", "missing"), [(0, 1), (1, 4), (2, 4), (3, 7)])
def test_what_nothing_replaces_is_missed(stage, missing):
    module = torch.nn.Linear(1, 1)
    bare = SimpleNamespace(optimizer=object(), zero_optimization_stage=lambda: stage, module=module)
    assert len(missing_names(bare)) == missing
    assert set(missing_names(bare)) <= NAMES


def test_an_unwrapped_optimizer_needs_nothing():
    module = torch.nn.Linear(1, 1)
    plain = torch.optim.AdamW(module.parameters())
    engine = SimpleNamespace(optimizer=plain, zero_optimization_stage=lambda: 0, module=module)
    assert missing_names(engine) == []
