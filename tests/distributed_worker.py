"""The command `resa_jax.main`, for tests with several processes: it also notes what it trained on.

Environment:
  TEST_INDICES: each process appends "STEP INDICES" of its part of every batch to TEST_INDICES.ID.
  TEST_FSDP_BYTES: the size from which fsdp splits a tensor, since those of the tests are small.
  TEST_DEVICE_ORDER: the mesh is made of the processes' devices in turn (0 1 0 1), the order that
    `jax.make_mesh` gives a TPU v5p 2x2x2.
  TEST_HEARTBEAT_SECONDS: how long a process may be silent.
  JAX_ENABLE_X64: the networks start, and so stay, in float64.
"""

import os
import types

import jax
import jax.numpy as jnp

from resa_jax import main, sharding
from resa_jax.cli import run
from resa_jax.training import distributed, loop, programs
from resa_jax.training.networks import init_networks


def noting(stream):
    """The batches, each written down when the loop takes it."""

    class Stream:
        def __enter__(self):
            return self

        def __exit__(self, *exception):
            stream.close()

        def __next__(self):
            batch = next(stream)
            with open(f"{os.environ['TEST_INDICES']}.{jax.process_index()}", "a") as file:
                print(*batch["indices"], file=file)
            return batch

    return Stream()


def in_float64(*arguments):
    trees = init_networks(*arguments)
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), trees)


def devices_in_turn():
    """The first device of each process, then the second of each: for our own mesh alone, since
    JAX's helpers count on a process's devices lying together."""
    by_process = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    return [device for row in zip(*by_process.values(), strict=True) for device in row]


if __name__ == "__main__":
    if "TEST_INDICES" in os.environ:
        batches = loop.batches
        loop.batches = lambda *args, **options: noting(batches(*args, **options))
    if "TEST_FSDP_BYTES" in os.environ:
        sharding._FSDP_MIN_BYTES = int(os.environ["TEST_FSDP_BYTES"])
    if "TEST_DEVICE_ORDER" in os.environ:
        sharding.jax = types.SimpleNamespace(**vars(jax) | {"devices": devices_in_turn})
    if "TEST_HEARTBEAT_SECONDS" in os.environ:
        distributed.HEARTBEAT_TIMEOUT_SECONDS = int(os.environ["TEST_HEARTBEAT_SECONDS"])
    if jax.config.jax_enable_x64:
        programs.init_networks = in_float64
    run(main.main, overrides=True)
