"""DINO: self-distillation of a centred and sharpened momentum teacher.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resa_jax.methods.similarity import at_least_float32, other_view_pairs


def dino_loss(
    student_scores: Sequence[Float[Array, "m k"]],
    teacher_scores: Sequence[Float[Array, "m k"]],
    center: Float[Array, "k"],
    teacher_temperature: float | Float[Array, ""],
    student_temperature: float = 0.1,
) -> Float[Array, ""]:
    """Mean over the pairs u != v of -mean_i sum_k q_vik log softmax_k(s_ui / tau_s).

    q_vi = softmax((t_vi - c) / tau_t). Equation 3 and algorithm 1 of the paper (main_dino.py:
    DINOLoss).

    Args:
      student_scores: of every view, small crops included.
      teacher_scores: of the first views; no gradient flows through them.
      center: subtracted from the raw scores, *before* the division by the temperature. It is the
        one of the steps before: update it with `dino_center` after the loss.
      teacher_temperature: may follow a schedule.
      student_temperature: of the student's softmax.
    """
    center = at_least_float32(center)
    targets = [
        jax.lax.stop_gradient(jax.nn.softmax((at_least_float32(t) - center) / teacher_temperature))
        for t in teacher_scores
    ]
    terms = [
        -jnp.mean(
            jnp.sum(q * jax.nn.log_softmax(at_least_float32(s) / student_temperature), axis=1)
        )
        for s, q in other_view_pairs(student_scores, targets)
    ]
    return jnp.mean(jnp.stack(terms))


def dino_center(
    center: Float[Array, "k"], teacher_scores: Sequence[Float[Array, "m k"]], momentum: float = 0.9
) -> Float[Array, "k"]:
    """The next center: momentum c + (1 - momentum) mean(t), equation 4 of the paper.

    The mean is over the *raw* scores of all images of the global batch in all teacher views, not
    over softmaxed scores and not over one view. No gradient flows.
    """
    means = [jnp.mean(at_least_float32(t), axis=0) for t in teacher_scores]
    batch_center = sum(means) / len(means)
    return jax.lax.stop_gradient(
        momentum * at_least_float32(center) + (1 - momentum) * batch_center
    )
