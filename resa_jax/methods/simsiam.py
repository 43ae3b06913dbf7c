"""SimSiam: predict the embedding of another view, with one network and a stop-gradient.

Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resa_jax.fields import field, positive
from resa_jax.methods.health import agreement
from resa_jax.methods.interface import Heads, Method, Moment, Outputs
from resa_jax.methods.similarity import mean_cosine, other_view_pairs
from resa_jax.models.heads import MLP, freeze_last_bias


def simsiam_loss(
    predictions: Sequence[Float[Array, "m d"]], embeddings: Sequence[Float[Array, "m d"]]
) -> Float[Array, ""]:
    """Mean over the pairs u != v of -mean_i cos(p_ui, sg(z_vi)).

    Equation 4 of the paper (main_simsiam.py). No gradient flows into `embeddings`; without that
    the loss still falls, to -1, while all embeddings collapse to one.
    """
    targets = [jax.lax.stop_gradient(z) for z in embeddings]
    terms = [-mean_cosine(p, z) for p, z in other_view_pairs(predictions, targets)]
    return jnp.mean(jnp.stack(terms))


@dataclass(frozen=True)
class SimSiam(Method):
    """One network with a predictor, whose learning rate is constant."""

    hidden_size: int = field(2048, positive(1e6), "width of the projector's hidden layers")
    predictor_size: int = field(512, positive(1e6), "width of the predictor's hidden layer")
    output_size: int = field(2048, positive(1e6), "dimensions of the embedding")

    constant_rate = ("predictor",)

    def heads(self, encoder, rngs) -> Heads:
        """Three layers with BatchNorm behind each, and two; biases in the last ones alone.

        The projector's bias is never trained: the BatchNorm behind it takes it out again.
        """
        hidden, out = self.hidden_size, self.output_size
        options = {"bias": False, "dtype": encoder.dtype, "rngs": rngs}
        sizes = encoder.num_features, hidden, hidden, out
        projector = freeze_last_bias(MLP(sizes, last_batch_norm=True, **options))
        return Heads(projector, MLP((out, self.predictor_size, out), **options))

    def __call__(self, online: Outputs, target: Outputs | None, buffers: dict, moment: Moment):
        """See `Method`. Metrics: `agreement` of a prediction with its target."""
        with jax.named_scope("loss"):
            loss = simsiam_loss(online.predictions, online.embeddings)
        return loss, buffers, agreement(online.predictions[0], online.embeddings[1])
