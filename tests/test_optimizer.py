"""What training on from given weights asks of the optimiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resa_jax.models.network import frozen_mask
from resa_jax.models.spec import EncoderSpec
from resa_jax.training.optimizer import create_optimizer, factors


def tree(value):
    """A ViT's children, each a matrix and a vector, and a projector's."""
    children = ("blocks_0", "blocks_1", "blocks_10", "cls_token", "norm", "patch_embed")
    leaves = lambda: {"kernel": jnp.full((2, 3), value), "bias": jnp.full(3, value)}
    return {"encoder": {child: leaves() for child in children}, "projector": leaves()}


def updates(steps, gradient=0.5, name="adamw", rate=0.1, decay=0.2, **options):
    """The parameters' changes at each step, from ones."""
    params = tree(1.0)
    frozen = jax.tree.map(lambda _: False, params)
    optimizer = create_optimizer(name, lambda step: rate + 0.01 * step, decay, frozen, **options)
    state, found = optimizer.init(params), []
    for _ in range(steps):
        change, state = optimizer.update(tree(gradient), state, params)
        params = jax.tree.map(jnp.add, params, change)
        found.append(change)
    return found


def test_factors_of_a_vit_and_a_resnet():
    assert factors(tree(0.0)["encoder"], 0.5) == {
        "patch_embed": 1 / 16,
        "cls_token": 1 / 16,
        "blocks_0": 1 / 8,
        "blocks_1": 1 / 4,
        "blocks_10": 1 / 2,
        "norm": 1.0,
    }
    resnet = frozen_mask(EncoderSpec("resnet18", 32, width=8).create())
    found = factors(resnet, 0.5)
    assert found["conv1"] == found["bn1"] == 0.5**9
    assert [found[f"layer{stage}_{n}"] for stage in (1, 4) for n in (0, 1)] == [
        0.5**8,
        0.5**7,
        0.5**2,
        0.5,
    ]


@pytest.mark.parametrize("name", ["adamw", "sgd", "adam"])
def test_layer_decay_multiplies_the_rate(name):
    (plain,), (scaled,) = updates(1, name=name), updates(1, name=name, layer_decay=0.5)
    for child, factor in factors(tree(0.0)["encoder"], 0.5).items():
        for leaf in ("kernel", "bias"):
            expected = factor * plain["encoder"][child][leaf]
            np.testing.assert_allclose(scaled["encoder"][child][leaf], expected, rtol=1e-6)
    np.testing.assert_array_equal(scaled["projector"]["kernel"], plain["projector"]["kernel"])


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_encoder_stands_still_at_first(name):
    plain, waiting = updates(4, name=name), updates(4, name=name, encoder_start=2)
    for step in range(4):
        changed = jax.tree.map(np.asarray, waiting[step]["encoder"])
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(changed)) == (step < 2)
        np.testing.assert_array_equal(
            waiting[step]["projector"]["kernel"], plain[step]["projector"]["kernel"]
        )
    # Then as a new optimiser whose schedule has come as far.
    (fresh,) = updates(1, name=name, rate=0.12)
    first = waiting[2]["encoder"]["norm"]["kernel"]
    np.testing.assert_allclose(first, fresh["encoder"]["norm"]["kernel"], rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd", "adam"])
def test_vectors_need_not_decay(name):
    (change,) = updates(1, gradient=0.0, name=name, decay_vectors=False)
    assert (np.asarray(change["projector"]["bias"]) == 0).all()
    assert (np.asarray(change["projector"]["kernel"]) < 0).all()
    (change,) = updates(1, gradient=0.0, name=name)
    assert (np.asarray(change["projector"]["bias"]) < 0).all()
