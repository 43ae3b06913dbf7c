"""Barlow Twins: the cross-correlation of two views' features becomes the identity.

Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", ICML 2021.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resa_jax.fields import field, not_negative, positive
from resa_jax.methods.health import agreement
from resa_jax.methods.interface import Heads, Method, Moment, Outputs
from resa_jax.methods.similarity import at_least_float32, off_diagonal_square_sum, two_views
from resa_jax.models.heads import MLP


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


@dataclass(frozen=True)
class BarlowTwins(Method):
    """One network; the settings are solo-learn's for CIFAR (Table 1)."""

    off_diagonal_weight: float = field(0.0051, not_negative(1e6), "of the off-diagonal entries")
    scale: float = field(0.1, positive(1e6), "of the whole loss")
    hidden_size: int = field(2048, positive(1e6), "width of the projector's hidden layers")
    output_size: int = field(2048, positive(1e6), "dimensions of the embedding")

    def heads(self, encoder, rngs) -> Heads:
        """Three linear layers, with BatchNorm behind the hidden ones."""
        sizes = encoder.num_features, self.hidden_size, self.hidden_size, self.output_size
        return Heads(MLP(sizes, dtype=encoder.dtype, rngs=rngs))

    def __call__(self, online: Outputs, target: Outputs | None, buffers: dict, moment: Moment):
        """See `Method`. Metrics: `agreement` of the views."""
        with jax.named_scope("loss"):
            loss = barlow_twins_loss(online.embeddings, self.off_diagonal_weight, self.scale)
        return loss, buffers, agreement(*online.embeddings[:2])
