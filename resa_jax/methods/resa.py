"""ReSA: embeddings learn the assignment that the encodings give.

Weng et al., "Clustering Properties of Self-Supervised Learning", ICML 2025. Its equations are in
`resa_loss.py`, for large batches also in `resa_blocks.py`.
"""

import itertools
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resa_jax.fields import field, positive
from resa_jax.methods.health import mean_entropy, spread
from resa_jax.methods.interface import Heads, Method, Moment, Outputs
from resa_jax.methods.resa_blocks import (
    assignment_figures,
    block_size,
    blocked_resa_loss,
    sinkhorn_potentials,
)
from resa_jax.methods.resa_loss import assignment_cross_entropy, resa_loss, sinkhorn_knopp
from resa_jax.methods.similarity import cosine_similarity
from resa_jax.models.heads import HEADS


@dataclass(frozen=True)
class ReSA(Method):
    """Representation self-assignment (Figure 5 and Algorithm 1 of the paper)."""

    temperature: float = field(0.4, positive(1000), "of the cross-entropy's softmax")
    epsilon: float = field(0.05, positive(1000), "of Sinkhorn-Knopp; smaller is sharper")
    symmetric: bool = field(False, "cross-entropy over rows and columns (equation 2)")
    assignment: Literal["encoding", "embedding", "momentum"] = field(
        "encoding",
        "made of online x EMA encodings, of embeddings (Figure 10), or of EMA x EMA encodings",
    )
    momentum_network: bool = field(True, "whether an EMA network gives the targets (Table 11)")
    predictor: bool = field(False, "a predictor behind the online projector")
    hidden_size: int = field(2048, positive(1e6), "width of the heads' hidden layers")
    output_size: int = field(512, positive(1e6), "dimensions of the embedding")

    def heads(self, encoder, rngs) -> Heads:
        """A projector of three layers and, where asked for, a predictor of two."""
        projector, predictor = HEADS[encoder.family]
        hidden, out, dtype = self.hidden_size, self.output_size, encoder.dtype
        return Heads(
            projector(encoder.num_features, hidden, out, dtype=dtype, rngs=rngs),
            predictor(out, hidden, dtype=dtype, rngs=rngs) if self.predictor else None,
        )

    def __call__(self, online: Outputs, target: Outputs | None, buffers: dict, moment: Moment):
        """See `Method`. The weak view is the first.

        Metrics: `assignment_diagonal` is the mean weight that an image gives itself and
        `assignment_entropy` the mean entropy of a row in nats (ln m when uniform); `kl` is the loss
        minus that entropy, 0 at least; and `spread` of the first view's predictions.
        """
        weak, other = self._assigned(online, online if target is None else target)
        devices = max(jax.sharding.get_abstract_mesh().size, 1)
        block = block_size(len(weak), devices)
        if block is not None and target is not None:
            return self._in_blocks(online, target, weak, other, buffers, block)
        with jax.named_scope("assignment"):
            assignment = sinkhorn_knopp(cosine_similarity(weak, other), self.epsilon)
        with jax.named_scope("loss"):
            if target is None:
                loss = self._plain_loss(online.predictions, assignment)
            else:
                options = self.temperature, self.symmetric
                loss = resa_loss(online.predictions, target.predictions, assignment, *options)
        diagonal, entropy = jnp.mean(jnp.diagonal(assignment)), mean_entropy(assignment)
        return loss, buffers, self._metrics(loss, diagonal, entropy, online)

    def _in_blocks(self, online, target, weak, other, buffers, block):
        with jax.named_scope("assignment"):
            potentials = sinkhorn_potentials(weak, other, self.epsilon, block)
            diagonal, entropy = assignment_figures(potentials, block)
        with jax.named_scope("loss"):
            options = block, self.temperature, self.symmetric
            loss = blocked_resa_loss(online.predictions, target.predictions, potentials, *options)
        return loss, buffers, self._metrics(loss, diagonal, entropy, online)

    def _metrics(self, loss, diagonal, entropy, online):
        metrics = {
            "assignment_diagonal": diagonal,
            "assignment_entropy": entropy,
            "kl": jax.lax.stop_gradient(loss) - entropy,
        }
        return metrics | spread(online.predictions[0], entropy.dtype)

    def assign(self, online: Outputs, target: Outputs) -> Float[Array, "m m"]:
        """The assignment of the weak view; no gradient flows through it."""
        return sinkhorn_knopp(cosine_similarity(*self._assigned(online, target)), self.epsilon)

    def _assigned(self, online, target):
        """What the assignment compares, of the weak view."""
        pair = {
            "encoding": (online.encodings[0], target.encodings[0]),
            "embedding": (online.predictions[0], target.predictions[0]),
            "momentum": (target.encodings[0], target.encodings[0]),
        }[self.assignment]
        return jax.lax.stop_gradient(pair)

    def _plain_loss(self, embeddings, assignment):
        # Table 11 without a momentum network: each pair of views once, both sides learn.
        terms = [
            assignment_cross_entropy(x, y, assignment, self.temperature, symmetric=True)
            for x, y in itertools.combinations(embeddings, 2)
        ]
        return jnp.asarray(sum(terms)) / len(terms)
