"""Barlow Twins: the cross-correlation of two views' features becomes the identity.

Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", ICML 2021.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resa_jax.methods.similarity import at_least_float32, off_diagonal_square_sum, two_views


def barlow_twins_loss(
    embeddings: Sequence[Float[Array, "m d"]],
    off_diagonal_weight: float = 0.0051,
    scale: float = 0.1,
) -> Float[Array, ""]:
    """scale * (sum_i (C_ii - 1)^2 + lambda sum_{i != j} C_ij^2), C = BN(z_1)^T BN(z_2) / m.

    Equations 1 and 2 of the paper (barlowtwins/main.py), with solo-learn's scale.

    BN standardises each *feature* over the global batch as a BatchNorm without parameters: biased
    variance plus 1e-5. Rows are not normalised. Gradients flow into both views.

    Args:
      embeddings: of exactly two views.
      off_diagonal_weight: lambda.
      scale: of the whole loss: 0.1 in solo-learn's CIFAR recipes, 1 in the authors' code.
    """
    first, second = (_standardize(at_least_float32(z)) for z in two_views(embeddings))
    m = len(first)
    diagonal = jnp.sum(first * second, axis=0) / m
    off_diagonal = off_diagonal_square_sum(first, second) / m**2
    return scale * (jnp.sum(jnp.square(diagonal - 1)) + off_diagonal_weight * off_diagonal)


def _standardize(z):
    centered = z - jnp.mean(z, axis=0)
    return centered * jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=0) + 1e-5)
