"""Whitening, of features and of samples, and how ill-conditioned it is."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from resa_jax.methods.similarity import at_least_float32, matmul


def whiten_features(z: Float[Array, "n d"], epsilon: float) -> Float[Array, "n d"]:
    """Rows L^-1 (z - mean) with L L^T the covariance (over n - 1), L lower triangular.

    L^-1, not its transpose and not Sigma^-1/2: all three whiten, to different rotations.
    """
    n, d = z.shape
    centered = z - jnp.mean(z, axis=0)
    covariance = matmul(centered.T, centered) / (n - 1)
    covariance = (1 - epsilon) * covariance + epsilon * jnp.eye(d, dtype=z.dtype)
    lower = jnp.linalg.cholesky(covariance)
    return jax.scipy.linalg.solve_triangular(lower, centered.T, lower=True).T


def condition(z: Float[Array, "m d"]) -> Float[Array, ""]:
    """Largest over smallest eigenvalue of the covariance of the features, at most 1 / epsilon."""
    centered = at_least_float32(z) - jnp.mean(at_least_float32(z), axis=0)
    values = jnp.linalg.eigvalsh(matmul(centered.T, centered))
    return values[-1] / jnp.maximum(values[0], values[-1] * jnp.finfo(values.dtype).eps)


def whiten_samples(
    z: Float[Array, "n d"], order: Int[Array, "d"], groups: int, epsilon: float
) -> Float[Array, "n d"]:
    """Sigma_g^-1/2 X_g in each group g of the channels in this order; back in their own order.

    Rows are centred over *all* channels, before they are grouped; Sigma_g = X_g X_g^T is the
    [n, n] covariance of the samples over d / groups - 1.
    """
    n, d = z.shape
    centered = z - jnp.mean(z, axis=1, keepdims=True)
    grouped = centered[:, order].reshape(n, groups, d // groups).swapaxes(0, 1)
    covariance = matmul(grouped, grouped.swapaxes(1, 2)) / (d // groups - 1)
    covariance = (1 - epsilon) * covariance + epsilon * jnp.eye(n, dtype=z.dtype)
    whitened = matmul(inverse_square_root(covariance), grouped)
    return whitened.swapaxes(0, 1).reshape(n, d)[:, jnp.argsort(order)]


@jax.custom_jvp
def inverse_square_root(matrix: Float[Array, "*g n n"]) -> Float[Array, "*g n n"]:
    """Symmetric matrix^-1/2 (ZCA), with a derivative that near equal eigenvalues leave exact.

    The derivative of eigh divides by differences of eigenvalues. Here they cancel: with
    eigenvectors U, U^T dW U = -(U^T dS U)_ij / (r_i r_j (r_i + r_j)), r the roots of the
    eigenvalues. Eigenvalues below the rounding of the largest count as that rounding, so a sample
    of zeros gives zeros.
    """
    vectors, roots = _eigenvectors_and_roots(matrix)
    return matmul(vectors / roots[..., None, :], vectors.mT)


@inverse_square_root.defjvp
def _inverse_square_root_jvp(primals, tangents):
    (matrix,), (tangent,) = primals, tangents
    vectors, roots = _eigenvectors_and_roots(matrix)
    rows, columns = roots[..., :, None], roots[..., None, :]
    inner = matmul(matmul(vectors.mT, tangent), vectors) / (rows * columns * (rows + columns))
    result = matmul(vectors / roots[..., None, :], vectors.mT)
    return result, -matmul(matmul(vectors, inner), vectors.mT)


def _eigenvectors_and_roots(matrix):
    values, vectors = jnp.linalg.eigh(matrix)
    floor = jnp.maximum(values[..., -1:] * jnp.finfo(values.dtype).eps, 1e-24)
    return vectors, jnp.sqrt(jnp.maximum(values, floor))
