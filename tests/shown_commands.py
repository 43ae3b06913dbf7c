"""The commands that docs and docstrings show, read as a shell would read them."""

import ast
import re
import shlex


# --- What is shown: logical lines of code ---


def shown_in_markdown(text):
    """Lines of code blocks; inline code as lines of their own."""
    fenced, prose = False, ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()
        elif line.strip():
            prose += f"{line} "
        else:
            for code in re.findall(r"`([^`]+)`", prose):
                yield from ("", code)
            prose = ""
            yield ""


def shown_in_docstring(text):
    """Lines that look like commands or their continuation, and inline code."""
    inside = False
    for line in text.splitlines():
        line = line.strip()
        starts = re.match(r"python -m [\w.]+( [-\[]|$)|\[?--", line) is not None
        if starts or (inside and line):
            yield line
        else:
            yield ""
            for code in re.findall(r"`([^`]+)`", line):
                yield from (code, "")
        inside = (starts or inside) and (line.endswith("\\") or line.count("[") > line.count("]"))


def logical_lines(lines):
    """Lines with their continuation, and those that a forgotten backslash tore apart."""
    whole, torn = [""], []
    for line in lines:
        last = whole[-1]
        if last.endswith("\\"):
            whole[-1] = f"{last[:-1].rstrip()} {line}"
        elif last.count("[") > last.count("]") or (last and line.startswith("[--")):
            whole[-1] = f"{last} {line}"  # a synopsis
        elif last and line.startswith("--"):
            torn.append(f"no backslash before {line!r}, after {last!r}")
        else:
            whole.append(line)
    return whole, torn


# --- Which commands these are ---


def commands_of(line):
    """The `(module, arguments)` that a line of shell runs, also inside quoted words."""
    line = re.sub(r"\$\([^()]*\)|\$\{?\w+\}?", "1", line)
    command = []
    for word in [*shlex.split(line, comments=True), ";"]:
        if "python -m " in word:
            yield from commands_of(word[word.index("python -m ") :])
        if word in ("&&", "||", ";", "|", "&"):
            yield from command_of(command)
            command = []
        else:
            command.append(word)


def command_of(words):
    for i, word in enumerate(words):
        if re.fullmatch(r"(.*/)?python[\d.]*", word) and words[i + 1 : i + 2] == ["-m"]:
            module, *arguments = words[i + 2 :]
            if re.match(r"(resa_jax|benchmarks)\b(?!\.NAME)", module):
                yield module, without_brackets(arguments)
        elif word.startswith("launch/"):  # what follows is for resa_jax.main
            rest = words[i + 1 :]
            if "--" in rest:
                rest = rest[rest.index("--") + 1 :]
            if any(argument.startswith("--config=") for argument in rest):
                yield "resa_jax.main", rest


def without_brackets(words):
    """A synopsis with everything that is optional, and the first of alternatives."""
    for word in words:
        word = word.removeprefix("[")
        if word.count("]") > word.count("["):
            word = word.removesuffix("]")
        if word != "...":
            yield word.partition("|")[0]


def commands_in(path):
    """All commands of a file, and what is wrong with its lines."""
    text = path.read_text()
    if path.suffix == ".md":
        return commands_in_lines(shown_in_markdown(text))
    docstring = ast.get_docstring(ast.parse(text)) or ""
    config = path if path.parent.name == "configs" else None
    return commands_in_lines(shown_in_docstring(docstring), config)


def commands_in_lines(lines, config=None):
    whole, wrong = logical_lines(lines)
    commands = []
    for line in whole:
        if config is not None and line.startswith("--"):  # overrides alone, to add to the command
            overrides = shlex.split(line)
            commands.append(("resa_jax.main", [f"--config={config}", "--workdir=DIR", *overrides]))
        elif "python -m " in line or line.startswith(("launch/", "sbatch ")):
            try:
                commands += [(module, list(rest)) for module, rest in commands_of(line)]
            except ValueError as error:
                wrong.append(f"{line!r}: {error}")
    return commands, wrong
