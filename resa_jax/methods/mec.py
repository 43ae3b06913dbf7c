"""MEC: maximum entropy coding, through a Taylor series of the log-determinant.

Liu et al., "Self-Supervised Learning via Maximum Entropy Coding", NeurIPS 2022.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resa_jax.methods.similarity import matmul, normalize, other_view_pairs
from resa_jax.sharding import gather_rows, shard_rows


def mec_loss(
    predictions: Sequence[Float[Array, "m d"]],
    momentum_embeddings: Sequence[Float[Array, "m d"]],
    inverse_lambda: float | Float[Array, ""] | None = None,
    order: int = 4,
) -> Float[Array, ""]:
    """Mean over the pairs u != v of -(lambda^-1 / m) sum_k (-1)^(k+1) tr(C^k) / k.

    C = cos(p_u, z_v) / lambda^-1 and C^k a power of the *matrix*, as in the authors'
    main_pretrain.py: the factor lambda^-1 in front keeps the first term, -mean cos, at
    a size of 1. No gradient flows into the momentum embeddings.

    Args:
      predictions: one array a view.
      momentum_embeddings: those of the first views.
      inverse_lambda: by default 64 m / d; the authors warm it up from 8 times that, so that the
        series converges.
      order: terms of the series.
    """
    m, d = predictions[0].shape
    inverse_lambda = 64 * m / d if inverse_lambda is None else inverse_lambda
    targets = [normalize(jax.lax.stop_gradient(z)) for z in momentum_embeddings]
    predictions = [normalize(p) for p in predictions]
    terms = []
    for p, z in other_view_pairs(predictions, targets):
        traces = _power_traces(p / inverse_lambda, z, order)
        terms.append(sum(trace / k * (-1) ** k for k, trace in enumerate(traces, start=1)))
    return sum(terms) / len(terms) * inverse_lambda / m


def _power_traces(x, y, order):
    """tr(C^k), k = 1 to `order`, of C = x y^T or, equally, of y^T x, whichever is smaller.

    tr(C^k) = <C^(k-1), C^T>. The rows of the [m, m] powers stay on their device: a power is
    multiplied by x and by y^T, all-gathered, and never by itself.
    """
    traces = [jnp.sum(x * y)]
    m, d = x.shape
    if m <= d:
        all_x, all_y = gather_rows(x), gather_rows(y)
        transpose = shard_rows(matmul(shard_rows(y), all_x.T))
        power = shard_rows(matmul(shard_rows(x), all_y.T))
        next_power = lambda power: shard_rows(matmul(shard_rows(matmul(power, all_x)), all_y.T))
    else:
        matrix = power = matmul(y.T, x)
        transpose = matrix.T
        next_power = lambda power: matmul(power, matrix)
    for k in range(2, order + 1):
        power = power if k == 2 else next_power(power)
        traces.append(jnp.sum(power * transpose))
    return traces
