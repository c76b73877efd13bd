"""What comes from files and from other ranks is never run as code: a walk through the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_structure import MODULES, _name, breaches, source

OBJECT_COLLECTIVES = {
    "all_gather_object",
    "gather_object",
    "broadcast_object_list",
    "scatter_object_list",
    "send_object_list",
    "recv_object_list",
}
PICKLERS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "pickletools"}
PICKLES_ALLOWED = {
    "evaluation.sandbox.exchange": "an unpickler of its own, of plain values only",
    "evaluation.sandbox.checker": "the name of an error",
    "conversion.published_files": "the name of an error",
}
RUNS_PROGRAMS = "evaluation.sandbox."
"""Where programs that a model wrote run behind walls."""
_TRUST = "trusts_code()"
"""The one value besides False: whether the user's command names the option for it."""
LOADERS = {"from_pretrained", "from_config"}


def forbidden(tree: ast.AST, name: str) -> Iterator[str]:
    """Yield what a module may not do, with its line."""
    for node in ast.walk(tree):
        found = ""
        if isinstance(node, ast.Attribute | ast.Name | ast.alias):
            called = {ast.Attribute: "attr", ast.Name: "id", ast.alias: "name"}[type(node)]
            if getattr(node, called) in OBJECT_COLLECTIVES:
                found = f"pickling collective {getattr(node, called)}"
        if isinstance(node, ast.Call):
            found = _forbidden_call(node, name)
        if found:
            yield f"{name}, line {getattr(node, 'lineno', '?')}: {found}"


def _forbidden_call(node: ast.Call, name: str) -> str:
    function = ast.unparse(node.func)
    method = function.rpartition(".")[2]
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if function.startswith("torch.") and method == "load" and options.get("weights_only") != "True":
        return "torch.load without weights_only=True"
    if options.get("allow_pickle", "False") != "False":
        return "allow_pickle"
    if options.get("trust_remote_code", "False") not in ("False", _TRUST):
        return f"trust_remote_code={options['trust_remote_code']}"
    is_library = method in LOADERS and "." in function
    if is_library and "trust_remote_code" not in options and "gguf_file" not in options:
        return f"{method} without trust_remote_code"
    if options.get("shell", "False") != "False" or function in ("os.system", "os.popen"):
        return "a shell"
    is_unsafe_yaml = function.startswith("yaml.") and method.startswith(
        ("load", "full_load", "unsafe")
    )
    if is_unsafe_yaml or function in ("numpy.fromregex", "torch.hub.load"):
        return function
    runs = function in ("eval", "exec", "compile")
    return function if runs and not name.startswith(RUNS_PROGRAMS) else ""


def _run_or_unpickled(path: Path) -> list[str]:
    name = _name(path)
    found = list(forbidden(ast.parse(source(path).text), name))
    picklers = {i.partition(".")[0] for i in source(path).imports} & PICKLERS
    return found if name in PICKLES_ALLOWED else [*found, *picklers]


def test_no_module_runs_what_it_reads():
    assert breaches(_run_or_unpickled, MODULES) == {}


@pytest.mark.parametrize(
    "text",
    [
        "import torch.distributed as dist\ndist.all_gather_object(a, b)",
        "from torch.distributed import broadcast_object_list",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_config(config, trust_remote_code=options.trust)",
        "eval(text)",
        "subprocess.run(line, shell=True)",
        "yaml.load(text)",
    ],
)
def test_the_walk_sees(text):
    assert len(list(forbidden(ast.parse(text), "module"))) == 1
