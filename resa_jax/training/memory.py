"""Device memory: what a compiled step needs, and a sentence when it cannot fit."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resa_jax.errors import UserError


def required_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes that a program takes on each device at once, its arguments and results included.

    XLA's own estimate; an argument that is donated counts once.
    """
    usage: Any = compiled.memory_analysis()
    return (
        usage.argument_size_in_bytes
        + usage.output_size_in_bytes
        - usage.alias_size_in_bytes
        + usage.temp_size_in_bytes
        + usage.generated_code_size_in_bytes
    )


def available_bytes(mesh: Mesh) -> int:
    """Bytes that a device lets JAX have; for a CPU its share of the machine's memory."""
    device = mesh.local_devices[0]
    stats = device.memory_stats()
    if stats is not None:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(mesh.local_devices)


def check_memory(required: int, available: int, config: ConfigDict) -> None:
    """Refuses a step that the devices cannot hold.

    Args:
      required, available: bytes, as the two functions above give them.
    """
    if required > available:
        raise UserError(
            f"A train step needs about {gibibytes(required)} on each device, which has "
            f"{gibibytes(available)}. {_remedies(config)}"
        )


@contextmanager
def out_of_memory_explained(config: ConfigDict) -> Iterator[None]:
    """Turns a compiler's or a device's RESOURCE_EXHAUSTED in the body into a `UserError`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if not text.startswith("RESOURCE_EXHAUSTED"):
            raise
        reason = text.splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")
        raise UserError(f"A device ran out of memory ({reason}). {_remedies(config)}") from error


def _remedies(config):
    remedies = {
        "a smaller config.batch_size": True,
        "more devices": True,
        "config.precision=bfloat16": config.precision != "bfloat16",
        "config.encoder.remat=true": not config.encoder.remat,
        f"config.micro_batches={2 * config.micro_batches}": config.batch_size > 1,
        "config.sharding=fsdp": config.sharding != "fsdp",
    }
    *some, last = [remedy for remedy, helps in remedies.items() if helps]
    return f"Try {', '.join(some)} or {last}."


def gibibytes(count: int) -> str:
    """As in 1.50 GiB."""
    return f"{count / 2**30:.2f} GiB"
