"""Prototypes, as SwAV and DINO have them: scores, balanced assignment and cross-entropy."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from resa_jax.methods.resa_loss import sinkhorn_knopp
from resa_jax.methods.similarity import at_least_float32, cosine_similarity, other_view_pairs
from resa_jax.models.layers import torch_uniform
from resa_jax.sharding import shard_rows


def create_prototypes(key: Key[Array, ""], count: int, width: int) -> Float[Array, "k d"]:
    """Initial prototypes: the weight of PyTorch's linear layer without bias."""
    return torch_uniform(key, (width, count)).T


def prototype_scores(
    embeddings: Float[Array, "m d"], prototypes: Float[Array, "k d"]
) -> Float[Array, "m k"]:
    """Cosines of the embeddings of *one* view with the prototypes.

    Both sides are normalised and differentiated: normalising the prototypes here (weight norm with
    a gain of 1) has another gradient than projecting them to the sphere before each step.
    """
    return cosine_similarity(embeddings, prototypes)


def swav_assignment(
    scores: Float[Array, "m k"],
    queue_scores: Float[Array, "q k"] | None = None,
    epsilon: float = 0.05,
    num_iterations: int = 3,
) -> Float[Array, "m k"]:
    """Assignment of one view's images to the prototypes; rows sum to 1, no gradient flows.

    Section 3.1 of the paper (main_swav.py: distributed_sinkhorn): every iteration gives the
    prototypes (columns) the same mass, *then* each image (row) a mass of 1. The other order ends
    with rows that do not sum to 1.

    Args:
      scores: from `prototype_scores`.
      queue_scores: those of earlier embeddings. They take part in the balance; only the rows of
        the batch come back.
      epsilon: entropy regularisation; smaller is sharper.
      num_iterations: rounds of column and row normalisation.
    """
    if queue_scores is None:
        return sinkhorn_knopp(scores, epsilon, num_iterations)
    # The order of the rows does not matter. Interleaved, batch and queue stay on their devices.
    (m, k), q = scores.shape, len(queue_scores)
    groups = math.gcd(m, q)
    both = [at_least_float32(x).reshape(groups, -1, k) for x in (scores, queue_scores)]
    rows = shard_rows(jnp.concatenate(both, axis=1).reshape(m + q, k))
    assignment = sinkhorn_knopp(rows, epsilon, num_iterations).reshape(groups, -1, k)
    return shard_rows(assignment[:, : m // groups].reshape(m, k))


def prototype_cross_entropy(
    scores: Sequence[Float[Array, "m k"]],
    targets: Sequence[Float[Array, "m k"]],
    temperature: float,
) -> Float[Array, ""]:
    """Mean over the pairs u != v of -mean_i sum_k q_vik log softmax_k(s_ui / tau).

    Args:
      scores: of every view, small crops included.
      targets: distributions of the first views; no gradient flows through them.
    """
    targets = [jax.lax.stop_gradient(q) for q in targets]
    terms = [
        -jnp.mean(jnp.sum(q * jax.nn.log_softmax(at_least_float32(s) / temperature), axis=1))
        for s, q in other_view_pairs(scores, targets)
    ]
    return jnp.mean(jnp.stack(terms))
