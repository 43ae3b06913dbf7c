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


@pytest.mark.parametrize("waits", [0, 2])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_follows_its_schedule(name, waits):
    """Against the rules' equations with no gradient; for a child that waits too, as late as all."""
    decay = lambda step: 0.1 + 0.05 * step
    found = updates(4, gradient=0.0, name=name, decay=decay, encoder_start=waits)
    value, momentum = 1.0, 0.0
    for step, change in enumerate(found):
        rate, decayed = 0.1 + 0.01 * step, decay(step) * value
        momentum = decayed + (0.9 * momentum if name == "sgd" else 0)
        expected = -rate * momentum if step >= waits else 0.0
        if step < waits:
            momentum = 0.0
        np.testing.assert_allclose(change["encoder"]["norm"]["kernel"], expected, rtol=1e-5)
        value += expected


def test_each_parameters_gradient_is_shortened():
    """SGD's first step is the gradient times the rate; a matrix here has 6 elements, a vector 3."""
    for gradient, bound in ((0.5, 1.0), (0.5, 100.0), (2.0, 1.0)):
        (change,) = updates(1, gradient=gradient, name="sgd", decay=0.0, max_norm=bound)
        for leaf, count in (("kernel", 6), ("bias", 3)):
            norm = gradient * np.sqrt(count)
            expected = -0.1 * gradient * min(1, bound / norm)
            np.testing.assert_allclose(change["projector"][leaf], expected, rtol=1e-5)
