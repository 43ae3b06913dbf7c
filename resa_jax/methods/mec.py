"""MEC: maximum entropy coding, through a Taylor series of the log-determinant.

Liu et al., "Self-Supervised Learning via Maximum Entropy Coding", NeurIPS 2022.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resa_jax.fields import field, not_negative, positive
from resa_jax.methods.health import agreement
from resa_jax.methods.interface import Heads, Method, Moment, Outputs
from resa_jax.methods.similarity import matmul, normalize, other_view_pairs
from resa_jax.models.heads import MLP, freeze_last_bias
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


@dataclass(frozen=True)
class MEC(Method):
    """An online network with a predictor and its EMA; the authors' settings (Table 2)."""

    order: int = field(4, positive(100), "terms of the series")
    inverse_lambda: float | None = field(None, positive(1e9), "none: 64 m / d")
    inverse_lambda_start: float = field(8.0, positive(1e6), "times that at the start")
    inverse_lambda_epochs: int = field(10, not_negative(), "of linear change from start to end")
    hidden_size: int = field(2048, positive(1e6), "width of the projector's hidden layers")
    predictor_size: int = field(512, positive(1e6), "width of the predictor's hidden layer")
    output_size: int = field(2048, positive(1e6), "dimensions of the embedding")

    momentum_network = True
    ema_after_step = True

    def heads(self, encoder, rngs) -> Heads:
        """SimSiam's: three layers with BatchNorm behind each, and two; no bias but the last ones'.

        The projector's bias is never trained.
        """
        hidden, out = self.hidden_size, self.output_size
        options = {"bias": False, "dtype": encoder.dtype, "rngs": rngs}
        sizes = encoder.num_features, hidden, hidden, out
        projector = freeze_last_bias(MLP(sizes, last_batch_norm=True, **options))
        return Heads(projector, MLP((out, self.predictor_size, out), **options))

    def __call__(self, online: Outputs, target: Outputs | None, buffers: dict, moment: Moment):
        """See `Method`. Metrics: `inverse_lambda`; `agreement` of a prediction with its target."""
        assert target is not None
        m, d = online.predictions[0].shape
        end = 64 * m / d if self.inverse_lambda is None else self.inverse_lambda
        warmed = jnp.minimum(moment.epoch / max(self.inverse_lambda_epochs, 1e-9), 1)
        value = end * (self.inverse_lambda_start + (1 - self.inverse_lambda_start) * warmed)
        with jax.named_scope("loss"):
            loss = mec_loss(online.predictions, target.embeddings, value, self.order)
        metrics = {"inverse_lambda": value}
        return loss, buffers, metrics | agreement(online.predictions[0], target.embeddings[1])
