"""VICReg: invariance between views, and variance and covariance of the features within a view.

Bardes et al., "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised
Learning", ICLR 2022.
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


def vicreg_loss(
    embeddings: Sequence[Float[Array, "m d"]],
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
) -> Float[Array, ""]:
    """25 mean (z_1 - z_2)^2 + 25 (v(z_1) + v(z_2)) + c(z_1) + c(z_2).

    v = mean_j relu(1 - sqrt(var_j + 1e-4)) and c = sum_{i != j} cov_ij^2 / d, equations 1 to 6 of
    the paper, in solo-learn's weights (solo/losses/vicreg.py).

    The invariance is a mean over all m d entries, not over rows. Variance and covariance divide by
    m - 1. The authors' main_vicreg.py *halves* both v: their variance weight of 25 is 12.5 here.
    Rows are not normalised.

    Args:
      embeddings: of exactly two views.
    """
    first, second = (at_least_float32(z) for z in two_views(embeddings))
    invariance = jnp.mean(jnp.square(first - second))
    variance = _variance_term(first) + _variance_term(second)
    covariance = _covariance_term(first) + _covariance_term(second)
    return (
        invariance_weight * invariance + variance_weight * variance + covariance_weight * covariance
    )


def _variance_term(z):
    return jnp.mean(jax.nn.relu(1 - jnp.sqrt(jnp.var(z, axis=0, ddof=1) + 1e-4)))


def _covariance_term(z):
    m, d = z.shape
    centered = z - jnp.mean(z, axis=0)
    return off_diagonal_square_sum(centered, centered) / (m - 1) ** 2 / d


@dataclass(frozen=True)
class VICReg(Method):
    """One network; the settings are solo-learn's for CIFAR (Table 1)."""

    invariance_weight: float = field(25.0, not_negative(1e6), "of the distance between the views")
    variance_weight: float = field(25.0, not_negative(1e6), "of the hinge on the deviations")
    covariance_weight: float = field(1.0, not_negative(1e6), "of the covariances")
    hidden_size: int = field(2048, positive(1e6), "width of the projector's hidden layers")
    output_size: int = field(2048, positive(1e6), "dimensions of the embedding")

    def heads(self, encoder, rngs) -> Heads:
        """Three linear layers, with BatchNorm behind the hidden ones."""
        sizes = encoder.num_features, self.hidden_size, self.hidden_size, self.output_size
        return Heads(MLP(sizes, dtype=encoder.dtype, rngs=rngs))

    def __call__(self, online: Outputs, target: Outputs | None, buffers: dict, moment: Moment):
        """See `Method`.

        Metrics: `feature_std`, the mean standard deviation of the first view's features, which the
        hinge holds near 1; and `agreement` of the views.
        """
        weights = self.invariance_weight, self.variance_weight, self.covariance_weight
        with jax.named_scope("loss"):
            loss = vicreg_loss(online.embeddings, *weights)
        first, second = jax.lax.stop_gradient(online.embeddings[:2])
        deviation = jnp.mean(jnp.std(at_least_float32(first), axis=0))
        return loss, buffers, {"feature_std": deviation} | agreement(first, second)
