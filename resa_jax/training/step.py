"""The train state and the train step, shared by all methods."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from resa_jax.methods.interface import MOMENTUM_VIEWS, Method, Moment
from resa_jax.training.networks import Networks, Views, draw_branches, forward


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes, as nested dicts of arrays.

    `ema_params` holds those children of `params` that the EMA network shares (all but the
    predictor); it is empty in methods without one. Batch statistics are never averaged: each
    network keeps its own. `buffers` is what the method keeps from step to step. `step` counts the
    steps done, int32.
    """

    # A pytree may hold shapes or shardings in the place of arrays, hence Any.
    step: Any
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    ema_params: dict[str, Any]
    ema_batch_stats: dict[str, Any]
    buffers: dict[str, Any]
    opt_state: Any

    @property
    def evaluated(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters and batch statistics that evaluation reads: the EMA's where there is one."""
        if self.ema_params:
            return self.ema_params, self.ema_batch_stats
        return self.params, self.batch_stats


def create_train_state(
    params: dict[str, Any],
    batch_stats: dict[str, Any],
    buffers: dict[str, Any],
    optimizer: optax.GradientTransformation,
    *,
    ema: bool,
) -> TrainState:
    """The state before the first step; the EMA network starts as an exact copy."""

    def shared(tree):
        # A copy, since the step donates every buffer of the state and may not meet one twice.
        kept = {name: child for name, child in tree.items() if ema and name != "predictor"}
        return jax.tree.map(jnp.copy, kept)

    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        ema_params=shared(params),
        ema_batch_stats=shared(batch_stats),
        buffers=buffers,
        opt_state=optimizer.init(params),
    )


def make_objective(
    method: Method,
    networks: Networks,
    steps_per_epoch: int,
    seed: int,
    reduction: str = "float32",
    micro_batches: int = 1,
) -> Callable[..., tuple[jax.Array, tuple]]:
    """What the step differentiates: `objective(params, state, ema_params, views)`.

    Returns:
      A function that gives the loss and `(batch_stats, ema_batch_stats, buffers, metrics)`.
    """

    def objective(params, state, ema_params, views):
        how = reduction, micro_batches
        method_key, path_key = (jax.random.fold_in(key, state.step) for key in _keys(seed))
        branches = [
            draw_branches(networks.drop_path, jax.random.fold_in(path_key, number), len(view))
            for number, view in enumerate(views)
            if networks.drop_path
        ]
        online, batch_stats = forward(
            networks.online, params, state.batch_stats, views, *how, branches
        )
        target, ema_batch_stats = None, state.ema_batch_stats
        if networks.momentum is not None:
            target, ema_batch_stats = forward(
                networks.momentum, ema_params, ema_batch_stats, views[:MOMENTUM_VIEWS], *how
            )
            target = jax.lax.stop_gradient(target)
        moment = Moment(
            step=state.step,
            epoch=state.step / steps_per_epoch,
            key=method_key,
        )
        loss, buffers, metrics = method(online, target, state.buffers, moment)
        return loss, (batch_stats, ema_batch_stats, buffers, metrics)

    return objective


def _keys(seed: int) -> list[jax.Array]:
    """Of the method's and of drop path's random numbers, apart from those of `programs`."""
    return [jax.random.fold_in(jax.random.key(seed), number) for number in (2, 3)]


def make_train_step(
    method: Method,
    networks: Networks,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    ema_rate: optax.Schedule,
    *,
    steps_per_epoch: int,
    seed: int,
    gradient_reduction: str = "float32",
    micro_batches: int = 1,
) -> Callable[[TrainState, Views], tuple[TrainState, dict[str, jax.Array]]]:
    """The pure function `train_step(state, views) -> (state, metrics)`, to be jitted.

    Args:
      optimizer: gets the gradients of the global batch.
      learning_rate: only reported; the optimiser holds the same schedule.
      ema_rate: 1 minus the EMA coefficient at each step (so that float32 keeps its digits as the
        coefficient nears 1).
      steps_per_epoch, seed: what a method's `Moment` is made of.
      gradient_reduction: dtype of the gradients' sum over devices, "float32" or "bfloat16".
      micro_batches: see `resa_jax.training.networks.forward`.
    """

    how = gradient_reduction, micro_batches
    objective = make_objective(method, networks, steps_per_epoch, seed, *how)

    def train_step(state: TrainState, views: Views) -> tuple[TrainState, dict[str, jax.Array]]:
        rate, ema_params = ema_rate(state.step), state.ema_params
        if not method.ema_after_step:
            # The authors' order: the EMA network first takes in the parameters from *before* this
            # step's update, then gives the targets.
            ema_params = _moved(ema_params, state.params, rate)

        grad = jax.value_and_grad(objective, has_aux=True)
        (loss, aux), gradients = grad(state.params, state, ema_params, views)
        batch_stats, ema_batch_stats, buffers, metrics = aux

        with jax.named_scope("update"):
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        if method.ema_after_step:
            ema_params = _moved(ema_params, params, rate)
        metrics = metrics | {
            "loss": loss,
            "learning_rate": learning_rate(state.step),
            "ema_momentum": 1 - rate,
        }
        state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            ema_params=ema_params,
            ema_batch_stats=ema_batch_stats,
            buffers=buffers,
            opt_state=opt_state,
        )
        return state, metrics

    return train_step


def _moved(ema_params, params, rate):
    shared = {name: params[name] for name in ema_params}
    return optax.incremental_update(shared, ema_params, rate)
