"""The assignment, the loss and the schedule against NumPy statements of their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resa_jax import resa_loss, sinkhorn_knopp, warmup_cosine
from resa_jax.methods.similarity import cosine_similarity


@pytest.fixture(params=["float32", "float64"])
def precision(request):
    """The dtype to compute in, and the tolerance that it must meet."""
    with jax.enable_x64(request.param == "float64"):
        yield np.dtype(request.param), {"float32": 1e-5, "float64": 1e-10}[request.param]


def numpy_sinkhorn(scores, epsilon=0.05, num_iterations=3):
    """The authors' code, statement by statement, with its transposes."""
    q = np.exp(scores / epsilon).T
    q /= q.sum()
    num_rows, num_columns = q.shape
    for _ in range(num_iterations):
        q *= (1 / num_rows / q.sum(1))[:, None]
        q *= (1 / num_columns / q.sum(0))[None]
    return (q / q.sum(0, keepdims=True)).T


def numpy_cross_entropy(x, y, assignment, temperature, symmetric):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    y = y / np.linalg.norm(y, axis=1, keepdims=True)

    def rows(logits, targets):
        log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return -(targets * log_softmax).sum(1).mean()

    logits = x @ y.T / temperature
    if symmetric:
        return (rows(logits, assignment) + rows(logits.T, assignment.T)) / 2
    return rows(logits, assignment)


def numpy_resa_loss(embeddings, targets, assignment, temperature=0.4, symmetric=False):
    return np.mean(
        [
            numpy_cross_entropy(z, t, assignment, temperature, symmetric)
            for q, z in enumerate(embeddings)
            for v, t in enumerate(targets)
            if q != v
        ]
    )


def numerical_gradient(function, x, step=1e-6):
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        shift = np.zeros_like(x)
        shift[index] = step
        gradient[index] = (function(x + shift) - function(x - shift)) / (2 * step)
    return gradient


def cosines(seed, m=48, d=16):
    rng = np.random.default_rng(seed)
    h, h_m = rng.normal(size=(2, m, d)) + rng.normal(size=(1, m, d))
    h /= np.linalg.norm(h, axis=1, keepdims=True)
    h_m /= np.linalg.norm(h_m, axis=1, keepdims=True)
    return h @ h_m.T


def test_sinkhorn_equals_the_authors_algorithm(precision):
    dtype, tolerance = precision
    scores = cosines(0)
    result = sinkhorn_knopp(jnp.asarray(scores, dtype))
    assert result.dtype == dtype
    np.testing.assert_allclose(result, numpy_sinkhorn(scores), rtol=10 * tolerance, atol=tolerance)
    np.testing.assert_allclose(result.sum(1), 1, atol=tolerance)
    # Columns come out only nearly balanced, which tells the rows' turn from the columns'.
    assert np.abs(np.asarray(result.sum(0)) - 1).max() > 1e-3


@pytest.mark.parametrize(("epsilon", "num_iterations"), [(0.5, 1), (0.1, 7)])
def test_sinkhorn_options(epsilon, num_iterations):
    with jax.enable_x64(True):
        scores = cosines(1)
        result = sinkhorn_knopp(jnp.asarray(scores), epsilon, num_iterations)
        expected = numpy_sinkhorn(scores, epsilon, num_iterations)
        np.testing.assert_allclose(result, expected, rtol=1e-10)


def test_sinkhorn_is_stable():
    m = 16
    np.testing.assert_allclose(sinkhorn_knopp(jnp.ones((m, m))), np.full((m, m), 1 / m), rtol=1e-6)
    identical = jnp.broadcast_to(jnp.asarray(cosines(2, m)[0], jnp.float32), (m, m))
    np.testing.assert_allclose(sinkhorn_knopp(identical), np.full((m, m), 1 / m), rtol=1e-5)
    # exp(score / epsilon) of these would overflow, or leave whole rows and columns empty.
    far = jnp.asarray(np.random.default_rng(3).normal(size=(m, m)) * 100, jnp.float32)
    result = sinkhorn_knopp(far)
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result.sum(1), 1, rtol=1e-5)


def test_low_precision_inputs_are_computed_in_float32():
    scores = jnp.asarray(cosines(4), jnp.bfloat16)
    assert sinkhorn_knopp(scores).dtype == jnp.float32
    expected = sinkhorn_knopp(scores.astype(jnp.float32))
    np.testing.assert_array_equal(sinkhorn_knopp(scores), expected)
    z = jax.random.normal(jax.random.key(0), (8, 4), jnp.bfloat16)
    assert cosine_similarity(z, z).dtype == jnp.float32
    assert resa_loss([z, z], [z, z], jnp.eye(8)).dtype == jnp.float32


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("num_views", [2, 5])
def test_loss_and_gradient(precision, num_views, symmetric):
    dtype, tolerance = precision
    rng = np.random.default_rng(5)
    embeddings = list(rng.normal(size=(num_views, 6, 4)))
    targets = list(rng.normal(size=(2, 6, 4)))
    assignment = numpy_sinkhorn(cosines(6, m=6))

    def loss(*z):
        z = [jnp.asarray(x, dtype) for x in z]
        t = [jnp.asarray(x, dtype) for x in targets]
        return resa_loss(z, t, jnp.asarray(assignment, dtype), symmetric=symmetric)

    expected = numpy_resa_loss(embeddings, targets, assignment, symmetric=symmetric)
    np.testing.assert_allclose(loss(*embeddings), expected, rtol=tolerance)

    arguments = [jnp.asarray(z, dtype) for z in embeddings]
    gradients = jax.grad(loss, argnums=tuple(range(num_views)))(*arguments)
    for n, gradient in enumerate(gradients):

        def loss_of(z, n=n):
            changed = [*embeddings[:n], z, *embeddings[n + 1 :]]
            return numpy_resa_loss(changed, targets, assignment, symmetric=symmetric)

        expected = numerical_gradient(loss_of, embeddings[n])
        # Central differences are good to about 1e-9 themselves.
        np.testing.assert_allclose(gradient, expected, atol=max(tolerance, 1e-8))


def test_no_gradient_through_targets_and_assignment():
    z = jax.random.normal(jax.random.key(0), (3, 8, 4))

    def loss(target, scores):
        return resa_loss([z[0], z[1]], [target, z[2]], sinkhorn_knopp(scores))

    gradients = jax.grad(loss, argnums=(0, 1))(z[2], z[0] @ z[1].T)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)
    plain = jax.grad(lambda a: resa_loss([z[0], z[1]], [z[1], z[2]], a))(jnp.eye(8))
    np.testing.assert_array_equal(plain, 0)
    of_scores = jax.grad(lambda s: jnp.sum(sinkhorn_knopp(s) ** 2))(z[0] @ z[1].T)
    np.testing.assert_array_equal(of_scores, 0)


def test_zero_vectors_are_finite():
    z = jnp.zeros((8, 4))
    loss, gradient = jax.value_and_grad(lambda x: resa_loss([x, x], [z, z], jnp.eye(8)))(z)
    np.testing.assert_allclose(loss, np.log(8), rtol=1e-6)
    assert np.isfinite(gradient).all()


def numpy_schedule(peak, floor, total, warmup):
    """The authors' arrays, one entry an iteration."""
    steps = np.arange(total - warmup)
    cosine = floor + 0.5 * (peak - floor) * (1 + np.cos(np.pi * steps / len(steps)))
    return np.concatenate([np.linspace(0, peak, warmup), cosine])


@pytest.mark.parametrize(
    ("peak", "floor", "total", "warmup"),
    [(0.3, 0.03, 100, 10), (0.5, 0.05, 7, 1), (2.0, 1e-4, 50, 0), (0.996, 1.0, 400, 0)],
)
def test_schedule(precision, peak, floor, total, warmup):
    dtype, tolerance = precision
    schedule = warmup_cosine(peak, floor, total, warmup)
    expected = numpy_schedule(peak, floor, total, warmup)
    values = schedule(jnp.arange(total))
    assert values.dtype == dtype
    np.testing.assert_allclose(values, expected, rtol=tolerance, atol=tolerance * peak)
    np.testing.assert_allclose(schedule(total + 5), floor, rtol=1e-6)
    np.testing.assert_allclose(schedule(3), expected[3], rtol=1e-6)
