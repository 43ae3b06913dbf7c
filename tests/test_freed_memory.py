"""Freed memory stays: page faults of a process with and without it, counted by the system."""

import os
import platform
import subprocess
import sys

import pytest


# On one core, a program with 144 MB of temporaries; the page faults of its last five runs.
_SCRIPT = """
import os, resource, sys
from resa_jax.freed_memory import keep_freed_memory
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
if sys.argv[1] == "keep":
    keep_freed_memory(os.environ)
import jax, jax.numpy as jnp
program = jax.jit(lambda x: (x + jnp.arange(6_000.0)[:, None]) @ x[:, :8])
x = jnp.ones((6_000, 6_000))
def run(times):
    for _ in range(times):
        program(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(-run(3) + run(5))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_programs_temporaries_are_reused():
    faults = {}
    for how in ("keep", "leave"):
        command = [sys.executable, "-c", _SCRIPT, how]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        faults[how] = int(done.stdout)
    assert faults["keep"] < faults["leave"] / 10
