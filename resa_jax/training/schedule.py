"""When and how much: linear warm-up, then half a cosine to a floor; what is due after a step."""

from collections.abc import Sequence

import jax.numpy as jnp
import optax


def warmup_cosine(
    peak: float, floor: float, total_steps: int, warmup_steps: int = 0, start: float = 0.0
) -> optax.Schedule:
    """Linear warm-up from `start` to `peak`, then a cosine from `peak` towards `floor`.

    Equal at every step to the authors' per-iteration arrays: the warm-up is
    `linspace(start, peak, warmup_steps)`, so the last warm-up step's value is
    `peak`; the cosine advances by step / number of cosine steps and so never quite reaches `floor`.
    Also the schedule of the EMA coefficient: `warmup_cosine(0.996, 1.0, total_steps)`.

    Args:
      peak: value at the end of the warm-up.
      floor: limit of the cosine; it may lie above `peak`.
      total_steps: warm-up included; later steps keep `floor`.
      warmup_steps: 0 starts at `peak`.
      start: value of the first warm-up step.

    Returns:
      A function of the step (int or integer array), in JAX's default float type (float64 under
      `JAX_ENABLE_X64`).

    Examples:
      >>> rate = warmup_cosine(1.0, 0.1, total_steps=10, warmup_steps=2)
      >>> print(rate(jnp.array([0, 1, 2, 9])).round(3))
      [0.    1.    1.    0.134]
    """
    cosine_steps = max(total_steps - warmup_steps, 1)

    def schedule(step):
        step = jnp.asarray(step, dtype=float)
        warmup = _warmup(step, start, peak, warmup_steps)
        progress = jnp.clip((step - warmup_steps) / cosine_steps, 0, 1)
        cosine = floor + (peak - floor) * (1 + jnp.cos(jnp.pi * progress)) / 2
        return jnp.where(step < warmup_steps, warmup, cosine)

    return schedule


def warmup_drops(
    peak: float,
    drops: Sequence[int],
    warmup_steps: int = 0,
    start: float = 0.0,
    factor: float = 0.2,
) -> optax.Schedule:
    """Linear warm-up as in `warmup_cosine`, then a constant that is cut to a part at some steps.

    Args:
      drops: steps from which the value is `factor` times what it was.
    """

    def schedule(step):
        step = jnp.asarray(step, dtype=float)
        value = peak * factor ** sum((step >= drop).astype(float) for drop in drops)
        return jnp.where(step < warmup_steps, _warmup(step, start, peak, warmup_steps), value)

    return schedule


def _warmup(step, start, peak, warmup_steps):
    return start + (peak - start) * step / max(warmup_steps - 1, 1)


def is_due(every_epochs: int, step: int, steps_per_epoch: int) -> bool:
    """Whether something that happens every so many epochs (0: never) happens after this step."""
    return every_epochs > 0 and step % (every_epochs * steps_per_epoch) == 0
