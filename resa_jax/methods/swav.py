"""SwAV: predict from one view the prototypes that the other view was assigned to.

Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
NeurIPS 2020.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resa_jax.fields import field, not_negative, positive
from resa_jax.methods.health import agreement, mean_entropy
from resa_jax.methods.interface import MOMENTUM_VIEWS, Heads, Method, Moment, Outputs
from resa_jax.methods.prototypes import (
    create_prototypes,
    prototype_cross_entropy,
    prototype_scores,
    swav_assignment,
)
from resa_jax.methods.similarity import normalize
from resa_jax.models.heads import MLP
from resa_jax.sharding import gather_rows


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
    return prototype_cross_entropy(scores, assignments, temperature)


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
        return {"prototypes": create_prototypes(key, self.num_prototypes, width)}

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
        metrics = {"prototypes_used": jnp.mean(chosen), "assignment_entropy": mean_entropy(first)}
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
