"""Cosine similarities over a global batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resa_jax.sharding import gather_rows, shard_rows


def cosine_similarity(x: Float[Array, "m d"], y: Float[Array, "n d"]) -> Float[Array, "m n"]:
    """Cosine similarities of the rows of `x` with the rows of `y`.

    Under a mesh the rows of the result stay on the device that holds the row of `x`; only `y`
    is all-gathered. Norms are at least 1e-12, so zero rows give zeros and finite gradients.
    """
    x, y = normalize(x), normalize(y)
    similarity = jnp.matmul(shard_rows(x), gather_rows(y).T, precision=jax.lax.Precision.HIGHEST)
    return shard_rows(similarity)


def normalize(x: Float[Array, "*m d"]) -> Float[Array, "*m d"]:
    """Rows of unit length, float32 at least; the norm counts as 1e-12 at least."""
    x = at_least_float32(x)
    squared_norm = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared_norm, 1e-24))


def at_least_float32(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Half precision widened to float32; float64 stays."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
