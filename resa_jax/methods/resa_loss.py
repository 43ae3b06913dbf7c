"""ReSA's two equations: the assignment (Sinkhorn-Knopp) and the cross-entropy that learns it.

Weng et al., "Clustering Properties of Self-Supervised Learning", ICML 2025. Both work on the
similarities of a global batch of m images and always compute in float32 at least, with the highest
matrix precision: exp(S / 0.05) magnifies a rounding error of a similarity by 20.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resa_jax.methods.similarity import at_least_float32, cosine_similarity


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
