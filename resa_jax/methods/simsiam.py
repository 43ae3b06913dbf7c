"""SimSiam: predict the embedding of another view, with one network and a stop-gradient.

Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resa_jax.methods.similarity import mean_cosine, other_view_pairs


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
