"""CW-RGP: samples whitened over random groups of channels agree between views.

Weng et al., "An Investigation into Whitening Loss for Self-supervised Learning", NeurIPS 2022.
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
from resa_jax.methods.whitening import whiten_samples
from resa_jax.models.heads import MLP
from resa_jax.sharding import gather_rows


def cw_rgp_loss(
    embeddings: Sequence[Float[Array, "m d"]],
    permutations: Int[Array, "iterations m"],
    channel_permutations: Int[Array, "iterations slices views d"],
    slice_size: int,
    groups: int,
    epsilon: float = 0.0,
) -> Float[Array, ""]:
    """Mean over draws, pairs of views and rows of 2 - 2 cos of the whitened rows.

    The authors' code (winci-ai/CW-RGP: base/methods/cwrgp.py, whitening.py). One shuffle for all
    views, or centring within a group, is another method. Gradients flow into all views.

    Args:
      embeddings: one array a view.
      permutations: for each draw a permutation of the rows, cut into consecutive slices.
      channel_permutations: for each slice *and view* a permutation of the channels of its own.
      slice_size: n, rows a slice.
      groups: of d / groups channels; no fewer than n, or the covariance is singular.
      epsilon: the covariance becomes (1 - epsilon) Sigma + epsilon I.

    Raises:
      UserError: when slices or groups do not divide, or a group is too small for epsilon = 0.

    Under a mesh the embeddings are all-gathered and whitened on every device.
    """
    m, d = embeddings[0].shape
    if m % slice_size:
        raise UserError(f"slice_size is {slice_size}, but should divide the batch of {m} images.")
    if d % groups:
        raise UserError(f"groups is {groups}, but should divide the {d} channels of an embedding.")
    if d // groups < slice_size and epsilon == 0:
        raise UserError(
            f"groups is {groups}, but {d} channels in groups of at least slice_size = {slice_size} "
            f"make at most {d // slice_size}: a group with fewer channels than images has a "
            "singular covariance (or set epsilon above 0)."
        )
    slices = permutations.reshape(-1, slice_size)
    channels = channel_permutations.reshape(-1, len(embeddings), d)
    whiten = jax.vmap(lambda z, order: whiten_samples(z, order, groups, epsilon))
    whitened = [
        whiten(gather_rows(at_least_float32(z))[slices], channels[:, v])
        for v, z in enumerate(embeddings)
    ]
    terms = [2 - 2 * mean_cosine(u, v) for u, v in other_view_pairs(whitened, whitened)]
    return jnp.mean(jnp.stack(terms))


@dataclass(frozen=True)
class CWRGP(Method):
    """One network; the authors' settings for CIFAR-10 (Table 1)."""

    slice_size: int = field(64, positive(1e6), "images whitened together; divides the batch")
    groups: int = field(4, positive(1e6), "of channels; divide the embedding")
    iterations: int = field(4, positive(1000), "draws of slices a step")
    epsilon: float = field(0.0, between(0, 1), "the covariance's part that becomes the identity")
    hidden_size: int = field(1024, positive(1e6), "width of the projector's hidden layer")
    output_size: int = field(512, positive(1e6), "dimensions of the embedding")

    joint_projector = True

    def heads(self, encoder, rngs) -> Heads:
        """Two linear layers with BatchNorm between."""
        sizes = encoder.num_features, self.hidden_size, self.output_size
        return Heads(MLP(sizes, dtype=encoder.dtype, rngs=rngs))

    def __call__(self, online: Outputs, target: Outputs | None, buffers: dict, moment: Moment):
        """See `Method`. Metrics: `agreement` of the views' embeddings."""
        views = online.embeddings
        m, d = views[0].shape
        rows, channels = jax.random.split(moment.key)
        shape = self.iterations, m // self.slice_size, len(views)
        permutations = _permutations(rows, (self.iterations,), m)
        shuffles = _permutations(channels, shape, d)
        with jax.named_scope("loss"):
            loss = cw_rgp_loss(
                views, permutations, shuffles, self.slice_size, self.groups, self.epsilon
            )
        return loss, buffers, agreement(*views[:2])


def _permutations(key, shape, n):
    """Independent permutations of 0..n-1 along the last axis."""
    numbers = jnp.broadcast_to(jnp.arange(n), (*shape, n))
    return jax.random.permutation(key, numbers, axis=-1, independent=True)
