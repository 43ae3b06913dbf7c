"""SGD, AdamW and Adam as PyTorch defines them, and solo-learn's LARS, put together from optax."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from resa_jax.training.lars import lars


def create_optimizer(
    name: str,
    learning_rate: optax.Schedule,
    weight_decay: optax.ScalarOrSchedule,
    frozen: dict[str, Any],
    *,
    constant_rate: tuple[str, ...] = (),
    peak: float = 0.0,
    own_start: int = 0,
    encoder_start: int = 0,
    layer_decay: float = 1.0,
    decay_vectors: bool = True,
    lars_trust: float = 0.02,
    lars_clip: bool = True,
    max_norm: float | None = None,
) -> optax.GradientTransformation:
    """The optimiser of a recipe.

    Args:
      name: "sgd" (momentum 0.9, decay added to the gradient), "adamw" (betas 0.9 and 0.999,
        epsilon 1e-8, decoupled decay times the learning rate), "adam" (the same, decay added to the
        gradient) or "lars" (see `lars`).
      learning_rate: a function of the step.
      weight_decay: of *every* parameter, biases and normalisation included, as the authors do;
        LARS leaves out those of one axis, and takes a number alone.
      frozen: nested dict of bools over the parameters; True ones are neither updated nor decayed.
      constant_rate: children of the parameters whose learning rate is `peak` at every step.
      own_start: steps in which the child "own" is neither updated nor decayed, and its moments not
        moved, as if it had no gradient.
      encoder_start: the same of the child "encoder".
      layer_decay: the learning rate of a block of the encoder over that of the block behind it, as
        Clark et al. (2020), ELECTRA, and Bao et al. (2021), BEiT, have it: of `factors`.
      decay_vectors: whether parameters of one axis, biases and normalisations, decay too.
      lars_trust, lars_clip: trust coefficient and clipping of `lars`.
      max_norm: each parameter's gradient is shortened to it, as DINO does; None for never.
    """

    starts = {"own": own_start, "encoder": encoder_start}

    def group(child):
        named = "constant" if child in constant_rate else "trained"
        return child if starts.get(child) else named

    mask = None if decay_vectors else _are_matrices
    ratio = {"trust_coefficient": lars_trust, "clip": lars_clip}

    def rule(rate, start=0):
        decay = _later(weight_decay, start) if callable(weight_decay) else weight_decay
        return _rule(name, _later(rate, start), decay, mask, ratio)

    rules = {
        "trained": rule(learning_rate),
        "constant": rule(lambda step: peak),
        **{child: _from_step(start, rule, learning_rate) for child, start in starts.items()},
        "frozen": optax.set_to_zero(),
    }
    optimizer = _partition(rules, frozen, group)
    if layer_decay != 1:
        optimizer = optax.chain(optimizer, _scale_encoder(factors(frozen["encoder"], layer_decay)))
    return optimizer if max_norm is None else optax.chain(_shorten_each(max_norm), optimizer)


def _shorten_each(max_norm):
    def shorten(gradient):
        return gradient * jnp.minimum(1, max_norm / (jnp.linalg.norm(gradient.ravel()) + 1e-6))

    return optax.stateless(lambda updates, _: jax.tree.map(shorten, updates))


def _scale_encoder(scale):
    def update(updates, _):
        encoder = {
            child: jax.tree.map(lambda leaf, child=child: leaf * scale[child], tree)
            for child, tree in updates["encoder"].items()
        }
        return updates | {"encoder": encoder}

    return optax.stateless(update)


def _partition(rules, frozen, group):
    """Each child of the parameters by its group's rule, frozen parameters by none."""
    labels = {
        child: jax.tree.map(lambda keep, child=child: "frozen" if keep else group(child), tree)
        for child, tree in frozen.items()
    }
    # "trained" and "frozen" have their place in every checkpoint.
    used = {"trained", "frozen"} | set(jax.tree.leaves(labels))
    chosen = {name: rule for name, rule in rules.items() if name in used}
    return optax.partition(chosen, labels)


def _from_step(start, rule, learning_rate):
    """A rule that begins at a step, as if the parameters had no gradient before."""
    later = rule(learning_rate, start)
    return optax.conditionally_mask(later, lambda step, **_: step >= start)


def _later(schedule, start):
    return lambda step: schedule(step + start)


def factors(encoder: dict[str, Any], layer_decay: float) -> dict[str, float]:
    """By what the learning rate of each child of an encoder is multiplied.

    1 for what comes behind the last block, `layer_decay` for that, its square for the one before,
    and so on to what comes before the first.
    """
    matches = {child: re.fullmatch(r"(?:blocks|layer(\d))_(\d+)", child) for child in encoder}
    places = {
        child: [int(n or 0) for n in match.groups()] for child, match in matches.items() if match
    }
    order = sorted(places, key=lambda child: places[child])
    depth = {child: 1 + place for place, child in enumerate(order)} | {"norm": len(order) + 1}
    return {child: layer_decay ** (len(order) + 1 - depth.get(child, 0)) for child in encoder}


def _are_matrices(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _rule(name, learning_rate, weight_decay, decayed, ratio):
    decay = optax.add_decayed_weights(weight_decay, decayed)
    if name == "sgd":
        return optax.chain(decay, optax.sgd(learning_rate, momentum=0.9))
    if name == "lars":
        return lars(learning_rate, weight_decay, **ratio)
    if name == "adam":
        return optax.chain(decay, optax.adam(learning_rate))
    return optax.adamw(learning_rate, weight_decay=weight_decay, mask=decayed)
