"""BYOL: predict the momentum network's embedding of another view.

Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resa_jax.methods.similarity import mean_cosine, other_view_pairs


def byol_loss(
    predictions: Sequence[Float[Array, "m d"]], momentum_embeddings: Sequence[Float[Array, "m d"]]
) -> Float[Array, ""]:
    """Sum over the pairs u != v of mean_i 2 - 2 cos(p_ui, z_vi).

    Equation 2 of the paper, in both directions; pairs as in solo-learn (solo/methods/byol.py).

    Args:
      predictions: one array a view, small crops included.
      momentum_embeddings: those of the first views; no gradient flows through them.

    A *sum*: the learning rates of BYOL's recipes assume it, and a mean would halve the gradient.
    """
    targets = [jax.lax.stop_gradient(z) for z in momentum_embeddings]
    terms = [2 - 2 * mean_cosine(p, z) for p, z in other_view_pairs(predictions, targets)]
    return jnp.sum(jnp.stack(terms))
