"""The house: imports go one way, nothing is long, and no room has a name that says nothing."""

import ast
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parents[1] / "resa_jax"
# What a room may import, besides itself and what lies below.
BELOW = {
    "reproduce": {
        *("report", "processes", "training", "evaluation"),
        *("methods", "weights", "models", "data"),
    },
    "training": {"processes", "evaluation", "methods", "weights", "models", "data"},
    "report": {"processes", "training", "evaluation", "methods", "weights", "models", "data"},
    "evaluation": {"processes", "methods", "models", "data"},
    "processes": {"models", "data"},
    "weights": {"models", "data"},
    "methods": {"models"},
    "models": {"data"},
    "data": set(),
}
PATHS = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PATHS}


def name_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part not in ("__init__", "__main__"))


MODULES = {name_of(path): path for path in PATHS}


def imports(path):
    """Modules of the package that a file imports, also inside of functions, but not for types."""
    found = set()
    lines = [
        node
        for node in TREES[path].body
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    for node in ast.walk(ast.Module(lines, [])):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("resa_jax"):
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside & MODULES.keys() or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & MODULES.keys()
    return found - {name_of(path), "resa_jax"}


def test_imports_have_no_circle():
    graph = {name: imports(path) for name, path in MODULES.items()}
    while graph:
        leaves = {name for name, others in graph.items() if not others & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: others for name, others in graph.items() if name not in leaves}


@pytest.mark.parametrize("room", BELOW)
def test_arrows_go_one_way(room):
    """Directly and through what lies at the top, a room reaches only rooms below it."""
    reached, todo = set(), [name for name in MODULES if name.startswith(f"resa_jax.{room}.")]
    while todo:
        for other in imports(MODULES[todo.pop()]) - reached:
            reached.add(other)
            todo.append(other)
    rooms = {name.split(".")[1] for name in reached} & BELOW.keys()
    allowed = BELOW[room] | {room}
    if room == "evaluation":  # the encoder, between evaluation and weights
        allowed = allowed | {"weights"}
    assert rooms <= allowed


def test_commands_are_imported_by_nobody():
    commands = {f"resa_jax.{n}" for n in ("main", "evaluate", "embed", "convert", "export")}
    for name, path in MODULES.items():
        assert not imports(path) & commands, name


def test_nothing_is_long():
    for path in PATHS:
        assert len(path.read_text().splitlines()) <= 300, path
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.FunctionDef) and (path.name, node.name) != ("loop.py", "train"):
                assert node.end_lineno - node.lineno < 60, (path, node.name)


def test_names_say_something():
    for name in MODULES:
        assert not {"utils", "helpers", "common", "misc"} & set(name.split(".")), name
