"""The commands that the docs and docstrings show: flags, configs, variants and fields exist."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from shown_commands import commands_in, commands_in_lines, shown_in_docstring, shown_in_markdown


ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "launch/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
MODULES = [
    *sorted((ROOT / "configs").glob("*.py")),
    *sorted((ROOT / "resa_jax").rglob("*.py")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
]
PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*|\.\.\.")


# --- Whether they parse: in a process of its own, as each module defines flags ---


def flags_of(module):
    """The flags of a command, taken off absl's global table, where two commands would collide."""
    from absl import flags

    package = importlib.util.find_spec(module)
    if package is None:
        raise ValueError(f"there is no module {module}")
    if package.submodule_search_locations is not None:
        module += ".__main__"
    importlib.import_module(module)
    own = flags.FLAGS.get_key_flags_for_module(module)
    table = flags.FlagValues()
    for flag in own:
        table[flag.name] = flag
        delattr(flags.FLAGS, flag.name)
    return table


def problem_of(table, module, arguments):
    """What is wrong with a command line, or None."""
    from absl import flags

    from resa_jax.errors import UserError
    from resa_jax.evaluation.protocols import PROTOCOLS

    if not arguments or "--help" in arguments:  # a name alone
        return None
    takes_overrides = module in ("resa_jax.main", "benchmarks.aot")
    overrides = [a for a in arguments if takes_overrides and a.startswith("--config.")]
    rest = [filled_in(table, a) for a in arguments if a not in overrides]
    try:
        table.unparse_flags()
        for name in table:
            table[name].unparse()
        left = table(["command", *rest])[1:]
        if left:
            return f"{left[0]!r} is no flag"
        if takes_overrides:
            check_config(table["config"].value, [o.removeprefix("--config.") for o in overrides])
        if module == "resa_jax.evaluate":
            for name in table["protocol"].value:
                if name not in PROTOCOLS and not PLACEHOLDER.fullmatch(name):
                    return f"there is no protocol {name!r}"
    except (flags.Error, UserError) as error:
        return str(error)
    return None


def filled_in(table, argument):
    """A number for a placeholder, where the flag is a number."""
    name, equals, value = argument.removeprefix("--").partition("=")
    numeric = name in table and table[name].flag_type() in ("int", "float")
    if equals and numeric and PLACEHOLDER.fullmatch(value):
        return f"--{name}=2"
    return argument


def check_config(path, overrides):
    """Raises a `UserError` for a file, a variant or a field that there is not."""
    from resa_jax.config import fields_known, load_config
    from resa_jax.errors import UserError

    if re.search(r"\b[A-Z]+\b|\.\.\.", Path(path).name):
        path = "configs/digits.py"
    shown = []
    for override in overrides:
        name, _, value = override.partition("=")
        if not PLACEHOLDER.fullmatch(value):
            shown.append(override)
        elif name != "FIELD" and name not in fields_known(load_config(path)):
            raise UserError(f"The config has no field {name!r}.")
    load_config(path, shown)


def problems(commands):
    """What is wrong with each of `(module, arguments)`, or None, as a child process finds it."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    result = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(commands),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def answer():
    tables, answers = {}, []
    for module, arguments in json.load(sys.stdin):
        try:
            if module not in tables:
                tables[module] = flags_of(module)
            answers.append(problem_of(tables[module], module, arguments))
        except ValueError as error:
            answers.append(str(error))
    print(json.dumps(answers))


# --- The tests ---


def test_every_command_of_the_docs_parses():
    commands, wrong, places = [], [], []
    for path in [*PAGES, *MODULES]:
        found, broken = commands_in(path)
        name = str(path.relative_to(ROOT))
        wrong += [f"{name}: {problem}" for problem in broken]
        commands += found
        places += [name] * len(found)
    for place, (module, arguments), problem in zip(
        places, commands, problems(commands), strict=True
    ):
        if problem is not None:
            wrong.append(f"{place}: {module} {' '.join(arguments)}: {problem}")
    assert not wrong, "\n".join(wrong)
    assert len(commands) > 40
    # Every folder of docs and every kind of code was read.
    assert {"README.md", "docs/data.md", "launch/README.md", "configs/digits.py"} <= set(places)
    assert {"resa_jax/main.py", "benchmarks/silhouette.py"} <= set(places)


WRONG = [
    ("python -m resa_jax.main --config=configs/digits.py\n  --workdir=runs/a", "no backslash"),
    ("python -m resa_jax.main --config=configs/digits.py", "workdir"),
    ("python -m resa_jax.main --config=configs/digit.py --workdir=a", "digit.py"),
    ("python -m resa_jax.main --config=configs/digits.py:smok --workdir=a", "smok"),
    ("python -m resa_jax.main --config=configs/digits.py --workdir=a stray", "stray"),
    ("python -m resa_jax.main --config=configs/digits.py --workdir=a --config.sed=1", "sed"),
    ("python -m resa_jax.main --config=configs/digits.py --workdir=a --config.sed=SEED", "sed"),
    ("python -m resa_jax.evaluate --protocol=knn-cifar --sourc=digits", "sourc"),
    ("python -m resa_jax.evaluate --protocol=knn-cifer --source=digits", "knn-cifer"),
    ("python -m resa_jax.embed --encoder=a --source=b --output=c --groups=one", "groups"),
    ("python -m resa_jax.nothing --encoder=a", "nothing"),
    ("python -m benchmarks.silhouette --outptu=a", "outptu"),
    ("cd a && python -m resa_jax.report --workdi=a", "workdi"),
    ("xpk create --command='python -m resa_jax.report --workdi=a'", "workdi"),
    ("launch/local_processes.sh --processes=2 -- --config=configs/no.py --workdir=a", "no.py"),
    ("python -m resa_jax.report --workdir='a", "quotation"),
]


def test_what_is_wrong_is_found():
    commands, found = [], []
    for text, _ in WRONG:
        lines = [f"    {line}" for line in text.splitlines()]
        own, broken = commands_in_lines(shown_in_markdown("\n".join(lines)))
        commands.append(own)
        found.append(broken)
    answers = iter(problems([command for own in commands for command in own]))
    for (text, word), own, broken in zip(WRONG, commands, found, strict=True):
        messages = broken + [problem for _ in own if (problem := next(answers)) is not None]
        assert any(word in message for message in messages), (text, messages)


def test_a_torn_line_of_a_docstring_is_found():
    first, second = "    python -m resa_jax.main --config=configs/digits.py", "      --workdir=a"
    for end, number in (("", 1), (" \\", 0)):
        text = f"Title.\n\n{first}{end}\n{second}\n"
        _, wrong = commands_in_lines(shown_in_docstring(text))
        assert len(wrong) == number


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_shell_blocks_parse(path):
    for block in re.findall(r"^```sh\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
        result = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


if __name__ == "__main__":
    answer()
