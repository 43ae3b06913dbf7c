"""SimCLR: of all other embeddings, an embedding must find those of its own image.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resa_jax.methods.similarity import matmul, normalize, other_view_pairs
from resa_jax.sharding import gather_rows, shard_rows


def simclr_loss(
    embeddings: Sequence[Float[Array, "m d"]], temperature: float = 0.2
) -> Float[Array, ""]:
    """NT-Xent: mean over all rows i of -log(sum_{j in P(i)} e^{s_ij} / sum_{j != i} e^{s_ij}).

    s are cosines divided by the temperature; i and j run over the rows of all views, and P(i) are
    the other views of the same image (one, with two views). Equation 1 of the paper; more than two
    views as in solo-learn (solo/losses/simclr.py).

    The denominator holds the other images of the *same* view too, and not i itself. Google's
    objective.py adds the two directions, which gives twice this mean. Gradients flow into both
    sides of every product. Under a mesh the views are all-gathered, the similarities are not.
    """
    views = [normalize(z) for z in embeddings]
    columns = jnp.concatenate([gather_rows(z) for z in views])
    m = len(views[0])
    row, column = jnp.arange(m)[:, None], jnp.arange(len(columns))[None]
    positives = {id(z): [] for z in views}
    for z, other in other_view_pairs(views, views):
        positives[id(z)].append(jnp.sum(z * other, axis=1) / temperature)
    terms = []
    for v, z in enumerate(views):
        logits = shard_rows(matmul(shard_rows(z), columns.T)) / temperature
        logits = jnp.where(column == row + v * m, -jnp.inf, logits)
        positive = jax.nn.logsumexp(jnp.stack(positives[id(z)]), axis=0)
        terms.append(jnp.mean(jax.nn.logsumexp(logits, axis=1) - positive))
    return sum(terms) / len(terms)
