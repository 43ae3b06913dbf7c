"""LARS as solo-learn defines it, which is not `optax.lars`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from resa_jax.methods.similarity import at_least_float32


def lars(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
    momentum: float = 0.9,
    trust_coefficient: float = 0.02,
    clip: bool = True,
    exclude_1d: bool = True,
) -> optax.GradientTransformation:
    """SGD with momentum on layer-wise scaled gradients.

    With r = trust_coefficient |p| / (|g| + weight_decay |p| + 1e-8), or min(r / lr, 1) with `clip`:

        g <- r (g + weight_decay p);   v <- momentum v + g;   p <- p - lr v

    You et al., "Large Batch Training of Convolutional Networks", 2017, in the form of solo-learn's
    solo/utils/lars.py. `optax.lars` differs: the norm of g + weight_decay p in the ratio, no clip,
    the learning rate *inside* the momentum buffer, and decay of a parameter without gradient.

    Args:
      learning_rate: a number or a function of the step; `clip` compares with its current value.
      weight_decay: added to the gradient before the scaling.
      momentum: of the buffer v, which the learning rate does not enter.
      trust_coefficient: eta.
      clip: at most the plain SGD step.
      exclude_1d: biases and normalisation (parameters of one axis) are neither scaled nor decayed.

    When the norm of a parameter or of its gradient is 0, g stays as it is: no scale, no decay.

    Examples:
      A gradient as long as its parameter is shortened to 0.02 of it, times the rate:

      >>> optimizer = lars(learning_rate=0.5, weight_decay=0.0, clip=False)
      >>> weights = jnp.ones((2, 2))
      >>> updates, _ = optimizer.update(weights, optimizer.init(weights), weights)
      >>> print(updates.round(3))
      [[-0.01 -0.01]
       [-0.01 -0.01]]
    """
    return optax.chain(
        _scale_by_trust_ratio(learning_rate, weight_decay, trust_coefficient, clip, exclude_1d),
        optax.trace(decay=momentum),
        optax.scale_by_learning_rate(learning_rate),
    )


class _TrustRatioState(NamedTuple):
    steps: jax.Array


def _scale_by_trust_ratio(learning_rate, weight_decay, trust_coefficient, clip, exclude_1d):
    def init(params):
        del params
        return _TrustRatioState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("lars scales by the parameters' norms: pass `params` to `update`.")
        rate = learning_rate(state.steps) if callable(learning_rate) else learning_rate

        def scaled(g, p):
            if exclude_1d and p.ndim == 1:
                return g
            p_norm, g_norm = _norm(p), _norm(g)
            ratio = trust_coefficient * p_norm / (g_norm + weight_decay * p_norm + 1e-8)
            if clip:
                # A warm-up may start at a rate of 0: the ratio is above it, so 1.
                ratio = jnp.where(ratio < rate, ratio / rate, 1.0)
            result = (ratio * (g + weight_decay * p)).astype(g.dtype)
            return jnp.where((p_norm == 0) | (g_norm == 0), g, result)

        updates = jax.tree.map(scaled, updates, params)
        return updates, _TrustRatioState(optax.safe_increment(state.steps))

    return optax.GradientTransformation(init, update)


def _norm(x):
    return jnp.sqrt(jnp.sum(jnp.square(at_least_float32(x))))
