"""The train state and the train step, shared by every method with an EMA network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes, as nested dicts of arrays.

    `ema_params` holds those children of `params` that the EMA network shares (all but the
    predictor); it is empty in recipes without one. Batch statistics are never averaged: each
    network keeps its own. `step` counts the steps done, int32.
    """

    # A pytree may hold shapes or shardings in the place of arrays, hence Any.
    step: Any
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    ema_params: dict[str, Any]
    ema_batch_stats: dict[str, Any]
    opt_state: Any


def create_train_state(
    params: dict, batch_stats: dict, optimizer: optax.GradientTransformation, *, ema: bool
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
        opt_state=optimizer.init(params),
    )


def make_train_step(
    objective: Callable,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    ema_rate: optax.Schedule,
) -> Callable[..., tuple[TrainState, dict]]:
    """The pure function `train_step(state, views) -> (state, metrics)`, to be jitted.

    Args:
      objective: a method; `objective(params, batch_stats, ema_params, ema_batch_stats, views)`
        returns the loss and `(batch_stats, ema_batch_stats, metrics)`.
      optimizer: gets the gradients of the global batch.
      learning_rate: only reported; the optimiser holds the same schedule.
      ema_rate: 1 minus the EMA coefficient at each step (so that float32 keeps its digits as the
        coefficient nears 1).
    """

    def train_step(state: TrainState, views) -> tuple[TrainState, dict]:
        # The authors' order: the EMA network first takes in the parameters from *before* this
        # step's update, then gives the targets.
        rate = ema_rate(state.step)
        shared = {name: state.params[name] for name in state.ema_params}
        ema_params = optax.incremental_update(shared, state.ema_params, rate)

        grad = jax.value_and_grad(objective, has_aux=True)
        (loss, aux), gradients = grad(
            state.params, state.batch_stats, ema_params, state.ema_batch_stats, views
        )
        batch_stats, ema_batch_stats, metrics = aux

        with jax.named_scope("update"):
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
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
            opt_state=opt_state,
        )
        return state, metrics

    return train_step
