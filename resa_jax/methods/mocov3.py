"""MoCo v3: among the momentum embeddings of the batch, find the one of the same image.

Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resa_jax.methods.similarity import cosine_similarity, normalize, other_view_pairs


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
