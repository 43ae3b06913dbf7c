"""An encoder with its heads, as modules and as plain trees of arrays."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from resa_jax.models.layers import Frozen


class Network(nnx.Module):
    """Encoder, projector and, for some methods' online network, predictor."""

    def __init__(
        self,
        encoder: nnx.Module,
        projector: nnx.Module | None = None,
        predictor: nnx.Module | None = None,
        *,
        joint_projector: bool = False,
    ):
        """
        Args:
          joint_projector: `views` projects the encodings of all views at once.
        """
        self.joint_projector = joint_projector
        self.encoder: Any = encoder
        self.projector: Any = projector
        self.predictor: Any = predictor

    def __call__(self, images: Float[Array, "n h w c"], *others: Array, train: bool):
        """Images to encodings [n, f], embeddings [n, d] and predictions [n, d].

        Without a predictor the predictions are the embeddings.

        Args:
          *others: what the encoder takes besides.
        """
        encodings = self.encoder(images, *others, train=train)
        return encodings, *self._project(encodings, train)

    def views(self, views: Sequence[tuple[Array, ...]]) -> list[tuple[Array, ...]]:
        """What a call gives in train mode, for the arguments of each view."""
        if not self.joint_projector:
            return [self(*view, train=True) for view in views]
        encodings = [self.encoder(*view, train=True) for view in views]
        outputs = self._project(jnp.concatenate(encodings), True)
        return list(zip(encodings, *(jnp.split(x, len(views)) for x in outputs), strict=True))

    def _project(self, encodings, train):
        embeddings = self.projector(encodings, train=train)
        if self.predictor is None:
            return embeddings, embeddings
        return embeddings, self.predictor(embeddings, train=train)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """What `layers` gives, in the order of the data flow."""
        return ("encoding", *(() if self.projector is None else self.projector.layer_names))

    def layers(
        self, images: Float[Array, "n h w c"], blocks: int | None = None
    ) -> dict[str, Float[Array, "n _"]]:
        """The "encoding" and, where there is a projector, its layers, in evaluation mode.

        Args:
          blocks: if given, there is "linear" alone: what a linear evaluation reads of the encoder's
            last blocks.
        """
        if blocks is not None:
            return {"linear": self.encoder.linear_features(images, blocks)}
        encodings = self.encoder(images, train=False)
        if self.projector is None:
            return {"encoding": encodings}
        return {"encoding": encodings} | self.projector.layers(encodings, train=False)


def split(module: nnx.Module) -> tuple[nnx.GraphDef, dict[str, Any], dict[str, Any]]:
    """A module as `graphdef, params, batch_stats`, the last two plain nested dicts of arrays."""
    graphdef, *states = nnx.split(module, nnx.Param, nnx.BatchStat)
    params, batch_stats = map(nnx.to_pure_dict, states)
    return graphdef, params, batch_stats


def frozen_mask(module: nnx.Module) -> dict[str, Any]:
    """A tree like the module's parameters that is True for those which keep their values."""
    mask = jax.tree.map(
        lambda variable: isinstance(variable, Frozen),
        nnx.state(module, nnx.Param),
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )
    return nnx.to_pure_dict(mask)


@partial(jax.jit, static_argnames=("graphdef", "prepare", "layers", "blocks"))
def evaluate_layers(
    graphdef: nnx.GraphDef,
    params: dict[str, Any],
    batch_stats: dict[str, Any],
    *arrays: Array,
    prepare: Callable[..., Array] | None = None,
    layers: tuple[str, ...] | None = None,
    blocks: int | None = None,
) -> dict[str, Float[Array, "n _"]]:
    """Named layers in evaluation mode, the one place where that is compiled.

    Networks of equal structure, as all checkpoints of a run, share the program.

    Args:
      graphdef, params, batch_stats: of a `Network`; parameters of the method's own do not count.
      arrays: normalised images [n, h, w, 3], or what `prepare` makes them of.
      prepare: hashable, as `Preprocessing` is.
      layers: those of `Network.layers` that are wanted; None for all.
      blocks: see `Network.layers`.
    """
    params = {name: child for name, child in params.items() if name != "own"}
    network = nnx.merge(graphdef, params, batch_stats)
    outputs = network.layers(arrays[0] if prepare is None else prepare(*arrays), blocks)
    return {name: outputs[name] for name in layers or outputs}
