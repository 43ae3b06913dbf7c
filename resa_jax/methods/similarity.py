"""What the losses share: cosines of rows, pairs of views, and products over the batch.

Everything is in float32 at least (float64 stays), and products have the highest matrix precision.
Norms are at least 1e-12, so zero rows give zeros and finite gradients.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resa_jax.errors import UserError
from resa_jax.sharding import gather_rows, shard_rows


def at_least_float32(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """bfloat16 and float16 as float32; wider types as they are."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def normalize(x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
    """Rows of length 1, in float32 at least."""
    x = at_least_float32(x)
    squared_norm = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared_norm, 1e-24))


def matmul(x: Float[Array, "*a m k"], y: Float[Array, "*a k n"]) -> Float[Array, "*a m n"]:
    """The product without the accelerator's shortened float32 (TF32, bfloat16 passes)."""
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


def cosine_similarity(x: Float[Array, "m d"], y: Float[Array, "n d"]) -> Float[Array, "m n"]:
    """Cosine similarities of the rows of `x` with the rows of `y`.

    Under a mesh the rows of the result stay on the device that holds the row of `x`; only `y`
    is all-gathered.
    """
    x, y = normalize(x), normalize(y)
    return shard_rows(matmul(shard_rows(x), gather_rows(y).T))


def mean_cosine(x: Float[Array, "*rows d"], y: Float[Array, "*rows d"]) -> Float[Array, ""]:
    """Mean over the rows of the cosine of a row of `x` with the same row of `y`."""
    return jnp.mean(jnp.sum(normalize(x) * normalize(y), axis=-1))


def other_view_pairs(x: Sequence, y: Sequence) -> list[tuple]:
    """(x[u], y[v]) for all u other than v: every view with the other views of `y`.

    Raises:
      UserError: when there is no such pair.
    """
    pairs = [(a, b) for u, a in enumerate(x) for v, b in enumerate(y) if u != v]
    if not pairs:
        raise UserError(
            f"The loss compares different views, but got {len(x)} and {len(y)} of them; "
            "at least one side needs two."
        )
    return pairs


def two_views(embeddings: Sequence) -> Sequence:
    """The views themselves, of which there must be two.

    Raises:
      UserError: when there are fewer or more.
    """
    if len(embeddings) != 2:
        raise UserError(f"The loss is defined for exactly two views, but got {len(embeddings)}.")
    return embeddings


def off_diagonal_square_sum(x: Float[Array, "m d"], y: Float[Array, "m d"]) -> Float[Array, ""]:
    """Sum over i != j of (x^T y)_ij squared, through the smaller of two equal forms.

    |x^T y|^2 = <x x^T, y y^T>: with fewer images than features, two [m, m] matrices (their rows
    stay on their device, [m, d] arrays are all-gathered) replace the [d, d] one (all-reduced).
    """
    m, d = x.shape
    if m < d:
        gram_x, gram_y = (shard_rows(matmul(shard_rows(z), gather_rows(z).T)) for z in (x, y))
        total = jnp.sum(gram_x * gram_y)
    else:
        total = jnp.sum(jnp.square(matmul(x.T, y)))
    return total - jnp.sum(jnp.square(jnp.sum(x * y, axis=0)))
