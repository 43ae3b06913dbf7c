"""ReSA: the assignment (Sinkhorn-Knopp), the cross-entropy that learns it, and the method.

Weng et al., "Clustering Properties of Self-Supervised Learning", ICML 2025. Both equations work on
the similarities of a global batch of m images and always compute in float32 at least, with the
highest matrix precision: exp(S / 0.05) magnifies a rounding error of a similarity by 20.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resa_jax.fields import field, positive
from resa_jax.methods.health import spread
from resa_jax.methods.interface import Heads, Method, Moment, Outputs
from resa_jax.methods.resa_blocks import (
    assignment_figures,
    block_size,
    blocked_resa_loss,
    sinkhorn_potentials,
)
from resa_jax.methods.similarity import at_least_float32, cosine_similarity
from resa_jax.models.heads import HEADS


def sinkhorn_knopp(
    scores: Float[Array, "m n"], epsilon: float = 0.05, num_iterations: int = 3
) -> Float[Array, "m n"]:
    """Turns similarities into an assignment whose rows sum to 1 and whose columns nearly do.

    Algorithm 1 of the paper in the orientation of the authors' code: every iteration normalises the
    columns of exp(scores / epsilon), then its rows. It runs in the log domain, so no score, however
    far from the others, overflows or empties a row.

    Args:
      scores: cosine similarities; float32 at least is used, float64 is kept.
      epsilon: entropy regularisation; smaller is sharper.
      num_iterations: rounds of column and row normalisation.

    Returns:
      The assignment in the dtype of the computation. No gradient flows through it.

    Examples:
      >>> print(sinkhorn_knopp(jnp.array([[1.0, 0.9], [0.9, 1.0]])).round(2))
      [[0.88 0.12]
       [0.12 0.88]]
    """
    scores = jax.lax.stop_gradient(at_least_float32(scores))
    log_q = scores / epsilon
    rows = columns = jnp.zeros((), log_q.dtype)
    for _ in range(num_iterations):
        columns = -jax.nn.logsumexp(log_q + rows, axis=0, keepdims=True)
        rows = -jax.nn.logsumexp(log_q + columns, axis=1, keepdims=True)
    # exp(log_q + rows + columns), with rows that sum to 1 at any magnitude.
    return jax.nn.softmax(log_q + columns, axis=1)


def resa_loss(
    embeddings: Sequence[Float[Array, "m d"]],
    momentum_embeddings: Sequence[Float[Array, "m d"]],
    assignment: Float[Array, "m m"],
    temperature: float = 0.4,
    symmetric: bool = False,
) -> Float[Array, ""]:
    """Mean cross-entropy over all pairs of a view with *another* view's momentum embedding.

    Args:
      embeddings: one array a view; they are normalised here.
      momentum_embeddings: those of the first views (two, however many views there are); no
        gradient flows through them.
      assignment: targets, row i for image i; no gradient flows through them.
      temperature: of the softmax over the similarities.
      symmetric: see `assignment_cross_entropy`.

    Returns:
      The scalar mean over the pairs, equally weighted (2 + 2L pairs with L small crops).

    Examples:
      Two views of two images that are all alike within an image; log(1 + e^(-1 / 0.4)):

      >>> z = jnp.eye(2)
      >>> print(f"{resa_loss([z, z], [z, z], assignment=jnp.eye(2)):.4f}")
      0.0789
    """
    momentum_embeddings = [jax.lax.stop_gradient(z) for z in momentum_embeddings]
    terms = [
        assignment_cross_entropy(z, target, assignment, temperature, symmetric)
        for q, z in enumerate(embeddings)
        for v, target in enumerate(momentum_embeddings)
        if q != v
    ]
    return jnp.asarray(sum(terms)) / len(terms)


def assignment_cross_entropy(
    x: Float[Array, "m d"],
    y: Float[Array, "m d"],
    assignment: Float[Array, "m m"],
    temperature: float,
    symmetric: bool,
) -> Float[Array, ""]:
    """Cross-entropy of softmax(cos(x, y) / temperature) against the assignment.

    By default the authors' code: softmax over a row, summed over the row, averaged over rows. With
    `symmetric=True` equation 2 of the paper: half of that plus the same over columns (the paper's
    pseudo-code averages over m x m entries instead, 1/m of this value).
    """
    assignment = jax.lax.stop_gradient(assignment)
    logits = cosine_similarity(x, y) / temperature

    def cross_entropy(axis):
        return -jnp.sum(assignment * jax.nn.log_softmax(logits, axis=axis)) / len(logits)

    if symmetric:
        return (cross_entropy(axis=1) + cross_entropy(axis=0)) / 2
    return cross_entropy(axis=1)


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
                loss = resa_loss(
                    online.predictions,
                    target.predictions,
                    assignment,
                    self.temperature,
                    self.symmetric,
                )
        entropy = -jnp.mean(jnp.sum(jax.scipy.special.xlogy(assignment, assignment), axis=1))
        metrics = self._metrics(loss, jnp.mean(jnp.diagonal(assignment)), entropy, online)
        return loss, buffers, metrics

    def _in_blocks(self, online, target, weak, other, buffers, block):
        with jax.named_scope("assignment"):
            potentials = sinkhorn_potentials(weak, other, self.epsilon, block)
            diagonal, entropy = assignment_figures(potentials, block)
        with jax.named_scope("loss"):
            loss = blocked_resa_loss(
                online.predictions,
                target.predictions,
                potentials,
                block,
                self.temperature,
                self.symmetric,
            )
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
