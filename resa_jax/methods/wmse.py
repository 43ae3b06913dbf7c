"""W-MSE: embeddings whitened over slices of the batch agree between views.

Ermolov et al., "Whitening for Self-Supervised Representation Learning", ICML 2021.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from resa_jax.errors import UserError
from resa_jax.fields import between, field, positive
from resa_jax.methods.health import agreement
from resa_jax.methods.interface import Heads, Method, Moment, Outputs
from resa_jax.methods.similarity import at_least_float32, mean_cosine, other_view_pairs
from resa_jax.methods.whitening import condition, whiten_features
from resa_jax.models.heads import MLP
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


@dataclass(frozen=True)
class WMSE(Method):
    """One network; the authors' settings for CIFAR (Table 1)."""

    slice_size: int = field(128, positive(1e6), "images whitened together; divides the batch")
    iterations: int = field(1, positive(1000), "draws of slices a step")
    epsilon: float = field(0.0, between(0, 1), "the covariance's part that becomes the identity")
    hidden_size: int = field(1024, positive(1e6), "width of the projector's hidden layer")
    output_size: int = field(64, positive(1e6), "dimensions of the embedding")

    joint_projector = True

    def heads(self, encoder, rngs) -> Heads:
        """Two linear layers with BatchNorm between."""
        sizes = encoder.num_features, self.hidden_size, self.output_size
        return Heads(MLP(sizes, dtype=encoder.dtype, rngs=rngs))

    def __call__(self, online: Outputs, target: Outputs | None, buffers: dict, moment: Moment):
        """See `Method`.

        Metrics: `condition`, the largest over the smallest eigenvalue of the first view's
        covariance over the batch, which whitening divides by; and `agreement` of the views.
        """
        m = len(online.embeddings[0])
        keys = jax.random.split(moment.key, self.iterations)
        permutations = jax.vmap(lambda key: jax.random.permutation(key, m))(keys)
        with jax.named_scope("loss"):
            loss = wmse_loss(online.embeddings, permutations, self.slice_size, self.epsilon)
        first, second = jax.lax.stop_gradient(online.embeddings[:2])
        metrics = {"condition": condition(first)}
        return loss, buffers, metrics | agreement(first, second)
