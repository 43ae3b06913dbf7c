"""Where compiled programs are kept from one command to the next. Imports nothing heavy."""

import hashlib
import logging
import os
import platform
from collections.abc import MutableMapping
from pathlib import Path


_LOG = logging.getLogger("resa_jax")


def keep_programs(folder: str | None, environment: MutableMapping[str, str]) -> None:
    """Lets JAX, which must not be imported yet, keep its compiled programs.

    Args:
      folder: where; "none" keeps nothing, and None leaves it to JAX's own variable
        `JAX_COMPILATION_CACHE_DIR` or, where that is not set, to `default_folder`.
      environment: the process's variables, which are changed.
    """
    # Small programs too: there are many, and each costs a second or less to compile.
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if folder == "none":
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    elif folder is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = folder
    elif "JAX_COMPILATION_CACHE_DIR" not in environment:
        path = default_folder(environment)
        if _can_be_written(path):
            environment["JAX_COMPILATION_CACHE_DIR"] = str(path)
        else:
            _LOG.info("Compiled programs are not kept: %s cannot be written.", path)


def default_folder(environment: MutableMapping[str, str]) -> Path:
    """`~/.cache/resa_jax/MACHINE`, or that of XDG_CACHE_HOME.

    A program for the CPU runs only on processors with the same features, and homes are shared.
    """
    home = environment.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    digest = hashlib.sha256(features.encode()).hexdigest()[:8]
    return Path(home) / "resa_jax" / f"{platform.machine()}-{digest}"


def _can_be_written(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
