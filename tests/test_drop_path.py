"""Drop path: which branches are left out, what that gives, and that no mesh changes it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from test_sharding import BATCH, SIZE, assert_close, recipe, run

from resa_jax.errors import UserError
from resa_jax.methods.interface import create_method
from resa_jax.models.encoders import create_encoder
from resa_jax.training.networks import create_networks, draw_branches, forward, init_networks
from resa_jax.training.step import create_train_state, make_objective


def test_each_branch_of_each_image_is_left_out_as_often_as_was_asked():
    rates = (0.0, 0.1, 0.4)
    drawn = np.asarray(draw_branches(rates, jax.random.key(0), 4000))
    assert drawn.shape == (4000, 3, 2)
    for block, rate in enumerate(rates):
        values = drawn[:, block]
        np.testing.assert_allclose(np.unique(values), [0, 1 / (1 - rate)][rate == 0 :], rtol=1e-6)
        deviation = np.sqrt(rate * (1 - rate) / 4000)
        np.testing.assert_allclose((values == 0).mean(axis=0), rate, atol=4 * deviation)
    together = (drawn[:, 2] == 0).all(axis=1).mean()
    np.testing.assert_allclose(together, 0.4**2, atol=4 * np.sqrt(0.16 * 0.84 / 4000))


@pytest.mark.parametrize("name", ["vit_s16", "deit3_s16"])
def test_a_block_without_its_branches_is_not_there(name):
    sizes = {"image_size": 32, "width": 24 if name == "vit_s16" else 64}
    encoder = create_encoder(name, depth=3, rngs=nnx.Rngs(0), **sizes)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 32, 32, 3)), jnp.float32)
    plain = encoder(images, train=True)
    np.testing.assert_array_equal(encoder(images, jnp.ones((4, 3, 2)), train=True), plain)

    branches = jnp.ones((4, 3, 2)).at[1::2, 1].set(0)
    dropped = encoder(images, branches, train=True)
    encoder.blocks_1, encoder.depth = encoder.blocks_2, 2
    shorter = encoder(images, train=True)
    np.testing.assert_allclose(dropped[1::2], shorter[1::2], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(dropped[::2], plain[::2])
    assert np.abs(dropped[1] - plain[1]).max() > 1e-3


def test_what_is_kept_counts_for_what_is_not():
    """A branch times 2 moves the tokens by twice as much."""
    encoder = create_encoder("vit_s16", image_size=32, width=24, depth=1, rngs=nnx.Rngs(0))
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 24)), jnp.float32)
    block, none = encoder.blocks_0, jnp.zeros((2, 2))
    moved = [block(tokens, None, none.at[:, 0].set(w), train=True) - tokens for w in (0, 1, 2)]
    assert not moved[0].any()
    np.testing.assert_allclose(moved[2], 2 * moved[1], rtol=1e-4, atol=1e-6)


def with_drop_path():
    config = recipe("vit_s16")
    config.encoder.update({"drop_path": 0.5, "depth": 3})
    return config


@pytest.mark.slow
def test_a_step_is_the_same_on_one_device_and_in_parts_on_four():
    config = with_drop_path()
    with jax.enable_x64(True):
        one, losses = run(config, 1, steps=2)
        config.micro_batches = 2
        parts, in_parts = run(config, 4, steps=2)
    np.testing.assert_allclose(in_parts, losses, rtol=1e-9)
    assert_close(parts, one, 1e-9)


def test_each_view_of_the_online_network_alone_has_its_own():
    config = with_drop_path()
    method = create_method(config.method)
    networks = create_networks(config, method)
    assert networks.drop_path == (0.0, 0.25, 0.5)
    params, stats = init_networks(config, method, jax.random.key(0), networks.width)
    ema = {name: child for name, child in params.items() if name != "predictor"}

    class Shown(type(method)):
        def __call__(self, online, target, buffers, moment):
            return 0.0, buffers, {"online": online.encodings, "target": target.encodings}

    images = jax.random.normal(jax.random.key(1), (BATCH, SIZE, SIZE, 3))
    state = create_train_state(params, stats, {}, optax.identity(), ema=True)
    objective = make_objective(Shown(**dataclasses.asdict(method)), networks, 10, seed=0)
    _, (*_, found) = objective(params, state, ema, [images] * 2)
    plain, _ = forward(networks.online, params, stats, [images])
    differs = [np.abs(x - plain.encodings[0]).max(axis=1) for x in found["online"]]
    assert min(map(np.min, differs)) > 1e-4  # what is kept is larger
    assert np.abs(found["online"][0] - found["online"][1]).max() > 1e-2
    for target in found["target"]:
        np.testing.assert_allclose(target, plain.encodings[0], rtol=1e-4, atol=1e-5)


def test_a_resnet_is_refused():
    config = recipe("resnet18_small")
    config.encoder.drop_path = 0.1
    with pytest.raises(UserError, match=r"encoder.drop_path is 0.1, but resnet18_small is no ViT"):
        create_networks(config, create_method(config.method))
