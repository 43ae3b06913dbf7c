"""LARS against a NumPy loop of solo-learn's rule, and where optax's own LARS differs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resa_jax.training.lars import lars


RATES = np.array([0.0, 0.02, 0.5, 1.5, 0.7, 0.1])
DECAY, ETA = 0.03, 0.02


def parameters():
    rng = np.random.default_rng(0)
    return {
        "kernel": rng.normal(size=(3, 4)),
        "large": 100 * rng.normal(size=(2, 2, 3, 4)),  # a trust ratio that is clipped
        "bias": rng.normal(size=4),
        "gain": rng.normal(size=()),
        "zero": np.zeros((2, 3)),
        "unused": rng.normal(size=(2, 3)),
    }


def gradients(step):
    rng = np.random.default_rng(step + 1)
    result = {k: rng.normal(size=p.shape) for k, p in parameters().items()}
    result["unused"] = np.zeros((2, 3))
    return result


def by_hand(clip, exclude_1d, momentum=0.9):
    """Every parameter after each step, one at a time."""
    params, history = parameters(), []
    buffers = {name: 0.0 for name in params}
    for step, rate in enumerate(RATES):
        params = dict(params)
        for name, g in gradients(step).items():
            p = params[name]
            p_norm, g_norm = np.sqrt((p**2).sum()), np.sqrt((g**2).sum())
            excluded = exclude_1d and p.ndim == 1
            if not excluded and p_norm > 0 and g_norm > 0:
                ratio = ETA * p_norm / (g_norm + DECAY * p_norm + 1e-8)
                if clip:
                    ratio = 1.0 if rate == 0 else min(ratio / rate, 1.0)
                g = ratio * (g + DECAY * p)
            buffers[name] = momentum * buffers[name] + g
            params[name] = p - rate * buffers[name]
        history.append(params)
    return history


def run(optimizer):
    params = {k: jnp.asarray(p) for k, p in parameters().items()}
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(len(RATES)):
        updates, state = update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
        yield params


def schedule(step):
    return jnp.asarray(RATES)[step]


@pytest.mark.parametrize("exclude_1d", [True, False])
@pytest.mark.parametrize("clip", [True, False])
def test_six_steps_with_a_changing_rate(clip, exclude_1d):
    with jax.enable_x64(True):
        optimizer = lars(schedule, DECAY, clip=clip, exclude_1d=exclude_1d)
        ours = list(run(optimizer))
    for params, expected in zip(ours, by_hand(clip, exclude_1d), strict=True):
        for name, p in params.items():
            np.testing.assert_allclose(p, expected[name], rtol=1e-12, err_msg=name)
    # The cases are all met: one ratio is clipped and one is not; without gradient nothing moves.
    np.testing.assert_array_equal(ours[-1]["unused"], parameters()["unused"])
    assert np.abs(ours[-1]["zero"]).max() > 0


def test_a_constant_rate_and_another_momentum():
    with jax.enable_x64(True):
        constant = list(run(lars(0.5, DECAY, momentum=0.5)))
        scheduled = list(run(lars(lambda step: 0.5, DECAY, momentum=0.5)))
        other = list(run(lars(0.5, DECAY, momentum=0.9)))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), constant, scheduled))
    # The first step has no momentum yet.
    np.testing.assert_array_equal(constant[0]["kernel"], other[0]["kernel"])
    assert np.abs(constant[1]["kernel"] - other[1]["kernel"]).max() > 1e-3


def test_optax_has_another_rule():
    with jax.enable_x64(True):
        theirs = list(run(optax.lars(schedule, DECAY, trust_coefficient=ETA, momentum=0.9)))
        ours = list(run(lars(schedule, DECAY, clip=False, exclude_1d=False)))
    for name in ("kernel", "unused"):
        assert np.abs(theirs[-1][name] - ours[-1][name]).max() > 1e-3


def test_float32_in_a_frozen_partition():
    """As the recipes use it: some parameters are left out, and the dtype of the others stays."""
    labels = {k: "frozen" if k == "large" else "trained" for k in parameters()}
    optimizer = optax.partition(
        {"trained": lars(schedule, DECAY), "frozen": optax.set_to_zero()}, labels
    )
    *_, params = run(optimizer)
    expected = by_hand(clip=True, exclude_1d=True)[-1]
    for name, p in params.items():
        assert p.dtype == jnp.float32
        target = parameters()[name] if name == "large" else expected[name]
        np.testing.assert_allclose(p, target, rtol=1e-4, atol=1e-5, err_msg=name)


def test_needs_the_parameters():
    optimizer = lars(0.1, DECAY)
    params = {"kernel": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="pass `params`"):
        optimizer.update(params, optimizer.init(params))
