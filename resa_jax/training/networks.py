"""ReSA: two networks, one assignment, one cross-entropy (Figure 5 and Algorithm 1 of the paper)."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from resa_jax.methods.resa import (
    assignment_cross_entropy,
    cosine_similarity,
    resa_loss,
    sinkhorn_knopp,
)
from resa_jax.models.encoders import create_encoder, create_predictor, create_projector
from resa_jax.models.layers import Frozen


Views = Sequence[Float[Array, "m _ _ 3"]]


class Network(nnx.Module):
    """Encoder, projector and, for the online network of the ImageNet recipes, predictor."""

    def __init__(self, config: ConfigDict, *, predictor: bool, rngs: nnx.Rngs):
        name = config.encoder.name
        dtype = jnp.bfloat16 if config.precision == "bfloat16" else None
        self.encoder = create_encoder(
            name,
            image_size=config.encoder.image_size,
            patch_size=config.encoder.patch_size,
            width=config.encoder.width,
            depth=config.encoder.depth,
            remat=config.encoder.remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.projector = create_projector(
            name,
            self.encoder.num_features,
            hidden_size=config.projector.hidden_size,
            output_size=config.projector.output_size,
            dtype=dtype,
            rngs=rngs,
        )
        self.predictor = (
            create_predictor(
                name,
                config.projector.output_size,
                hidden_size=config.projector.hidden_size,
                dtype=dtype,
                rngs=rngs,
            )
            if predictor
            else None
        )

    def __call__(self, images: Float[Array, "n h w 3"], *, train: bool):
        """Images to encodings `[n, features]` and embeddings `[n, output_size]`."""
        encodings = self.encoder(images, train=train)
        embeddings = self.projector(encodings, train=train)
        if self.predictor is not None:
            embeddings = self.predictor(embeddings, train=train)
        return encodings, embeddings


@dataclass(frozen=True)
class ReSA:
    """The method bound to a recipe. Calling it gives the loss; it holds no arrays.

    Attributes:
      online, momentum: structures of the two networks; `momentum` is None in the ablation without a
        momentum network (Table 11).
      assignment: what the assignment is made of, in the weak view (the first): "encoding" (online x
        EMA encodings), "embedding" (Figure 10) or "momentum" (EMA x EMA encodings).
      temperature, epsilon, symmetric: see `resa_loss` and `sinkhorn_knopp`.
    """

    online: nnx.GraphDef
    momentum: nnx.GraphDef | None
    assignment: str
    temperature: float
    epsilon: float
    symmetric: bool

    def __call__(self, params, batch_stats, ema_params, ema_batch_stats, views: Views):
        """Loss of one global batch.

        Args:
          params, batch_stats, ema_params, ema_batch_stats: as in `TrainState`.
          views: augmented views, the weak one first; the EMA network sees the first two.

        Returns:
          The loss and `(batch_stats, ema_batch_stats, metrics)`.
        """
        encodings, embeddings, batch_stats = forward(self.online, params, batch_stats, views)
        if self.momentum is None:
            targets = encodings, embeddings
        else:
            *targets, ema_batch_stats = forward(
                self.momentum, ema_params, ema_batch_stats, views[:2]
            )
        target_encodings, target_embeddings = jax.lax.stop_gradient(targets)

        with jax.named_scope("assignment"):
            weak, target = {
                "encoding": (encodings[0], target_encodings[0]),
                "embedding": (embeddings[0], target_embeddings[0]),
                "momentum": (target_encodings[0], target_encodings[0]),
            }[self.assignment]
            assignment = sinkhorn_knopp(
                cosine_similarity(jax.lax.stop_gradient(weak), target), self.epsilon
            )
        with jax.named_scope("loss"):
            if self.momentum is None:
                loss = self._plain_loss(embeddings, assignment)
            else:
                loss = resa_loss(
                    embeddings, target_embeddings, assignment, self.temperature, self.symmetric
                )
        metrics = health(loss, assignment, embeddings[0])
        return loss, (batch_stats, ema_batch_stats, metrics)

    def _plain_loss(self, embeddings, assignment):
        # Table 11 without a momentum network: each pair of views once, both sides learn.
        terms = [
            assignment_cross_entropy(x, y, assignment, self.temperature, symmetric=True)
            for q, x in enumerate(embeddings)
            for y in embeddings[q + 1 :]
        ]
        return sum(terms) / len(terms)


def create_method(config: ConfigDict):
    """Binds the method to a recipe without making any array.

    Returns:
      The `ReSA` method, and a nested dict like the parameters of `init_networks` that is True for
      those which keep their values.
    """
    online, momentum = (
        nnx.eval_shape(lambda: Network(config, predictor=predictor, rngs=nnx.Rngs(0)))  # noqa: B023
        for predictor in (config.predictor, False)
    )
    frozen = jax.tree.map(
        lambda variable: isinstance(variable, Frozen),
        nnx.state(online, nnx.Param),
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )
    method = ReSA(
        online=split(online)[0],
        momentum=split(momentum)[0] if config.momentum_network else None,
        assignment=config.assignment,
        temperature=config.temperature,
        epsilon=config.epsilon,
        symmetric=config.symmetric,
    )
    return method, nnx.to_pure_dict(frozen)


def init_networks(config: ConfigDict, key: jax.Array):
    """The online network's initial `params` and `batch_stats`.

    Both are nested dicts with the keys "encoder", "projector" and, where the recipe has one,
    "predictor". The EMA network starts as a copy.
    """
    network = Network(config, predictor=config.predictor, rngs=nnx.Rngs(key))
    _, params, batch_stats = split(network)
    return params, batch_stats


def split(module: nnx.Module):
    """A module as `graphdef, params, batch_stats`, the last two plain nested dicts of arrays."""
    graphdef, params, batch_stats = nnx.split(module, nnx.Param, nnx.BatchStat)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def forward(graphdef: nnx.GraphDef, params, batch_stats, views: Views):
    """Runs a network over the views in train mode.

    A network with BatchNorm sees one view at a time, so that its statistics are of one view over
    the global batch and its running averages move view after view. One without sees the views of
    one size together. (The authors' code puts the views of every ViT together, also of those whose
    convolutional stem has BatchNorm.)

    Returns:
      The views' encodings, their embeddings, and the moved `batch_stats`.
    """
    network = nnx.merge(graphdef, params, batch_stats)
    with jax.named_scope("forward"):
        if jax.tree.leaves(batch_stats):
            outputs = [network(view, train=True) for view in views]
        else:
            outputs = _forward_concatenated(network, views)
    encodings, embeddings = zip(*outputs, strict=True)
    batch_stats = nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))
    return encodings, embeddings, batch_stats


def _forward_concatenated(network, views):
    outputs = [None] * len(views)
    sizes = [view.shape[1] for view in views]
    for size in dict.fromkeys(sizes):
        group = [i for i, s in enumerate(sizes) if s == size]
        # Stacked along a new axis, every device keeps its own images of each view.
        images = jnp.stack([views[i] for i in group], axis=1)
        images = images.reshape(-1, *images.shape[2:])
        encodings, embeddings = network(images, train=True)
        for n, i in enumerate(group):
            outputs[i] = encodings[n :: len(group)], embeddings[n :: len(group)]
    return outputs


def health(loss, assignment: Float[Array, "m m"], embeddings: Float[Array, "m d"]):
    """What tells learning from collapse, as scalars.

    `assignment_diagonal` is the mean weight an image gives itself and `assignment_entropy` the mean
    entropy of a row in nats (ln m when uniform); `kl` is the loss minus that entropy, 0 at least;
    `embedding_std` is the standard deviation over the batch of the L2-normalised embeddings
    of the first view, averaged over dimensions (1/sqrt(d) when they spread evenly, 0 when they
    collapse); `effective_rank` is their participation ratio, the squared sum of the covariance's
    eigenvalues over the sum of their squares, between 1 and d.
    """
    entropy = -jnp.mean(jnp.sum(jax.scipy.special.xlogy(assignment, assignment), axis=1))
    z = jax.lax.stop_gradient(embeddings).astype(assignment.dtype)
    z = z / jnp.maximum(jnp.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    z = z - jnp.mean(z, axis=0)
    variance = jnp.mean(jnp.square(z), axis=0)
    covariance = z.T @ z / len(z)
    return {
        "assignment_diagonal": jnp.mean(jnp.diagonal(assignment)),
        "assignment_entropy": entropy,
        "kl": jax.lax.stop_gradient(loss) - entropy,
        "embedding_std": jnp.mean(jnp.sqrt(variance)),
        "effective_rank": jnp.square(jnp.sum(variance))
        / jnp.maximum(jnp.sum(jnp.square(covariance)), 1e-24),
    }
