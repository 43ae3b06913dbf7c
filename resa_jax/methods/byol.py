"""BYOL: predict the momentum network's embedding of another view.

Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020.
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
from resa_jax.models.heads import MLP


def byol_loss(
    predictions: Sequence[Float[Array, "m d"]], momentum_embeddings: Sequence[Float[Array, "m d"]]
) -> Float[Array, ""]:
    """Sum over the pairs u != v of mean_i 2 - 2 cos(p_ui, z_vi).

    Equation 2 of the paper, in both directions; pairs as in solo-learn (solo/methods/byol.py).

    Args:
      predictions: one array a view, small crops included.
      momentum_embeddings: those of the first views; no gradient flows through them.

    A *sum*: the learning rates of BYOL's recipes assume it, and a mean would halve the gradient.

    Examples:
      >>> z = jnp.eye(2)
      >>> print(byol_loss([z, z], [z, z]), byol_loss([z, z], [-z, -z]))
      0.0 8.0
    """
    targets = [jax.lax.stop_gradient(z) for z in momentum_embeddings]
    terms = [2 - 2 * mean_cosine(p, z) for p, z in other_view_pairs(predictions, targets)]
    return jnp.sum(jnp.stack(terms))


@dataclass(frozen=True)
class BYOL(Method):
    """An online network with a predictor and its EMA; solo-learn's settings for CIFAR (Table 1)."""

    hidden_size: int = field(4096, positive(1e6), "width of the projector's hidden layer")
    predictor_size: int = field(4096, positive(1e6), "width of the predictor's hidden layer")
    output_size: int = field(256, positive(1e6), "dimensions of the embedding")

    momentum_network = True
    ema_after_step = True

    def heads(self, encoder, rngs) -> Heads:
        """Two linear layers each, with BatchNorm between."""
        out, options = self.output_size, {"dtype": encoder.dtype, "rngs": rngs}
        projector = MLP((encoder.num_features, self.hidden_size, out), **options)
        return Heads(projector, MLP((out, self.predictor_size, out), **options))

    def __call__(self, online: Outputs, target: Outputs | None, buffers: dict, moment: Moment):
        """See `Method`. Metrics: `agreement` of a prediction with its target."""
        assert target is not None
        with jax.named_scope("loss"):
            loss = byol_loss(online.predictions, target.embeddings)
        return loss, buffers, agreement(online.predictions[0], target.embeddings[1])
