"""Every field of every method with values that make no sense, from the shell and from a file."""

import random
import subprocess
import sys
from pathlib import Path

from benchmarks.faults.counts import Counts
from resa_jax.config import fields_known, load_config
from resa_jax.errors import UserError
from resa_jax.schema import method_names


_VALUES = (
    *("8", "0", "-1", "1.5", "nan", "inf", "-inf", "1e30", "1e999", "", " ", "abc", "true"),
    *("(1,2)", "(2,1)", "()", "(0,0,0)", "(-1,-1,-1)", "(nan,nan,nan)", "None", "[]", "{}", "0x10"),
    *("'a'", "(1,2,3,4)", "auto", "9" * 30, "__import__('os')", "\0", "True", "1_000", "٣"),
)
_TYPED = (
    "None",
    "'text'",
    "-1",
    "0",
    "float('nan')",
    "float('inf')",
    "object()",
    "[]",
    "{}",
    "1e40",
)


def break_configurations(folder: Path, seed: int, scale: float) -> dict:
    """Values from the command line and from a file of one's own; a sample by the whole command."""
    counts, by_command, taken = Counts(), [], []
    for method in method_names():
        recipe = f"digits:{method}"
        for number, name in enumerate(fields_known(load_config(recipe))):
            if method != "resa" and not name.startswith("method."):
                continue
            for value in _VALUES:
                if _try(counts, "command line", recipe, [f"{name}={value}"]) == "ran":
                    taken.append((method, f"--config.{name}={value}"))
            _try(counts, "misspelt", recipe, [f"{name}x=1"])
            for place, value in enumerate(_TYPED):
                path = folder / "own.py"
                path.write_text(
                    "from resa_jax.recipes import get_config as known\n"
                    "def get_config(variant=None):\n"
                    f"    c = known({recipe!r})\n    c.unlock()\n"
                    f"    c.{name} = {value}\n    return c\n"
                )
                _try(counts, "own file", str(path), [])
                if (number + place) % 40 == 0 and len(by_command) < 20 * scale:
                    by_command.append((recipe, f"--config.{name}={_VALUES[place + 2]}"))
    for recipe, override in by_command:
        _try_command(counts, folder, recipe, override)
    for number, (method, override) in enumerate(
        random.Random(seed).sample(taken, round(20 * scale))
    ):
        _run(counts, folder / f"run-{number}", method, override)
    return counts.result()


def _try(counts, kind, recipe, overrides) -> str:
    try:
        load_config(recipe, overrides)
    except UserError as error:
        named = not overrides or overrides[0].partition("=")[0].rstrip("x")[:12] in str(error)
        related = any(word in str(error) for word in ("warmup", "final_lr", "lr_drops", "channels"))
        fine = (named or related) and " at 0x" not in str(error)
        result, message = "refused" if fine else "silently_wrong", f"{overrides}: {error}"
    except Exception as error:
        result, message = "tracebacks", f"{recipe} {overrides}: {error!r}"
    else:
        result, message = "ran", ""
    counts.add(kind, result, message)
    return result


def _run(counts, workdir, method, override) -> None:
    """What was taken ends as a run, or is refused by what reads the data or builds the networks."""
    command = [sys.executable, "-m", "resa_jax.main", f"--config=digits:{method},smoke"]
    small = ("encoder.name=vitc_s16", "encoder.patch_size=4", "encoder.width=64", "encoder.depth=1")
    # The one given comes last, and so in the place of ours.
    command += [f"--config.{field}" for field in (*small, "steps=2", "eval.max_images=64")]
    command += [override, f"--workdir={workdir}"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        counts.add("taken, then run", "hangs", override)
        return
    said = result.stderr.strip().splitlines()[-1:]
    if result.returncode == 0:
        counts.add("taken, then run", "ran")
    elif result.returncode == 2 and said and said[0].startswith("error: "):
        counts.add("taken, then run", "refused", f"{override}: {said[0]}")
    else:
        counts.add("taken, then run", "tracebacks", f"{override}: {result.stderr}")


def _try_command(counts, folder, recipe, override) -> None:
    if "\0" in override:
        return
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "resa_jax.main",
        f"--config={recipe},smoke",
    ]
    command += [override, f"--workdir={folder / 'run'}", "--config.steps=1"]
    command += ["--config.data.source=npz:missing.npz"]  # refused at the latest by its name
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = [line for line in result.stderr.splitlines() if not line.startswith("import time:")]
    heavy = any(line.rstrip().endswith("| jax") for line in result.stderr.splitlines())
    if result.returncode != 2 or len(said) != 1 or heavy:
        counts.add("whole command", "tracebacks", f"{override}: {said[-3:]} heavy={heavy}")
    else:
        counts.add("whole command", "refused", said[0])
