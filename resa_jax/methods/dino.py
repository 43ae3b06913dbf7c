"""DINO: self-distillation of a centred and sharpened momentum teacher.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resa_jax.fields import field, not_negative, positive
from resa_jax.methods.health import agreement, softmax_entropy
from resa_jax.methods.interface import Heads, Method, Moment, Outputs
from resa_jax.methods.prototypes import create_prototypes, prototype_cross_entropy, prototype_scores
from resa_jax.methods.similarity import at_least_float32
from resa_jax.models.heads import MLP
from resa_jax.models.layers import gelu, normal_linear


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
      center: subtracted *before* the division by the temperature. It is the one of the steps
        before: update it with `dino_center` after the loss.
      teacher_temperature: may follow a schedule.
    """
    center = at_least_float32(center)
    centred = [at_least_float32(t) - center for t in teacher_scores]
    targets = [jax.nn.softmax(t / teacher_temperature) for t in centred]
    return prototype_cross_entropy(student_scores, targets, student_temperature)


def dino_center(
    center: Float[Array, "k"], teacher_scores: Sequence[Float[Array, "m k"]], momentum: float = 0.9
) -> Float[Array, "k"]:
    """The next center: momentum c + (1 - momentum) mean(t), equation 4 of the paper.

    The mean is over the *raw* scores of all images of the global batch in all teacher views, not
    over softmaxed scores and not over one view. No gradient flows.
    """
    mean = sum(jnp.mean(at_least_float32(t), axis=0) for t in teacher_scores) / len(teacher_scores)
    return jax.lax.stop_gradient(momentum * at_least_float32(center) + (1 - momentum) * mean)


@dataclass(frozen=True)
class DINO(Method):
    """A student and its EMA with prototypes; solo-learn's settings for CIFAR (Table 1)."""

    temperature: float = field(0.1, positive(1000), "of the student's softmax")
    teacher_temperature: float = field(0.07, positive(1000), "after its warm-up")
    teacher_temperature_start: float = field(0.04, positive(1000), "in the first epoch of it")
    teacher_temperature_epochs: int = field(0, not_negative(), "of warm-up")
    center_momentum: float = field(0.9, not_negative(1), "of the centre's moving average")
    num_prototypes: int = field(4096, positive(1e7), "outputs of the last layer")
    freeze_epochs: int = field(1, not_negative(), "in which the last layer keeps its values")
    hidden_size: int = field(2048, positive(1e6), "width of the projector's hidden layers")
    output_size: int = field(256, positive(1e6), "dimensions of the embedding")
    batch_norm: bool = field(False, "in the projector (`use_bn_in_head` of the source)")

    momentum_network = True
    ema_after_step = True

    @property
    def own_start_epoch(self) -> int:
        """When the last layer starts to move."""
        return self.freeze_epochs

    def heads(self, encoder, rngs) -> Heads:
        """Three linear layers with GELU."""
        sizes = encoder.num_features, self.hidden_size, self.hidden_size, self.output_size
        options = {"linear": normal_linear, "activation": gelu, "dtype": encoder.dtype}
        return Heads(MLP(sizes, batch_norm=self.batch_norm, rngs=rngs, **options))

    def init(self, key, width) -> dict:
        """The last layer's weight, [k, d], whose rows have length 1 in use (weight norm)."""
        return {"prototypes": create_prototypes(key, self.num_prototypes, width)}

    def buffers(self, batch_size, width) -> dict:
        """The centre of the teacher's scores, [k]."""
        return {"center": jnp.zeros(self.num_prototypes)}

    def __call__(self, online: Outputs, target: Outputs | None, buffers: dict, moment: Moment):
        """See `Method`.

        Metrics: `center_entropy`, of the softmax of the centre over the teacher's temperature, in
        nats (0: one output wins everywhere); `teacher_entropy`, the mean of an image's; and
        `agreement` of a student's embedding with the teacher's.
        """
        assert target is not None
        center, temperature = buffers["center"], self._teacher_temperature(moment.epoch)
        with jax.named_scope("loss"):
            student = [prototype_scores(z, online.own["prototypes"]) for z in online.embeddings]
            teacher = [prototype_scores(z, target.own["prototypes"]) for z in target.embeddings]
            loss = dino_loss(student, teacher, center, temperature, self.temperature)
        metrics = agreement(online.embeddings[0], target.embeddings[1]) | {
            "center_entropy": softmax_entropy(center / temperature),
            "teacher_entropy": jnp.mean(softmax_entropy((teacher[0] - center) / temperature)),
        }
        center = dino_center(center, teacher, self.center_momentum).astype(center.dtype)
        return loss, {"center": center}, metrics

    def _teacher_temperature(self, epoch):
        # By whole epochs, from the start's value to the end's, both of them taken.
        done = jnp.minimum(jnp.floor(epoch) / max(self.teacher_temperature_epochs - 1, 1), 1)
        warm = self.teacher_temperature_start * (1 - done) + self.teacher_temperature * done
        return jnp.where(epoch < self.teacher_temperature_epochs, warm, self.teacher_temperature)
