"""When and how much: linear warm-up, then half a cosine to a floor; what is due after a step."""

import jax.numpy as jnp
import optax


def warmup_cosine(
    peak: float, floor: float, total_steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """Linear warm-up from 0 to `peak`, then a cosine from `peak` towards `floor`.

    Equal at every step to the authors' per-iteration arrays: the warm-up is
    `linspace(0, peak, warmup_steps)`, so the first step's value is 0 and the last warm-up step's is
    `peak`; the cosine advances by step / number of cosine steps and so never quite reaches `floor`.
    Also the schedule of the EMA coefficient: `warmup_cosine(0.996, 1.0, total_steps)`.

    Args:
      peak: value at the end of the warm-up.
      floor: limit of the cosine; it may lie above `peak`.
      total_steps: warm-up included; later steps keep `floor`.
      warmup_steps: 0 starts at `peak`.

    Returns:
      A function of the step (int or integer array), in JAX's default float type (float64 under
      `JAX_ENABLE_X64`).
    """
    cosine_steps = max(total_steps - warmup_steps, 1)

    def schedule(step):
        step = jnp.asarray(step, dtype=float)
        warmup = peak * step / max(warmup_steps - 1, 1)
        progress = jnp.clip((step - warmup_steps) / cosine_steps, 0, 1)
        cosine = floor + (peak - floor) * (1 + jnp.cos(jnp.pi * progress)) / 2
        return jnp.where(step < warmup_steps, warmup, cosine)

    return schedule


def is_due(every_epochs: int, step: int, steps_per_epoch: int) -> bool:
    """Whether something that happens every so many epochs (0: never) happens after this step."""
    return every_epochs > 0 and step % (every_epochs * steps_per_epoch) == 0
