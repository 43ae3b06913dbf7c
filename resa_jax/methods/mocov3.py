"""MoCo v3: among the momentum embeddings of the batch, find the one of the same image.

Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resa_jax.fields import field, positive
from resa_jax.methods.health import agreement
from resa_jax.methods.interface import Heads, Method, Moment, Outputs
from resa_jax.methods.similarity import cosine_similarity, normalize, other_view_pairs
from resa_jax.models.heads import MLP


def mocov3_loss(
    predictions: Sequence[Float[Array, "m d"]],
    momentum_embeddings: Sequence[Float[Array, "m d"]],
    temperature: float = 0.2,
) -> Float[Array, ""]:
    """Sum over the pairs u != v of 2 tau CE(softmax_j(cos(p_ui, z_vj) / tau), i).

    Algorithm 1 of the paper (moco/builder.py). The directions are *added*, and each is scaled by
    2 tau, which keeps the gradient's size when the temperature changes. Negatives are the other
    images of the other view alone. No gradient flows into the momentum embeddings.
    """
    terms = []
    targets = [jax.lax.stop_gradient(z) for z in momentum_embeddings]
    for p, z in other_view_pairs(predictions, targets):
        logits = cosine_similarity(p, z) / temperature
        positive = jnp.sum(normalize(p) * normalize(z), axis=1) / temperature
        cross_entropy = jnp.mean(jax.nn.logsumexp(logits, axis=1) - positive)
        terms.append(2 * temperature * cross_entropy)
    return jnp.sum(jnp.stack(terms))


@dataclass(frozen=True)
class MoCoV3(Method):
    """An online network with a predictor and its EMA; solo-learn's settings for CIFAR (Table 1)."""

    temperature: float = field(0.2, positive(1000), "of the softmax over the similarities")
    hidden_size: int = field(4096, positive(1e6), "width of the heads' hidden layers")
    output_size: int = field(256, positive(1e6), "dimensions of the embedding")
    three_layers: bool = field(False, "a projector of three layers behind ConvNets too (Figure 9)")

    momentum_network = True
    ema_after_step = True

    def heads(self, encoder, rngs) -> Heads:
        """Without biases. Behind ConvNets two layers each, the projector ending in BatchNorm;
        behind ViTs three and two, both ending in it.
        """
        hidden, out = self.hidden_size, self.output_size
        vit = encoder.family == "vit"
        deep = vit or self.three_layers
        options = {"bias": False, "last_bias": False, "dtype": encoder.dtype, "rngs": rngs}
        sizes = encoder.num_features, *([hidden] * (2 if deep else 1)), out
        projector = MLP(sizes, last_batch_norm=True, **options)
        return Heads(projector, MLP((out, hidden, out), last_batch_norm=vit, **options))

    def __call__(self, online: Outputs, target: Outputs | None, buffers: dict, moment: Moment):
        """See `Method`. Metrics: `agreement` of a prediction with its target."""
        assert target is not None
        with jax.named_scope("loss"):
            loss = mocov3_loss(online.predictions, target.embeddings, self.temperature)
        return loss, buffers, agreement(online.predictions[0], target.embeddings[1])
