"""The compiled programs of a run: initial state, views, train step."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resa_jax.data.augment import augment
from resa_jax.data.decoding import Decoding
from resa_jax.data.view import View
from resa_jax.methods.interface import create_method
from resa_jax.sharding import batch_sharding, replicated, state_sharding
from resa_jax.training.flops import train_flops
from resa_jax.training.memory import required_bytes
from resa_jax.training.networks import Networks, create_networks, init_networks
from resa_jax.training.optimizer import create_optimizer
from resa_jax.training.schedule import warmup_cosine, warmup_drops
from resa_jax.training.step import TrainState, create_train_state, make_train_step


_LOG = logging.getLogger("resa_jax")


@dataclass(frozen=True)
class Programs:
    """What runs on the devices, compiled for a mesh.

    Attributes:
      networks: their structure.
      abstract_state: shapes, dtypes and shardings of the train state.
      init: `init()` makes the state before the first step, in its place; compiled when it is first
        called, which a run that is resumed never does.
      make_views: `make_views(state.step, images, sizes)` augments a batch into the tuple of its
        views; their randomness is a function of (seed, step) alone.
      train_step: `train_step(state, views) -> (state, metrics)`; the state is donated.
      memory: bytes that `train_step` takes on each device.
      flops: model FLOPs that training takes for one image, all its views together.
    """

    networks: Networks
    abstract_state: TrainState
    init: Callable
    make_views: Callable
    train_step: Callable
    memory: int
    flops: float


def create_step(
    config: ConfigDict, steps_per_epoch: int, total_steps: int
) -> tuple[Networks, Callable[[], TrainState], Callable]:
    """A recipe's pure functions `init() -> state` and `train_step(state, views)`, and networks."""
    method = create_method(config.method)
    networks = create_networks(config, method)
    peak = config.base_lr * config.batch_size / 256
    remaining = total_steps - config.start_step
    learning_rate, ema_rate = (
        _from_step(config.start_step, schedule)
        for schedule in (
            create_schedule(config, peak, steps_per_epoch, remaining),
            warmup_cosine(1 - config.ema_momentum, 0.0, remaining),
        )
    )
    weight_decay = config.weight_decay
    if (final := config.optimizer.final_weight_decay) is not None:
        cosine = warmup_cosine(weight_decay, final, remaining)
        weight_decay = _from_step(config.start_step, cosine)
    optimizer = create_optimizer(
        config.optimizer.name,
        learning_rate,
        weight_decay,
        networks.frozen,
        constant_rate=method.constant_rate,
        peak=peak,
        own_start=round(method.own_start_epoch * steps_per_epoch),
        encoder_start=round(config.optimizer.encoder_start * steps_per_epoch),
        layer_decay=config.optimizer.layer_decay,
        decay_vectors=config.optimizer.decay_vectors,
        lars_trust=config.optimizer.lars_trust,
        lars_clip=config.optimizer.lars_clip,
        max_norm=config.optimizer.max_norm,
    )

    def init():
        key, _ = _keys(config.seed)
        params, batch_stats = init_networks(config, method, key, networks.width)
        buffers = method.buffers(config.batch_size, networks.width)
        ema = method.momentum_network
        return create_train_state(params, batch_stats, buffers, optimizer, ema=ema)

    train_step = make_train_step(
        method,
        networks,
        optimizer,
        learning_rate,
        ema_rate,
        steps_per_epoch=steps_per_epoch,
        seed=config.seed,
        gradient_reduction=config.gradient_reduction,
        micro_batches=config.micro_batches,
    )
    return networks, init, train_step


def _from_step(start: int, schedule: optax.Schedule) -> optax.Schedule:
    return schedule if start == 0 else lambda step: schedule(step - start)


def create_schedule(
    config: ConfigDict, peak: float, steps_per_epoch: int, total_steps: int
) -> optax.Schedule:
    """The learning rate of a recipe by the step."""
    warmup_steps = config.warmup_steps
    if warmup_steps is None:
        warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if warmup_steps > total_steps:
        _LOG.warning(
            "Warning: the warm-up takes %d steps (config.warmup_epochs=%g), and the run ends after "
            "%d: it never reaches its learning rate.",
            warmup_steps,
            config.warmup_epochs,
            total_steps,
        )
    start = config.warmup_start_lr
    if config.lr_drops is not None:
        drops = [total_steps - n * steps_per_epoch for n in config.lr_drops]
        return warmup_drops(peak, drops, warmup_steps, start)
    return warmup_cosine(peak, config.final_lr, total_steps, warmup_steps, start)


@dataclass(frozen=True)
class Lowered:
    """A run's programs for a mesh before they are compiled; the fields are those of `Programs`."""

    networks: Networks
    abstract_state: TrainState
    init: Callable
    make_views: jax.stages.Lowered
    train_step: jax.stages.Lowered


def lower_programs(
    config: ConfigDict, mesh: Mesh, canvas: tuple[int, ...], steps_per_epoch: int, total_steps: int
) -> Lowered:
    """Builds the programs of a recipe; the mesh's devices need not be at hand.

    Args:
      config: with numbers for data.mean and data.std.
      canvas: height, width and channels of the images that the host delivers.
      steps_per_epoch, total_steps: of the schedules.
    """
    networks, init, train_step = create_step(config, steps_per_epoch, total_steps)
    data, how = config.data, Decoding.of(config.data)
    views = tuple(View(**view) for view in config.views)

    def make_views(step, images, sizes):
        key, statistics = jax.random.fold_in(_keys(config.seed)[1], step), (data.mean, data.std)
        made = augment(key, images, sizes, views, *statistics, how.white)
        # In the dtype that the networks compute in, to which their first layer would bring them.
        return jax.tree.map(lambda view: view.astype(config.precision), made)

    # Shapes first: nothing is made before it is known where it goes.
    shapes = jax.eval_shape(init)
    state = jax.tree.map(_struct, shapes, state_sharding(mesh, shapes, config.sharding))
    rows, whole = batch_sharding(mesh), replicated(mesh)
    batch = (
        jax.ShapeDtypeStruct((config.batch_size, *canvas), how.dtype, sharding=rows),
        jax.ShapeDtypeStruct((config.batch_size, 3), jnp.int32, sharding=rows),
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    lowered_views = jax.jit(make_views, out_shardings=rows).lower(state.step, *batch)
    view_shapes = jax.tree.map(lambda view: _struct(view, rows), lowered_views.out_info)
    jitted_step = jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, whole))
    return Lowered(
        networks=networks,
        abstract_state=state,
        init=jax.jit(init, out_shardings=shardings),
        make_views=lowered_views,
        train_step=jitted_step.lower(state, view_shapes),
    )


def compile_programs(
    config: ConfigDict, mesh: Mesh, canvas: tuple[int, ...], steps_per_epoch: int, total_steps: int
) -> Programs:
    """Builds and compiles the programs of a recipe; arguments as those of `lower_programs`."""
    lowered = lower_programs(config, mesh, canvas, steps_per_epoch, total_steps)
    train_step = lowered.train_step.compile()
    return Programs(
        networks=lowered.networks,
        abstract_state=lowered.abstract_state,
        init=lowered.init,
        make_views=lowered.make_views.compile(),
        train_step=train_step,
        memory=required_bytes(train_step),
        flops=train_flops(config, lowered.networks.momentum is not None),
    )


def _keys(seed):
    """Of initialisation and of augmentation."""
    return jax.random.split(jax.random.key(seed))


def _struct(leaf, sharding):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
