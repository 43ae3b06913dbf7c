"""The command `resa_jax.main`, for tests with several processes: it also notes what it trained on.

Environment:
  TEST_INDICES: each process appends "STEP INDICES" of its part of every batch to TEST_INDICES.ID.
  TEST_FSDP_BYTES: the size from which fsdp splits a tensor, since those of the tests are small.
  TEST_DEVICE_ORDER: `jax.devices` lists the devices of these processes, as "0 1 0 1", to our mesh.
  TEST_HEARTBEAT_SECONDS: how long a process may be silent.
  JAX_ENABLE_X64: the networks start, and so stay, in float64.
"""

import os
import types
from collections import defaultdict

import jax
import jax.numpy as jnp

from resa_jax import main, sharding
from resa_jax.cli import run
from resa_jax.processes import distributed
from resa_jax.training import loop, programs
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


def devices_in_order():
    """For our own mesh alone, since JAX's helpers count on a process's devices lying together."""
    by_process = defaultdict(list)
    for device in jax.devices():
        by_process[device.process_index].append(device)
    return [by_process[int(n)].pop(0) for n in os.environ["TEST_DEVICE_ORDER"].split()]


if __name__ == "__main__":
    if "TEST_INDICES" in os.environ:
        batches = loop.batches
        loop.batches = lambda *args, **options: noting(batches(*args, **options))
    if "TEST_FSDP_BYTES" in os.environ:
        sharding._FSDP_MIN_BYTES = int(os.environ["TEST_FSDP_BYTES"])
    if "TEST_DEVICE_ORDER" in os.environ:
        sharding.jax = types.SimpleNamespace(**vars(jax) | {"devices": devices_in_order})
    if "TEST_HEARTBEAT_SECONDS" in os.environ:
        distributed.HEARTBEAT_TIMEOUT_SECONDS = int(os.environ["TEST_HEARTBEAT_SECONDS"])
    if jax.config.jax_enable_x64:
        programs.init_networks = in_float64
    run(main.main, overrides=True)
