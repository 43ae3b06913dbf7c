"""The two networks of a run: built from a recipe, initialised, and run over the views."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from resa_jax.errors import UserError
from resa_jax.methods.interface import MOMENTUM_VIEWS, Method, Outputs
from resa_jax.models.encoders import create_encoder
from resa_jax.models.network import Network, frozen_mask, split
from resa_jax.sharding import for_each_device, on_each_device


Views = Sequence[Float[Array, "m _ _ c"]]


@dataclass(frozen=True)
class Networks:
    """Structures of a run's networks; no arrays.

    Attributes:
      online: encoder, projector and perhaps predictor.
      momentum: the same without predictor; None for a method without an EMA network.
      width: dimensions of the embedding.
      frozen: nested dict like the parameters of `init_networks`, True for those which keep their
        values.
      drop_path: how often each block's branches are left out, of the online network.
    """

    online: nnx.GraphDef
    momentum: nnx.GraphDef | None
    width: int
    frozen: dict[str, Any]
    drop_path: tuple[float, ...] = ()

    @property
    def evaluated(self) -> nnx.GraphDef:
        """The network that evaluation reads: the momentum network where there is one."""
        return self.momentum or self.online


def build_network(config: ConfigDict, method: Method, rngs: nnx.Rngs) -> Network:
    """The online network of a recipe."""
    fields = config.encoder
    encoder = create_encoder(
        fields.name,
        image_size=fields.image_size,
        patch_size=fields.patch_size,
        width=fields.width,
        depth=fields.depth,
        channels=config.data.channels,
        zero_init=fields.zero_init,
        remat=fields.remat,
        dtype=jnp.bfloat16 if config.precision == "bfloat16" else None,
        rngs=rngs,
    )
    heads = method.heads(encoder, rngs)
    return Network(encoder, *heads, joint_projector=method.joint_projector)


def create_networks(config: ConfigDict, method: Method) -> Networks:
    """The networks' structures without making any array."""
    network = nnx.eval_shape(lambda: build_network(config, method, nnx.Rngs(0)))
    encoding = jax.ShapeDtypeStruct((2, network.encoder.num_features), jnp.float32)
    embeddings = nnx.eval_shape(lambda n, x: n(x, train=False), network.projector, encoding)
    drop_path = _drop_path(config.encoder, network.encoder)
    width = embeddings.shape[1]
    frozen = frozen_mask(network)
    own = jax.eval_shape(lambda: method.init(jax.random.key(0), width))
    if own:
        frozen["own"] = jax.tree.map(lambda leaf: False, own)
    online = split(network)[0]
    network.predictor = None
    momentum = split(network)[0] if method.momentum_network else None
    return Networks(online, momentum, width, frozen, drop_path)


def _drop_path(fields: ConfigDict, encoder: Any) -> tuple[float, ...]:
    if not fields.drop_path:
        return ()
    if encoder.family != "vit":
        raise UserError(
            f"encoder.drop_path is {fields.drop_path}, but {fields.name} is no ViT, whose branches "
            "alone are dropped here: leave it at 0."
        )
    # From nothing in the first block, as Touvron et al. (2021), DeiT, and DINO have it.
    return tuple(np.linspace(0, fields.drop_path, encoder.depth).tolist())


def init_networks(config: ConfigDict, method: Method, key: jax.Array, width: int):
    """The online network's initial `params` and `batch_stats`.

    Both are nested dicts with the keys "encoder", "projector" and, where the recipe has them,
    "predictor" and "own" (the method's parameters). The EMA network starts as a copy.
    """
    _, params, batch_stats = split(build_network(config, method, nnx.Rngs(key)))
    own = method.init(jax.random.fold_in(key, 1), width)
    return params | ({"own": own} if own else {}), batch_stats


def draw_branches(
    drop_path: tuple[float, ...], key: jax.Array, count: int
) -> Float[Array, "m blocks 2"]:
    """What the branches of a batch's images are multiplied by: 0, or 1 over how often it is not.

    Args:
      drop_path: how often 0, by block.
      key: of the step and view.
      count: images of the global batch.
    """
    kept = 1 - jnp.array(drop_path, jnp.float32)[:, None]
    return jax.random.bernoulli(key, kept, (count, len(drop_path), 2)) / kept


def forward(
    graphdef: nnx.GraphDef,
    params: dict[str, Any],
    batch_stats: dict[str, Any],
    views: Views,
    reduction: str = "float32",
    micro_batches: int = 1,
    branches: Sequence[Float[Array, "m blocks 2"]] = (),
) -> tuple[Outputs, dict[str, Any]]:
    """Runs a network over the views in train mode, each device on its own rows.

    A network with BatchNorm sees one view at a time, so that its statistics are of one view over
    the global batch and its running averages move view after view (a joint projector, see `Method`,
    sees them together). One without sees the first two views one at a time, since two do not fit
    into a TPU's memory on the chip where one does, and small crops of one size together. (The
    authors' code puts the views of every ViT together, also of those whose convolutional stem has
    BatchNorm.)

    Args:
      reduction: dtype in which the gradient of the parameters, which a device adds up over its rows
        and all views in their own dtype, is summed over the devices, once.
      micro_batches: parts that a device runs its rows in, one after the other, keeping of each its
        outputs alone; the backward pass runs it again (Gao et al., "Scaling Deep Contrastive
        Learning Batch Size under Memory Limited Setup", 2021). BatchNorm's statistics are then
        those of a part.
      branches: see `draw_branches`, for each view; none without `drop_path`.

    Returns:
      What it gave for each view, and the moved `batch_stats`.
    """
    own = params.get("own", {})
    shared = {name: tree for name, tree in params.items() if name != "own"}

    def local(params, batch_stats, views):
        params = for_each_device(params, reduction)

        def run(batch_stats, views):
            network = nnx.merge(graphdef, params, batch_stats)
            if jax.tree.leaves(batch_stats):
                outputs = network.views(views)
            else:
                outputs = _forward_crops_together(network, views)
            moved = nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))
            return moved, tuple(zip(*outputs, strict=True))

        if micro_batches == 1:
            batch_stats, outputs = run(batch_stats, views)
            return outputs, batch_stats
        parts = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), views)
        batch_stats, outputs = jax.lax.scan(jax.checkpoint(run), batch_stats, parts)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs), batch_stats

    with jax.named_scope("forward"):
        (encodings, embeddings, predictions), batch_stats = on_each_device(local)(
            shared, batch_stats, tuple(zip(views, *([branches] if branches else []), strict=True))
        )
    return Outputs(encodings, embeddings, predictions, own), batch_stats


def _forward_crops_together(network, views):
    outputs = network.views(views[:MOMENTUM_VIEWS])
    crops = views[MOMENTUM_VIEWS:]
    for _, group in itertools.groupby(crops, key=lambda view: view[0].shape):
        parts = list(group)
        together = (jnp.concatenate(arrays) for arrays in zip(*parts, strict=True))
        results = (jnp.split(x, len(parts)) for x in network(*together, train=True))
        outputs += zip(*results, strict=True)
    return outputs
