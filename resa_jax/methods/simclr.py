"""SimCLR: of all other embeddings, an embedding must find those of its own image.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020; the
head and the settings of the CIFAR runs are solo-learn's (solo/methods/simclr.py), as in Table 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resa_jax.fields import field, positive
from resa_jax.methods.health import agreement
from resa_jax.methods.interface import Heads, Method, Moment, Outputs
from resa_jax.methods.similarity import matmul, normalize
from resa_jax.models.heads import MLP
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

    Examples:
      Two views of two images; log(1 + 2 e^(-1 / 0.2)):

      >>> z = jnp.eye(2)
      >>> print(f"{simclr_loss([z, z]):.4f}")
      0.0134
    """
    views = [normalize(z) for z in embeddings]
    columns = jnp.concatenate([gather_rows(z) for z in views])
    m = len(views[0])
    row, column = jnp.arange(m)[:, None], jnp.arange(len(columns))[None]
    terms = []
    for v, z in enumerate(views):
        logits = shard_rows(matmul(shard_rows(z), columns.T)) / temperature
        logits = jnp.where(column == row + v * m, -jnp.inf, logits)
        of_own_image = jnp.where(column % m == row, logits, -jnp.inf)
        terms.append(jax.nn.logsumexp(logits, axis=1) - jax.nn.logsumexp(of_own_image, axis=1))
    return jnp.mean(jnp.stack(terms))


@dataclass(frozen=True)
class SimCLR(Method):
    """One network, no target, no buffer."""

    temperature: float = field(0.2, positive(1000), "of the softmax over the similarities")
    hidden_size: int = field(2048, positive(1e6), "width of the projector's hidden layer")
    output_size: int = field(256, positive(1e6), "dimensions of the embedding")
    three_layers: bool = field(False, "a projector of three layers with BatchNorm (Figure 4)")

    def heads(self, encoder, rngs) -> Heads:
        """Two linear layers with a ReLU between, without BatchNorm, or three with both."""
        hidden = [self.hidden_size] * (2 if self.three_layers else 1)
        sizes = encoder.num_features, *hidden, self.output_size
        norm = self.three_layers
        return Heads(MLP(sizes, batch_norm=norm, dtype=encoder.dtype, rngs=rngs))

    def __call__(self, online: Outputs, target: Outputs | None, buffers: dict, moment: Moment):
        """See `Method`.

        Metrics: `agreement` of the first two views' embeddings.
        """
        with jax.named_scope("loss"):
            loss = simclr_loss(online.embeddings, self.temperature)
        return loss, buffers, agreement(*online.embeddings[:2])
