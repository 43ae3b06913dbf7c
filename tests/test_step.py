"""The train step against one stated in NumPy, in float64, with linear networks.

Nothing of the method is taken from the code under test: the assignment, the cross-entropy, its
gradient, both optimisers and both schedules are written out here. The EMA network starts elsewhere,
the rates change from step to step, and the views differ, so that an exchange of any two shows.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resa_jax.methods.resa import ReSA
from resa_jax.models.layers import Frozen
from resa_jax.models.network import Network, frozen_mask, split
from resa_jax.training.networks import Networks
from resa_jax.training.optimizer import create_optimizer
from resa_jax.training.step import create_train_state, make_train_step


STEPS, BATCH, FEATURES, DIMENSIONS = 4, 6, 5, 4
RATES = (0.0, 0.7, 1.1, 0.4)  # of learning, by step
EMA_RATES = (0.3, 0.25, 0.15, 0.1)  # 1 minus the coefficient, by step
DECAY, TEMPERATURE, EPSILON = 0.05, 0.4, 0.1


class LinearEncoder(nnx.Module):
    """The mean over the pixels times a frozen matrix, times a trained one."""

    family, num_features, dtype = "convnet", FEATURES, None

    def __init__(self):
        self.stem = Frozen(jnp.zeros((3, 3)))
        self.kernel = nnx.Param(jnp.zeros((3, FEATURES)))

    def __call__(self, x, *, train):
        return x.mean((1, 2)) @ self.stem[...] @ self.kernel[...]


class Linear(nnx.Module):
    """A head: one matrix."""

    def __init__(self, rows):
        self.kernel = nnx.Param(jnp.zeros((rows, DIMENSIONS)))

    def __call__(self, x, *, train):
        return x @ self.kernel[...]


def structures():
    network = Network(LinearEncoder(), Linear(FEATURES), Linear(DIMENSIONS))
    frozen, online = frozen_mask(network), split(network)[0]
    network.predictor = None
    return Networks(online, split(network)[0], DIMENSIONS, frozen)


def weights(seed, *, predictor):
    rng = np.random.default_rng(seed)
    parts = {"stem": (3, 3), "encoder": (3, FEATURES), "projector": (FEATURES, DIMENSIONS)}
    parts |= {"predictor": (DIMENSIONS, DIMENSIONS)} if predictor else {}
    return {name: rng.normal(size=shape) for name, shape in parts.items()}


def to_tree(w):
    heads = {name: {"kernel": w[name]} for name in ("projector", "predictor") if name in w}
    tree = {"encoder": {"stem": w["stem"], "kernel": w["encoder"]}} | heads
    return jax.tree.map(jnp.asarray, tree)


def views_of(step, sizes):
    rng = np.random.default_rng(100 + step)
    scene = rng.normal(size=(BATCH, 1, 1, 3))
    return [scene + 0.7 * rng.normal(size=(BATCH, size, size, 3)) for size in sizes]


# --- The statement ---------------------------------------------------------------------------


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def assign(h, h_ema):
    """Sinkhorn-Knopp on the transposed similarities, so that it ends with rows that sum to 1."""
    q = np.exp(unit(h) @ unit(h_ema).T / EPSILON).T  # [of the EMA, of the image]
    for _ in range(3):
        q = q / q.sum(1, keepdims=True)
        q = q / q.sum(0, keepdims=True)
    return q.T


def loss_and_gradient(x, y, assignment, symmetric):
    """Cross-entropy of x's similarities to the constants y, and its gradient to x."""
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    logits = unit(x) @ unit(y).T / TEMPERATURE
    rows = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    columns = np.exp(logits) / np.exp(logits).sum(0, keepdims=True)
    loss = -(assignment * np.log(rows)).sum() / BATCH
    slope = (rows * assignment.sum(1, keepdims=True) - assignment) / BATCH
    if symmetric:
        loss = (loss - (assignment * np.log(columns)).sum() / BATCH) / 2
        other = (columns * assignment.sum(0, keepdims=True) - assignment) / BATCH
        slope = (slope + other) / 2
    to_unit = slope @ unit(y) / TEMPERATURE
    return loss, (to_unit - unit(x) * (unit(x) * to_unit).sum(1, keepdims=True)) / norm


def numpy_step(w, w_ema, moments, step, views, *, optimizer, symmetric, assignment):
    """One step on dicts of matrices, changed in place; the loss."""
    for name in w_ema:  # the EMA first takes in the parameters from before this step
        w_ema[name] = (1 - EMA_RATES[step]) * w_ema[name] + EMA_RATES[step] * w[name]
    pooled = [view.mean((1, 2)) for view in views]
    h = [x @ w["stem"] @ w["encoder"] for x in pooled]
    z = [x @ w["projector"] for x in h]
    p = [x @ w["predictor"] for x in z]
    h_ema = [x @ w_ema["stem"] @ w_ema["encoder"] for x in pooled[:2]]
    z_ema = [x @ w_ema["projector"] for x in h_ema]
    sides = {
        "encoding": (h[0], h_ema[0]),
        "embedding": (p[0], z_ema[0]),
        "momentum": (h_ema[0], h_ema[0]),
    }
    target = assign(*sides[assignment])
    pairs = [(q, v) for q in range(len(views)) for v in range(2) if q != v]
    gradients = {name: np.zeros_like(matrix) for name, matrix in w.items()}
    total = 0.0
    for q, v in pairs:
        loss, slope = loss_and_gradient(p[q], z_ema[v], target, symmetric)
        total += loss / len(pairs)
        slope = slope / len(pairs)
        gradients["predictor"] += z[q].T @ slope
        slope = slope @ w["predictor"].T
        gradients["projector"] += h[q].T @ slope
        slope = slope @ w["projector"].T
        gradients["encoder"] += (pooled[q] @ w["stem"]).T @ slope
    for name in ("encoder", "projector", "predictor"):  # the stem is frozen
        update(w, moments, name, gradients[name], step, optimizer)
    return total


def update(w, moments, name, gradient, step, optimizer):
    first, second = moments.setdefault(name, [0.0, 0.0])
    if optimizer == "sgd":
        moments[name][0] = first = 0.9 * first + gradient + DECAY * w[name]
        w[name] = w[name] - RATES[step] * first
        return
    first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
    moments[name] = [first, second]
    ratio = first / (1 - 0.9 ** (step + 1))
    ratio = ratio / (np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8)
    w[name] = w[name] - RATES[step] * (ratio + DECAY * w[name])


# --- The comparison --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "symmetric", "assignment", "sizes"),
    [
        ("sgd", False, "encoding", (2, 2)),
        ("sgd", False, "encoding", (2, 2, 1, 1)),
        ("adamw", False, "encoding", (2, 2)),
        ("sgd", True, "encoding", (2, 2, 1)),
        ("sgd", False, "embedding", (2, 2)),
        ("sgd", False, "momentum", (2, 2)),
    ],
)
def test_steps(optimizer, symmetric, assignment, sizes):
    w, w_ema = weights(0, predictor=True), weights(1, predictor=False)
    with jax.enable_x64(True):
        networks = structures()
        rates, ema_rates = jnp.asarray(RATES), jnp.asarray(EMA_RATES)
        transform = create_optimizer(optimizer, lambda s: rates[s], DECAY, networks.frozen)
        method = ReSA(
            temperature=TEMPERATURE, epsilon=EPSILON, symmetric=symmetric, assignment=assignment
        )
        train_step = jax.jit(
            make_train_step(
                method,
                networks,
                transform,
                lambda s: rates[s],
                lambda s: ema_rates[s],
                steps_per_epoch=2,
                seed=0,
            )
        )
        state = create_train_state(to_tree(w), {}, {}, transform, ema=True)
        state = dataclasses.replace(state, ema_params=to_tree(w_ema))
        moments = {}
        for step in range(STEPS):
            views = views_of(step, sizes)
            state, metrics = train_step(state, [jnp.asarray(view) for view in views])
            expected = numpy_step(
                w,
                w_ema,
                moments,
                step,
                views,
                optimizer=optimizer,
                symmetric=symmetric,
                assignment=assignment,
            )
            np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-10)
            np.testing.assert_allclose(metrics["learning_rate"], RATES[step])
            for ours, theirs in ((state.params, w), (state.ema_params, w_ema)):
                jax.tree.map(
                    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12),
                    ours,
                    to_tree(theirs),
                )
    assert int(state.step) == STEPS


def test_without_a_momentum_network_both_sides_learn():
    """Table 11: the assignment is of the online network with itself, each pair of views once."""
    w = weights(0, predictor=True)
    with jax.enable_x64(True):
        networks = dataclasses.replace(structures(), momentum=None)
        rate = lambda step: 0.3
        transform = create_optimizer("sgd", rate, 0.0, networks.frozen)
        method = ReSA(temperature=TEMPERATURE, epsilon=EPSILON, momentum_network=False)
        train_step = make_train_step(
            method, networks, transform, rate, rate, steps_per_epoch=1, seed=0
        )
        state = create_train_state(to_tree(w), {}, {}, transform, ema=False)
        views = views_of(0, (2, 2))
        after, metrics = jax.jit(train_step)(state, [jnp.asarray(view) for view in views])
    h = [view.mean((1, 2)) @ w["stem"] @ w["encoder"] for view in views]
    p = [x @ w["projector"] @ w["predictor"] for x in h]
    target = assign(h[0], h[0])
    loss, to_first = loss_and_gradient(p[0], p[1], target, symmetric=True)
    # The logits are transposed when the sides change places, and so is the target.
    _, to_second = loss_and_gradient(p[1], p[0], target.T, symmetric=True)
    z = [x @ w["projector"] for x in h]
    gradient = z[0].T @ to_first + z[1].T @ to_second
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-10)
    expected = w["predictor"] - 0.3 * gradient
    np.testing.assert_allclose(after.params["predictor"]["kernel"], expected, rtol=1e-8)
    assert after.ema_params == {}
