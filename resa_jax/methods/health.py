"""What tells learning from collapse, whatever the method."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from resa_jax.methods.similarity import at_least_float32, mean_cosine


def spread(
    embeddings: Float[Array, "m d"], dtype: DTypeLike = jnp.float32
) -> dict[str, Float[Array, ""]]:
    """How a batch of embeddings spreads over the sphere, as scalars without gradient.

    `embedding_std` is the standard deviation over the batch of the L2-normalised embeddings,
    averaged over dimensions (1/sqrt(d) when they spread evenly, 0 when they collapse);
    `effective_rank` is their participation ratio, the squared sum of the covariance's eigenvalues
    over the sum of their squares, between 1 and d.
    """
    z = jax.lax.stop_gradient(embeddings).astype(dtype)
    z = z / jnp.maximum(jnp.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    z = z - jnp.mean(z, axis=0)
    variance = jnp.mean(jnp.square(z), axis=0)
    covariance = z.T @ z / len(z)
    return {
        "embedding_std": jnp.mean(jnp.sqrt(variance)),
        "effective_rank": jnp.square(jnp.sum(variance))
        / jnp.maximum(jnp.sum(jnp.square(covariance)), 1e-24),
    }


def agreement(x: Float[Array, "m d"], y: Float[Array, "m d"]) -> dict[str, Float[Array, ""]]:
    """`alignment`, the mean cosine of the rows of two views (1 when they agree); `spread` of x."""
    x, y = jax.lax.stop_gradient((x, y))
    return {"alignment": mean_cosine(x, y)} | spread(x, at_least_float32(x).dtype)


def mean_entropy(distributions: Float[Array, "m k"]) -> Float[Array, ""]:
    """Of the rows, in nats: 0 when each has one entry of 1, ln k when they are uniform."""
    p = jax.lax.stop_gradient(distributions)
    return -jnp.mean(jnp.sum(jax.scipy.special.xlogy(p, p), axis=1))


def softmax_entropy(logits: Float[Array, "... k"]) -> Float[Array, "..."]:
    """Of the softmax over the last axis, in nats."""
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(logits))
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
