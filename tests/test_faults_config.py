"""Senseless configurations: each is refused in a sentence that names field or file, or runs."""

import pytest

from resa_jax.config import fields, fields_known, load_config
from resa_jax.errors import UserError
from resa_jax.paths import as_path
from resa_jax.schema import method_names


VALUES = ["8", "0", "-1", "1.5", "nan", "inf", "-inf", "1e30", "1e999", "", " ", "abc", "true"]
VALUES += ["(1,2)", "(2,1)", "(0,0,0)", "(-1,-1,-1)", "(nan,nan,nan)", "None", "[]", "{}", "0x10"]
VALUES += ["'a'", "(1,2,3,4)", "auto", "9" * 30, "__import__('os')", "\0"]
MAKES = """from resa_jax.recipes import default_config
def get_config(variant):
    c = default_config()
"""
# A recipe of one's own, and what its refusal says.
RECIPES = {
    "def get_config(:\n": "line 1: SyntaxError",
    "import nonexistent\n": "line 1: ModuleNotFoundError: No module named 'nonexistent'",
    "x = 1\n": "does not define get_config",
    "get_config = 3\n": "does not define get_config",
    "import sys\nsys.exit(3)\n": "line 2: SystemExit",
    "def get_config():\n    pass\n": "TypeError",
    "def get_config(variant):\n    return 1 / 0\n": "line 2: ZeroDivisionError",
    "def get_config(variant):\n    pass\n": "returned None; it must be a ConfigDict",
    "def get_config(variant):\n    return object()\n": "returned a object",
    "def get_config(variant):\n    return {'epochs': 3}\n": "it must be a ConfigDict",
    MAKES + "    c.epochs = 'ten'\n    return c\n": "config.epochs is 'ten'",
    MAKES + "    c.base_lr = None\n    return c\n": "config.base_lr is None",
    MAKES + "    c.base_lr = float('nan')\n    return c\n": "config.base_lr is nan",
    MAKES + "    c.base_lr = object()\n    return c\n": "config.base_lr is a object",
    MAKES + "    c.batch_size = 'x'\n    return c\n": "config.batch_size is 'x'",
    MAKES + "    c.views = 3\n    return c\n": "config.views is 3",
    MAKES + "    c.views = [1, 2]\n    return c\n": "config.views is [1, 2]",
    MAKES + "    c.views = c.views[:1]\n    return c\n": "config.views has 1 view",
    MAKES + "    c.encoder = 'vit'\n    return c\n": "config.encoder is 'vit'",
    MAKES + "    c.data = None\n    return c\n": "config.data is None",
    MAKES + "    c.method = 3\n    return c\n": "config.method is 3",
    MAKES + "    c.method.name = 3\n    return c\n": "config.method.name is 3",
    MAKES + "    c.method.name = 'bogus'\n    return c\n": "config.method.name is 'bogus'",
    MAKES + "    c.foo = 3\n    return c\n": 'line 4: AttributeError: Key "foo" does not exist',
    MAKES + "    c.unlock()\n    c.foo = 3\n    return c\n": "no field 'foo'",
    MAKES + "    c.unlock()\n    del c.epochs\n    return c\n": "lacks the field 'epochs'",
    MAKES + "    c.unlock()\n    del c.eval\n    return c\n": "config.eval is None",
}


@pytest.mark.slow
@pytest.mark.parametrize("method", method_names())
def test_every_field_refuses_or_takes_every_value(method):
    """Nothing but a `UserError` that names the field, for thousands of pairs."""
    config = f"configs/digits.py:{method}" if method != "resa" else "configs/digits.py"
    known = fields_known(load_config(config))
    refused = 0
    for name in known:
        if method != "resa" and not name.startswith("method."):
            continue
        for value in VALUES:
            try:
                taken = dict(fields(load_config(config, [f"{name}={value}"])))
                assert taken.keys() >= known.keys() - {"method.name"} or name == "method.name"
            except UserError as error:
                refused += 1
                related = {"base_lr": "final_lr", "epochs": "warmup_epochs"}
                assert name in str(error) or related.get(name, name) in str(error)
    assert refused


@pytest.mark.parametrize("text", RECIPES, ids=range(len(RECIPES)))
def test_a_recipe_of_ones_own_is_refused_in_a_sentence(tmp_path, text):
    path = tmp_path / "own.py"
    path.write_text(text)
    with pytest.raises(UserError) as refusal:
        load_config(str(path))
    assert RECIPES[text] in str(refusal.value)
    assert " at 0x" not in str(refusal.value)


@pytest.mark.parametrize("content", [b"\xff\x00\xfe", b"", b"# Title\n\n`code`\n"])
def test_a_file_that_is_no_recipe_is_refused_by_name(tmp_path, content):
    path = tmp_path / "own.py"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"own\.py"):
        load_config(str(path))


@pytest.mark.parametrize(
    "path", ["", "/", "configs", "nowhere.py", "\0", "configs/digits.py:bogus"]
)
def test_a_path_that_is_no_recipe_is_refused(path):
    with pytest.raises(UserError):
        load_config(path)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["epochs=5", "warmup_epochs=5"], "the warm-up must be shorter"),
        (["base_lr=0.1", "final_lr=0.2"], "at most the learning rate, 0.1"),
        (["views[0].size=8.5"], r"views\[0\].size"),
        (["views[2].size=8"], r"views\[2\].size"),
        (["views[-1].size=8"], r"views\[-1\].size"),
        (["views.size=8"], "views.size"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides, words):
    with pytest.raises(UserError, match=words):
        load_config("configs/digits.py", ["batch_size=256", *overrides])


def test_the_size_of_a_view_is_set():
    assert load_config("configs/digits.py", ["views[0].size=8"]).views[0].size == 8


@pytest.mark.parametrize("name", ["", " ", "a\0b"])
def test_a_path_without_a_name_is_refused(name):
    with pytest.raises(UserError, match=r"--workdir=.* names no file or folder"):
        as_path(name, "--workdir=")
