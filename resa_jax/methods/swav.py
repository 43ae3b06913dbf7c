"""SwAV: predict from one view the prototypes that the other view was assigned to.

Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
NeurIPS 2020.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resa_jax.fields import field, not_negative, positive
from resa_jax.methods.health import agreement
from resa_jax.methods.interface import MOMENTUM_VIEWS, Heads, Method, Moment, Outputs
from resa_jax.methods.resa import sinkhorn_knopp
from resa_jax.methods.similarity import (
    at_least_float32,
    cosine_similarity,
    normalize,
    other_view_pairs,
)
from resa_jax.models.heads import MLP
from resa_jax.models.layers import torch_uniform
from resa_jax.sharding import gather_rows, shard_rows


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


def swav_loss(
    scores: Sequence[Float[Array, "m k"]],
    assignments: Sequence[Float[Array, "m k"]],
    temperature: float = 0.1,
) -> Float[Array, ""]:
    """Mean over the pairs u != v of -mean_i sum_k q_vik log softmax_k(s_ui / tau).

    Equations 1 and 2 of the paper: the prediction is *swapped*, a view never learns its own
    assignment.

    Args:
      scores: of every view, small crops included.
      assignments: of the first views; no gradient flows through them.
    """
    targets = [jax.lax.stop_gradient(q) for q in assignments]
    terms = [
        -jnp.mean(jnp.sum(q * jax.nn.log_softmax(at_least_float32(s) / temperature), axis=1))
        for s, q in other_view_pairs(scores, targets)
    ]
    return jnp.mean(jnp.stack(terms))


@dataclass(frozen=True)
class SwAV(Method):
    """One network with prototypes; solo-learn's settings for CIFAR (Table 1)."""

    temperature: float = field(0.1, positive(1000), "of the softmax over the prototypes")
    epsilon: float = field(0.05, positive(1000), "of Sinkhorn-Knopp; smaller is sharper")
    num_prototypes: int = field(3000, positive(1e7), "of the assignment")
    freeze_epochs: int = field(2, not_negative(), "in which the prototypes keep their values")
    queue_size: int = field(3840, not_negative(1e9), "earlier embeddings of a view; 0 for none")
    queue_epoch: int = field(50, not_negative(), "from which the queue takes part")
    hidden_size: int = field(2048, positive(1e6), "width of the projector's hidden layer")
    output_size: int = field(128, positive(1e6), "dimensions of the embedding")
    three_layers: bool = field(False, "a projector of three layers (Figure 4)")

    @property
    def own_start_epoch(self) -> int:
        """When the prototypes start to move."""
        return self.freeze_epochs

    def heads(self, encoder, rngs) -> Heads:
        """Two or three linear layers with BatchNorm between."""
        hidden = [self.hidden_size] * (2 if self.three_layers else 1)
        sizes = encoder.num_features, *hidden, self.output_size
        return Heads(MLP(sizes, dtype=encoder.dtype, rngs=rngs))

    def init(self, key, width) -> dict:
        """The prototypes, [k, d], as the weight of a linear layer without bias."""
        return {"prototypes": torch_uniform(key, (width, self.num_prototypes)).T}

    def buffers(self, batch_size, width) -> dict:
        """Normalised embeddings of the first two views, [2, q, d], the newest first."""
        if not self.queue_size:
            return {}
        return {"queue": jnp.zeros((MOMENTUM_VIEWS, self.queue_size, width))}

    def __call__(self, online: Outputs, target: Outputs | None, buffers: dict, moment: Moment):
        """See `Method`.

        Metrics: `prototypes_used`, the share of the prototypes that are an image's first choice;
        `assignment_entropy` in nats; and `agreement` of the views' embeddings.
        """
        prototypes, embeddings = online.own["prototypes"], online.embeddings
        with jax.named_scope("loss"):
            scores = [prototype_scores(z, prototypes) for z in embeddings]
        with jax.named_scope("assignment"):
            frozen = jax.lax.stop_gradient((scores[:MOMENTUM_VIEWS], prototypes))
            assignments = [
                self._assign(view, *frozen, buffers, moment) for view in range(MOMENTUM_VIEWS)
            ]
            buffers = {name: self._push(queue, embeddings) for name, queue in buffers.items()}
        with jax.named_scope("loss"):
            loss = swav_loss(scores, assignments, self.temperature)
        first = assignments[0]
        chosen = jnp.zeros(self.num_prototypes, bool).at[jnp.argmax(first, axis=1)].set(True)
        entropy = -jnp.mean(jnp.sum(jax.scipy.special.xlogy(first, first), axis=1))
        metrics = {"prototypes_used": jnp.mean(chosen), "assignment_entropy": entropy}
        return loss, buffers, metrics | agreement(*embeddings[:2])

    def _assign(self, view, scores, prototypes, buffers, moment):
        plain = lambda scores: swav_assignment(scores, None, self.epsilon)
        if not buffers:
            return plain(scores[view])
        earlier = buffers["queue"][view]
        with_queue = lambda scores: swav_assignment(
            scores, prototype_scores(earlier, prototypes), self.epsilon
        )
        started = moment.epoch >= self.queue_epoch
        return jax.lax.cond(started, with_queue, plain, scores[view])

    def _push(self, queue, embeddings):
        views = jax.lax.stop_gradient(embeddings[:MOMENTUM_VIEWS])
        new = jnp.stack([gather_rows(normalize(z)) for z in views]).astype(queue.dtype)
        return jnp.concatenate([new, queue], axis=1)[:, : self.queue_size]
