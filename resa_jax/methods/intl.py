"""INTL: iteratively normalised samples agree between views, and a trace loss keeps them white.

Weng et al., "Modulate Your Spectrum in Self-Supervised Learning", ICLR 2024.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resa_jax.errors import UserError
from resa_jax.fields import field, not_negative, positive
from resa_jax.methods.health import agreement
from resa_jax.methods.interface import Heads, Method, Moment, Outputs
from resa_jax.methods.similarity import at_least_float32, matmul, mean_cosine
from resa_jax.models.heads import MLP
from resa_jax.sharding import gather_rows, shard_rows


def intl_loss(
    embeddings: Sequence[Float[Array, "m d"]],
    trade_off: float | None = None,
    num_iterations: int = 4,
) -> Float[Array, ""]:
    """Mean over the views v > 0 of 2 - 2 cos(t_v, t_0) + beta (TL(t_v) + TL(t_0)).

    t is `iterative_normalization` of the view and TL = sum_i (var_i - 1)^2 over the m samples (a
    *sum*, var over d - 1), as in winci-ai/INTL: methods/intl.py. Gradients flow through all views
    and through the whitening matrix. A mean in TL, or whitened features, is another method.

    Args:
      embeddings: one array a view; the first is the one that the others are compared with.
      trade_off: beta; by default 0.01 (log2 m - 3), with m the *global* batch and not the width.
      num_iterations: of Newton's iteration.
    """
    if len(embeddings) < 2:
        raise UserError(f"INTL compares different views, but got {len(embeddings)} of them.")
    m = len(embeddings[0])
    beta = (math.log2(m) - 3) * 0.01 if trade_off is None else trade_off
    first, *others = (iterative_normalization(z, num_iterations) for z in embeddings)
    terms = [
        2 - 2 * mean_cosine(t, first) + beta * (_trace_loss(t) + _trace_loss(first)) for t in others
    ]
    return sum(terms) / len(terms)


def iterative_normalization(z: Float[Array, "m d"], num_iterations: int = 4) -> Float[Array, "m d"]:
    """P X / sqrt(tr Sigma): approximately white *samples*, X the rows less their means.

    Sigma = X X^T / (d - 1), and P approaches the inverse root of S = Sigma / tr Sigma from P = I by
    P <- 1.5 P - 0.5 P^3 S. P is a polynomial of S, and f(X X^T) X = X f(X^T X): the smaller of the
    two products is iterated. With m <= d, X is all-gathered under a mesh and S whole on every
    device; otherwise rows stay where they are.
    """
    z = at_least_float32(z)
    centered = z - jnp.mean(z, axis=1, keepdims=True)
    m, d = centered.shape
    squares = jnp.maximum(jnp.sum(jnp.square(centered)), 1e-24)
    if m <= d:
        centered = gather_rows(centered)
        product = matmul(centered, centered.T)
    else:
        product = matmul(centered.T, centered)
    normalized = product / squares
    projection = jnp.eye(min(m, d), dtype=z.dtype)
    for _ in range(num_iterations):
        cube = matmul(matmul(projection, projection), projection)
        projection = 1.5 * projection - 0.5 * matmul(cube, normalized)
    # Whole also in the backward pass, where the cotangents of the rows meet the [m, m] product.
    whitened = gather_rows(matmul(projection, centered)) if m <= d else matmul(centered, projection)
    return shard_rows(whitened * jnp.sqrt((d - 1) / squares))


def _trace_loss(t):
    return jnp.sum(jnp.square(jnp.var(t, axis=1, ddof=1) - 1))


@dataclass(frozen=True)
class INTL(Method):
    """One network; the authors' settings for CIFAR (Table 1)."""

    trade_off: float | None = field(
        None, not_negative(1e6), "weight of the trace loss; none: 0.01 (log2 m - 3)"
    )
    num_iterations: int = field(4, positive(100), "of Newton's iteration")
    hidden_size: int = field(2048, positive(1e6), "width of the projector's hidden layers")
    output_size: int = field(2048, positive(1e6), "dimensions of the embedding")

    def heads(self, encoder, rngs) -> Heads:
        """Three linear layers, with BatchNorm and no bias in the hidden ones."""
        sizes = encoder.num_features, self.hidden_size, self.hidden_size, self.output_size
        return Heads(MLP(sizes, bias=False, dtype=encoder.dtype, rngs=rngs))

    def __call__(self, online: Outputs, target: Outputs | None, buffers: dict, moment: Moment):
        """See `Method`. Metrics: `agreement` of the views' embeddings."""
        with jax.named_scope("loss"):
            loss = intl_loss(online.embeddings, self.trade_off, self.num_iterations)
        return loss, buffers, agreement(*online.embeddings[:2])
