"""A batch in parts: the numbers of one pass, with the memory of a part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sharding import BATCH, SIZE, assert_close, programs, recipe, run

from resa_jax.errors import UserError
from resa_jax.methods.interface import create_method
from resa_jax.sharding import check_divisible, create_mesh
from resa_jax.training.networks import create_networks, forward, init_networks


@pytest.mark.slow
def test_three_steps_are_those_of_one_pass():
    """Without BatchNorm; 40 rows on 4 devices, in parts of 2."""
    config = recipe("vit_s16")
    with jax.enable_x64(True):
        whole, whole_losses = run(config, 4, steps=3)
        config.micro_batches = 5
        parts, losses = run(config, 4, steps=3)
    np.testing.assert_allclose(losses, whole_losses, rtol=1e-9)
    assert_close(parts, whole, 1e-9)


@pytest.mark.slow
def test_statistics_are_those_of_the_parts_one_after_the_other():
    config = recipe("resnet18_small")
    method = create_method(config.method)
    networks = create_networks(config, method)
    params, stats = init_networks(config, method, jax.random.key(0), networks.width)
    rng = np.random.default_rng(0)
    views = [jnp.asarray(rng.normal(size=(BATCH, SIZE, SIZE, 3)), jnp.float32) for _ in range(2)]
    in_two = jax.jit(lambda *a: forward(networks.online, *a, micro_batches=2))
    both, moved = in_two(params, stats, views)
    half = BATCH // 2
    step = jax.jit(lambda *a: forward(networks.online, *a))
    first, between = step(params, stats, [view[:half] for view in views])
    second, after = step(params, between, [view[half:] for view in views])
    assert_close(moved, after, 1e-5)
    expected = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first[:3], second[:3])
    assert_close(both[:3], expected, 1e-4)


@pytest.mark.slow
def test_memory_is_that_of_a_part():
    config = recipe("vit_s16")
    config.encoder.depth = 4
    sizes = {}
    for count in (1, 8):
        config.micro_batches = count
        state, train_step = programs(config)
        views = [jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), jnp.float32)] * 2
        compiled = jax.jit(train_step, donate_argnums=0).lower(state, views).compile()
        sizes[count] = compiled.memory_analysis().temp_size_in_bytes
    assert sizes[8] < 0.6 * sizes[1]


def test_what_does_not_divide_is_refused():
    mesh = create_mesh(jax.devices()[:4])
    check_divisible(40, mesh, 5)
    with pytest.raises(UserError, match=r"the 4 devices in 6 micro-batches each .* 24 or 48 would"):
        check_divisible(40, mesh, 6)
