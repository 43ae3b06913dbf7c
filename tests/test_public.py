"""The public names: loaded when they are used, and seen by TAB and by type checkers."""

import ast
import doctest
import importlib
import json
import subprocess
import sys
from pathlib import Path

import resa_jax


NAMES = {
    "Encoder": "class",
    "UserError": "class",
    "encode": "function",
    "get_config": "function",
    "lars": "function",
    "load_encoder": "function",
    "losses": "module",
    "resa_loss": "function",
    "score": "function",
    "sinkhorn_knopp": "function",
    "train": "function",
    "warmup_cosine": "function",
}
HEAVY = ("jax", "flax", "numpy", "optax", "orbax", "grain", "ml_collections", "sklearn", "absl")
SCRIPT = f"""
import inspect, json, sys
import resa_jax
loaded = sorted(set({HEAVY!r}) & set(sys.modules))
shown = [name for name in dir(resa_jax) if name in {list(NAMES)!r}]
kinds = {{}}
for name in {list(NAMES)!r}:
    value = getattr(resa_jax, name)
    tests = {{k: getattr(inspect, "is" + k) for k in ("module", "class", "function")}}
    kinds[name] = next(kind for kind, test in tests.items() if test(value))
print(json.dumps([loaded, shown, kinds]))
"""


def test_names_are_lazy_shown_and_found():
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    loaded, shown, kinds = json.loads(result.stdout)
    assert loaded == []
    assert shown == sorted(NAMES)
    assert kinds == NAMES


def test_type_checkers_know_the_same_names():
    assert resa_jax.__all__ == sorted(NAMES)
    block = next(
        node
        for node in ast.parse(Path(resa_jax.__file__).read_text()).body
        if isinstance(node, ast.If)
    )
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    origins = {alias.name: node.module for node in block.body for alias in node.names}
    assert set(origins) == set(NAMES)
    for name, module in origins.items():
        if name != "losses":
            assert getattr(importlib.import_module(module), name) is getattr(resa_jax, name)


def test_unknown_name():
    assert not hasattr(resa_jax, "bogus")


def test_the_examples_of_the_docstrings_give_what_they_say():
    runner, shown = doctest.DocTestRunner(), set()
    for name, home in (
        *((name, resa_jax) for name in NAMES if NAMES[name] == "function"),
        *((name, resa_jax.losses) for name in resa_jax.losses.__all__),
    ):
        function = getattr(home, name)
        scope = importlib.import_module(function.__module__).__dict__
        for test in doctest.DocTestFinder(recurse=False).find(function, name, globs=dict(scope)):
            if test.examples:
                shown.add(name)
                runner.run(test)
    assert runner.failures == 0
    assert {"get_config", "resa_loss", "sinkhorn_knopp", "lars", "simclr_loss"} <= shown
