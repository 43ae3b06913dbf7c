"""Memory that programs on a CPU free stays with the process."""

import ctypes
import os
import platform
from collections.abc import Mapping
from importlib.util import find_spec


# Options of mallopt, from the GNU C library's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory(environment: Mapping[str, str]) -> None:
    """Lets malloc reuse what it frees, in a process whose programs can only run on a CPU.

    XLA's CPU client allocates a program's temporaries each time that it runs. The GNU C library
    gives blocks of that size back to the system, which then has to clear the pages for each step
    anew. What is larger than 64 MB can only stay in the first of malloc's arenas, so that there are
    no more of them than cores; with a single one threads that compile would wait for each other.

    For processes that run a few programs again and again, as training does. With hundreds of
    different ones small blocks come to lie in what large ones left, and the process grows.

    To be called before any thread starts. Nothing changes where a plug-in of JAX may find an
    accelerator, or with another C library.

    Args:
      environment: `os.environ`; JAX_PLATFORMS is looked at.
    """
    plug_ins = any(find_spec(name) for name in ("jax_plugins", "libtpu"))
    on_cpu = environment.get("JAX_PLATFORMS") == "cpu" or not plug_ins
    if on_cpu and platform.libc_ver()[0] == "glibc":
        library, cores = ctypes.CDLL(None), len(os.sched_getaffinity(0))
        for option, value in ((_ARENA_MAX, cores), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):
            library.mallopt(option, value)
