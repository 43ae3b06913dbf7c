"""The compiled programs of a run: initial state, views, train step."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resa_jax.data.augment import View, augment
from resa_jax.sharding import batch_sharding, replicated, state_sharding
from resa_jax.training.memory import required_bytes
from resa_jax.training.networks import ReSA, create_method, init_networks
from resa_jax.training.optimizer import create_optimizer
from resa_jax.training.schedule import warmup_cosine
from resa_jax.training.step import TrainState, create_train_state, make_train_step


@dataclass(frozen=True)
class Programs:
    """What runs on the devices, compiled for a mesh.

    Attributes:
      method: the networks' structure and the loss.
      abstract_state: shapes, dtypes and shardings of the train state.
      init: `init()` makes the state before the first step, in its place.
      make_views: `make_views(step, images, sizes)` augments a batch into the tuple of its views;
        their randomness is a function of (seed, step) alone.
      train_step: `train_step(state, views) -> (state, metrics)`; the state is donated.
      memory: bytes that `train_step` takes on each device.
    """

    method: ReSA
    abstract_state: TrainState
    init: Callable
    make_views: Callable
    train_step: Callable
    memory: int


def compile_programs(
    config: ConfigDict, mesh: Mesh, canvas: int, steps_per_epoch: int, total_steps: int
) -> Programs:
    """Builds and compiles the programs of a recipe.

    Args:
      config: with numbers for data.mean and data.std.
      canvas: side of the images that the host delivers, pixels.
      steps_per_epoch, total_steps: of the schedules.
    """
    method, frozen = create_method(config)
    learning_rate = warmup_cosine(
        config.base_lr * config.batch_size / 256,
        config.final_lr,
        total_steps,
        warmup_steps=round(config.warmup_epochs * steps_per_epoch),
    )
    ema_rate = warmup_cosine(1 - config.ema_momentum, 0.0, total_steps)
    optimizer = create_optimizer(config.optimizer.name, learning_rate, config.weight_decay, frozen)
    views = tuple(View(**view) for view in config.views)

    def init(key):
        params, batch_stats = init_networks(config, key)
        return create_train_state(params, batch_stats, optimizer, ema=config.momentum_network)

    def make_views(key, step, images, sizes):
        key = jax.random.fold_in(key, step)
        return augment(key, images, sizes, views, config.data.mean, config.data.std)

    # Shapes first: nothing is made before it is known where it goes.
    init_key, augment_key = jax.random.split(jax.random.key(config.seed))
    shapes = jax.eval_shape(init, init_key)
    state = jax.tree.map(_struct, shapes, state_sharding(mesh, shapes, config.sharding))
    rows, whole = batch_sharding(mesh), replicated(mesh)
    batch = (
        jax.ShapeDtypeStruct((config.batch_size, canvas, canvas, 3), jnp.uint8, sharding=rows),
        jax.ShapeDtypeStruct((config.batch_size, 2), jnp.int32, sharding=rows),
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    init = jax.jit(init, out_shardings=shardings).lower(init_key).compile()
    make_views = jax.jit(make_views, out_shardings=rows).lower(augment_key, 0, *batch)
    view_shapes = jax.tree.map(lambda view: _struct(view, rows), make_views.out_info)
    make_views = make_views.compile()
    train_step = jax.jit(
        make_train_step(method, optimizer, learning_rate, ema_rate),
        donate_argnums=0,
        out_shardings=(shardings, whole),
    )
    train_step = train_step.lower(state, view_shapes).compile()
    return Programs(
        method=method,
        abstract_state=state,
        init=lambda: init(init_key),
        make_views=lambda step, images, sizes: make_views(augment_key, step, images, sizes),
        train_step=train_step,
        memory=required_bytes(train_step),
    )


def _struct(leaf, sharding):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
