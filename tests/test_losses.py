"""The losses against plain NumPy statements, in value, gradient and number of devices."""

import functools
import re
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import loss_statements as statement
import numpy as np
import pytest

from resa_jax import losses
from resa_jax.errors import UserError
from resa_jax.methods.whitening import inverse_square_root
from resa_jax.sharding import batch_sharding, create_mesh, replicated


M, K, QUEUE = 16, 6, 24
PERMUTATIONS = np.stack([np.random.default_rng(i).permutation(M) for i in range(2)])


def channel_orders(views, d, slices):
    rng = np.random.default_rng(7)
    orders = [rng.permutation(d) for _ in range(2 * slices * views)]
    return np.reshape(orders, (2, slices, views, d))


class Case(NamedTuple):
    """`loss` and `numpy` take the arrays that learn (x) and those without gradient (y)."""

    loss: callable
    numpy: callable
    learning: int
    fixed: int
    width: int
    gathers: bool = True  # [m, d] arrays travel


def to_jax(argument):
    return jnp.asarray(argument) if isinstance(argument, np.ndarray) else argument


def case_of(name, learning, fixed, width, gathers, *arguments):
    """The case of a loss of one sequence of arrays or, with `fixed`, of two."""
    loss, numpy = getattr(losses, f"{name}_loss"), getattr(statement, name)
    sequences = (lambda x, y: (x, y)) if fixed else (lambda x, y: (x,))
    return Case(
        lambda x, y: loss(*sequences(x, y), *map(to_jax, arguments)),
        lambda x, y: numpy(*sequences(x, y), *arguments),
        *(learning, fixed, width, gathers),
    )


CASES = {
    "simclr": case_of("simclr", 2, 0, 5, True, 0.3),
    "simclr_three_views": case_of("simclr", 3, 0, 5, True, 0.2),
    "byol": case_of("byol", 2, 2, 5, False),
    "byol_multi_crop": case_of("byol", 4, 2, 5, False),
    "simsiam": case_of("simsiam", 2, 2, 5, False),
    "mocov3": case_of("mocov3", 2, 2, 5, True, 0.3),
    "swav": case_of("swav", 2, 2, K, False, 0.2),
    "swav_multi_crop": case_of("swav", 4, 2, K, False, 0.2),
    "dino": Case(
        lambda x, y: losses.dino_loss(x, y[:2], y[2][0], 0.4, 0.3),
        lambda x, y: statement.dino(x, y[:2], y[2][0], 0.4, 0.3),
        *(4, 3, K, False),
    ),
    "barlow_twins": case_of("barlow_twins", 2, 0, 5, False, 0.2, 0.3),
    "barlow_twins_wide": case_of("barlow_twins", 2, 0, 20, True, 0.0051, 0.1),
    "vicreg": case_of("vicreg", 2, 0, 5, False, 2.0, 3.0, 4.0),
    "vicreg_wide": case_of("vicreg", 2, 0, 20, True, 25.0, 25.0, 1.0),
    "wmse": case_of("wmse", 2, 0, 5, True, PERMUTATIONS, 8, 0.0),
    "wmse_three_views": case_of("wmse", 3, 0, 5, True, PERMUTATIONS, 4, 0.2),
    "cw_rgp": case_of("cw_rgp", 2, 0, 20, True, PERMUTATIONS, channel_orders(2, 20, 2), 8, 2, 0.0),
    "cw_rgp_three_views": case_of(
        "cw_rgp", 3, 0, 20, True, PERMUTATIONS, channel_orders(3, 20, 4), 4, 4, 0.1
    ),
    "intl": case_of("intl", 2, 0, 20, True, None, 4),
    "intl_narrow": case_of("intl", 3, 0, 5, False, 0.05, 3),
    "mec": case_of("mec", 2, 2, 20, True, None, 4),
    "mec_narrow": case_of("mec", 3, 2, 5, False, 2.0, 5),
}
every_case = pytest.mark.parametrize("name", CASES)
# More views are more terms of the same kind.
every_kind = pytest.mark.parametrize(
    "name", [name for name in CASES if not name.endswith(("_multi_crop", "_three_views"))]
)


def arrays(case, seed=0):
    """Arrays whose features and views differ in mean and scale; nothing is normalised."""
    rng = np.random.default_rng(seed)
    shape = (case.learning + case.fixed, M, case.width)
    scale = rng.uniform(0.3, 1.2, size=case.width)
    x = scale * rng.normal(size=shape) + rng.normal(size=(shape[0], 1, case.width)) / 3
    return list(x[: case.learning]), list(x[case.learning :])


def value_and_gradients(case, x, y):
    """The loss, and its gradients with respect to all arrays, those without one included."""
    function = jax.jit(jax.value_and_grad(case.loss, argnums=(0, 1)))
    return jax.device_get(function([jnp.asarray(a) for a in x], [jnp.asarray(a) for a in y]))


@functools.cache
def on_one_device(name):
    with jax.enable_x64(True):
        return value_and_gradients(CASES[name], *arrays(CASES[name]))


def slope(case, x, y, view, direction):
    """Derivative of the NumPy statement by central differences."""
    step = 1e-5
    moved = [[*x[:view], x[view] + s * step * direction, *x[view + 1 :]] for s in (1, -1)]
    return (case.numpy(moved[0], y) - case.numpy(moved[1], y)) / (2 * step)


@every_case
def test_value_and_gradients(name):
    case = CASES[name]
    x, y = arrays(case)
    value, (gradients, none) = on_one_device(name)
    assert {a.dtype for a in (value, *gradients)} == {np.dtype("float64")}
    np.testing.assert_allclose(value, case.numpy(x, y), rtol=1e-8)
    for gradient in none:
        np.testing.assert_array_equal(gradient, 0)
    rng = np.random.default_rng(1)
    for view, gradient in enumerate(gradients):
        direction = rng.normal(size=gradient.shape)
        expected = slope(case, x, y, view, direction)
        scale = np.linalg.norm(gradient)
        ours = np.sum(gradient * direction)
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6 * scale)


@every_kind
def test_bfloat16_with_rows_of_zeros(name):
    """Inputs are widened before anything is computed, and no norm of zero divides."""
    case = CASES[name]
    x, y = ([a.astype(jnp.bfloat16) for a in z] for z in arrays(case))
    for array in x + y:
        array[:3] = 0
    value, gradients = value_and_gradients(case, x, y)
    assert value.dtype == jnp.float32
    assert all(np.isfinite(g).all() for z in gradients for g in z)
    if name.startswith("cw_rgp"):
        # In float32 eigh leaves noise in a row of zeros, which is then normalised; without epsilon
        # the statement inverts a singular matrix.
        assert 0 < value < 4
    else:
        exact = case.numpy(*([a.astype(np.float64) for a in z] for z in (x, y)))
        np.testing.assert_allclose(value, exact, rtol=1e-4)


def collectives(hlo):
    """(kind, shape) of everything that a collective gives out."""
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    pattern = rf"= (\(?[a-z0-9]+\[.*?) ({kinds})(?:-start)?\("
    return [
        (kind, tuple(int(n) for n in dims.split(",") if n))
        for shapes, kind in re.findall(pattern, hlo)
        for dims in re.findall(r"[a-z]+[0-9]+\[([\d,]*)\]", shapes)
    ]


@every_kind
def test_one_and_eight_devices(name):
    case = CASES[name]
    mesh = create_mesh()
    with jax.enable_x64(True), jax.set_mesh(mesh):
        rows = batch_sharding(mesh)
        x, y = ([jax.device_put(a, rows) for a in z] for z in arrays(case))
        function = jax.value_and_grad(case.loss, argnums=(0, 1))
        function = jax.jit(function, out_shardings=(replicated(mesh), rows))
        compiled = function.lower(x, y).compile()
        eight = jax.device_get(compiled(x, y))
    for a, b in zip(jax.tree.leaves(on_one_device(name)), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-9 * np.abs(a).max())
    found = collectives(compiled.as_text())
    assert found  # at least the mean over the images
    for kind, shape in found:
        # Neither similarities [m, m] of any number of views, nor scores [m, k], move.
        assert prod(shape) % (M * M), (kind, shape)
        if name != "dino":
            assert prod(shape) % (M * K), (kind, shape)
    gathered = {shape for kind, shape in found if kind == "all-gather"}
    expected = {tuple(sorted((M, case.width)))} if case.gathers else set()
    assert {tuple(sorted(n for n in shape if n > 1)) for shape in gathered} == expected


def scores(rows, seed):
    return np.random.default_rng(seed).uniform(-1, 1, size=(rows, K))


@pytest.mark.parametrize("queue", [0, QUEUE, 5])
def test_swav_assignment(queue):
    batch, earlier = scores(M, 0), scores(queue, 1)

    def total(s, q):
        assignment = losses.swav_assignment(s, q if queue else None, 0.1, 4)
        return jnp.sum(assignment**2), assignment

    with jax.enable_x64(True):
        gradients, ours = jax.jit(jax.grad(total, (0, 1), has_aux=True))(batch, earlier)
    expected = statement.sinkhorn(np.concatenate([batch, earlier]), 0.1, 4)[:M]
    np.testing.assert_allclose(ours, expected, rtol=1e-8, atol=1e-12)
    assert all((np.asarray(g) == 0).all() for g in gradients)


def test_swav_assignment_leaves_rows_on_their_devices():
    mesh = create_mesh()
    with jax.enable_x64(True):
        alone = losses.swav_assignment(jnp.asarray(scores(M, 0)), jnp.asarray(scores(QUEUE, 1)))
        with jax.set_mesh(mesh):
            rows = batch_sharding(mesh)
            inputs = [jax.device_put(scores(n, i), rows) for i, n in enumerate((M, QUEUE))]
            compiled = jax.jit(losses.swav_assignment).lower(*inputs).compile()
            split = compiled(*inputs)
    np.testing.assert_allclose(split, alone, rtol=1e-9, atol=1e-12)
    assert split.sharding.spec[0] == "data"
    found = collectives(compiled.as_text())
    assert {kind for kind, _ in found} == {"all-reduce"}
    assert max(prod(shape) for _, shape in found) <= K


def test_prototype_scores():
    rng = np.random.default_rng(0)
    sides, weight = [rng.normal(size=(M, 5)), rng.normal(size=(K, 5))], scores(M, 1)
    sides[0][0] = sides[1][0] = 0

    def numpy(z, prototypes):
        return np.array([[statement.cos(a, c) for c in prototypes] for a in z])

    def total(z, prototypes):
        cosines = losses.prototype_scores(z, prototypes)
        return jnp.sum(cosines * weight), cosines

    with jax.enable_x64(True):
        gradients, ours = jax.jit(jax.grad(total, (0, 1), has_aux=True))(*sides)
    np.testing.assert_allclose(ours, numpy(*sides), rtol=1e-8, atol=1e-15)
    for side, gradient in enumerate(map(np.asarray, gradients)):
        assert np.isfinite(gradient).all()
        direction = rng.normal(size=gradient.shape)
        direction[0] = 0  # cosines have no derivative where a row is 0
        moved = [list(sides), list(sides)]
        for sign, sides_moved in zip((1, -1), moved, strict=True):
            sides_moved[side] = sides[side] + sign * 1e-5 * direction
        expected = np.sum((numpy(*moved[0]) - numpy(*moved[1])) * weight) / 2e-5
        np.testing.assert_allclose(np.sum(gradient * direction), expected, rtol=1e-6)


def test_dino_center():
    teacher, center = [scores(M, 0), scores(M, 1) + 1], scores(1, 2)[0]
    with jax.enable_x64(True):
        function = lambda c, t: losses.dino_center(c, t, 0.8)
        ours = function(jnp.asarray(center), [jnp.asarray(t) for t in teacher])
        gradients = jax.grad(lambda c, t: jnp.sum(function(c, t)), (0, 1))(center, teacher)
    mean = sum(row for t in teacher for row in t) / (2 * M)
    np.testing.assert_allclose(ours, 0.8 * center + 0.2 * mean, rtol=1e-8)
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(gradients))


def test_inverse_square_root_with_equal_eigenvalues():
    # d (S^-1/2) at S = 4 I is -1/16 dS; through the derivative of eigh it is not a number.
    change = np.random.default_rng(0).normal(size=(K, K))
    change += change.T
    with jax.enable_x64(True):
        result = jax.jvp(inverse_square_root, (4 * jnp.eye(K),), (jnp.asarray(change),))
    value, tangent = result
    np.testing.assert_allclose(value, np.eye(K) / 2, atol=1e-14)
    np.testing.assert_allclose(tangent, -change / 16, atol=1e-14)


def test_mistakes_are_refused():
    z, permutations = [jnp.ones((M, 5))] * 3, jnp.asarray(PERMUTATIONS)
    with pytest.raises(UserError, match="different views, but got 1 and 1"):
        losses.byol_loss(z[:1], z[:1])
    with pytest.raises(UserError, match="different views, but got 1"):
        losses.intl_loss(z[:1])
    for loss in (losses.barlow_twins_loss, losses.vicreg_loss):
        with pytest.raises(UserError, match="exactly two views, but got 3"):
            loss(z)
    with pytest.raises(UserError, match="slice_size is 6, but should divide the batch of 16"):
        losses.wmse_loss(z, permutations, 6)
    with pytest.raises(UserError, match="slice_size is 4, but should be above the 5 features"):
        losses.wmse_loss(z, permutations, 4)
    orders = jnp.asarray(channel_orders(3, 5, 4))
    with pytest.raises(UserError, match="groups is 2, but should divide the 5 channels"):
        losses.cw_rgp_loss(z, permutations, orders, 4, 2)
    with pytest.raises(UserError, match=r"groups is 5, but .* at most 1"):
        losses.cw_rgp_loss(z, permutations, orders, 4, 5)
    with pytest.raises(UserError, match="slice_size is 6, but should divide the batch of 16"):
        losses.cw_rgp_loss(z, permutations, orders, 6, 1)
