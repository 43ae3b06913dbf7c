"""The estimate of a step's memory, and what is said when it does not fit."""

import os

import jax
import jax.numpy as jnp
import pytest

from resa_jax.config import load_config
from resa_jax.errors import UserError
from resa_jax.sharding import batch_sharding, create_mesh
from resa_jax.training.memory import (
    available_bytes,
    check_memory,
    out_of_memory_explained,
    required_bytes,
)


SMOKE = "configs/digits.py:smoke"


def test_required_bytes_count_a_donated_argument_once():
    x = jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=batch_sharding(create_mesh()))
    share = 4 * 2**20 / 8
    kept = jax.jit(lambda x: x + 1).lower(x).compile()
    donated = jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile()
    assert share * 2 <= required_bytes(kept) < share * 2.1
    assert share <= required_bytes(donated) < share * 1.1


@pytest.mark.skipif(not os.path.exists("/proc/meminfo"), reason="not Linux")
def test_a_cpu_device_has_its_share_of_the_machine():
    with open("/proc/meminfo") as file:
        total = 1024 * int(file.readline().split()[1])
    assert available_bytes(create_mesh()) * 8 == pytest.approx(total, rel=1e-3)


def test_what_cannot_fit_is_refused():
    config = load_config(SMOKE, ["precision=bfloat16"])
    check_memory(2**30, 2**30, config)
    with pytest.raises(UserError) as refusal:
        check_memory(3 * 2**30, 2**30, config)
    assert str(refusal.value) == (
        "A train step needs about 3.00 GiB on each device, which has 1.00 GiB. Try a smaller "
        "config.batch_size, more devices, config.encoder.remat=true, config.micro_batches=2 or "
        "config.sharding=fsdp."
    )


def test_running_out_of_memory_is_explained():
    config = load_config(SMOKE)
    with (
        pytest.raises(UserError, match=r"ran out of memory \(Out of memory allocating 7 bytes\)"),
        out_of_memory_explained(config),
    ):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.\nMore lines."
        )
    with pytest.raises(jax.errors.JaxRuntimeError), out_of_memory_explained(config):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
