"""W-MSE: embeddings whitened over slices of the batch agree between views.

Ermolov et al., "Whitening for Self-Supervised Representation Learning", ICML 2021.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from resa_jax.errors import UserError
from resa_jax.methods.similarity import (
    at_least_float32,
    matmul,
    mean_cosine,
    other_view_pairs,
)
from resa_jax.sharding import gather_rows


def wmse_loss(
    embeddings: Sequence[Float[Array, "m d"]],
    permutations: Int[Array, "iterations m"],
    slice_size: int,
    epsilon: float = 0.0,
) -> Float[Array, ""]:
    """Mean over draws, pairs of views and rows of 2 - 2 cos(W z_u, W z_v).

    The authors' code (htdt/self-supervised: methods/w_mse.py, whitening.py), whose gradient flows
    into *both* views (solo-learn stops it in the second).

    Args:
      embeddings: one array a view.
      permutations: for each draw a permutation of the rows. Its consecutive slices are the same
        images in all views; each slice of each view is whitened on its own.
      slice_size: rows a slice; more than d, or the covariance is singular.
      epsilon: the covariance becomes (1 - epsilon) Sigma + epsilon I.

    Raises:
      UserError: when the batch is not whole slices, or a slice is too small for epsilon = 0.

    Under a mesh the embeddings (d is small) are all-gathered and whitened on every device.
    """
    m, d = embeddings[0].shape
    if m % slice_size:
        raise UserError(
            f"slice_size is {slice_size}, but should divide the batch of {m} images: "
            "the loss whitens whole slices."
        )
    if slice_size <= d and epsilon == 0:
        raise UserError(
            f"slice_size is {slice_size}, but should be above the {d} features of an embedding: "
            "the covariance of fewer images is singular (or set epsilon above 0)."
        )
    slices = permutations.reshape(-1, slice_size)
    whiten = jax.vmap(lambda z: whiten_features(z, epsilon))
    whitened = [whiten(gather_rows(at_least_float32(z))[slices]) for z in embeddings]
    terms = [2 - 2 * mean_cosine(u, v) for u, v in other_view_pairs(whitened, whitened)]
    return jnp.mean(jnp.stack(terms))


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
