"""SGD, AdamW and Adam as PyTorch defines them, and solo-learn's LARS, put together from optax."""

from typing import Any

import jax
import optax

from resa_jax.training.lars import lars


def create_optimizer(
    name: str,
    learning_rate: optax.Schedule,
    weight_decay: float,
    frozen: dict[str, Any],
    *,
    constant_rate: tuple[str, ...] = (),
    peak: float = 0.0,
    own_start: int = 0,
) -> optax.GradientTransformation:
    """The optimiser of a recipe.

    Args:
      name: "sgd" (momentum 0.9, decay added to the gradient), "adamw" (betas 0.9 and 0.999,
        epsilon 1e-8, decoupled decay times the learning rate), "adam" (the same, decay added to the
        gradient) or "lars" (see `lars`).
      learning_rate: a function of the step.
      weight_decay: of *every* parameter, biases and normalisation included, as the authors do;
        LARS leaves out those of one axis.
      frozen: nested dict of bools over the parameters; True ones are neither updated nor decayed.
      constant_rate: children of the parameters whose learning rate is `peak` at every step.
      own_start: steps in which the child "own" is neither updated nor decayed, and its moments not
        moved, as if it had no gradient.
    """

    def group(child):
        if child in constant_rate:
            return "constant"
        return "own" if child == "own" and own_start else "trained"

    later = _rule(name, lambda step: learning_rate(step + own_start), weight_decay)
    rules = {
        "trained": _rule(name, learning_rate, weight_decay),
        "constant": _rule(name, lambda step: peak, weight_decay),
        "own": optax.conditionally_mask(later, lambda step, **_: step >= own_start),
        "frozen": optax.set_to_zero(),
    }
    labels = {
        child: jax.tree.map(lambda keep, child=child: "frozen" if keep else group(child), tree)
        for child, tree in frozen.items()
    }
    # "trained" and "frozen" have their place in every checkpoint.
    used = {"trained", "frozen"} | set(jax.tree.leaves(labels))
    return optax.partition({name: rule for name, rule in rules.items() if name in used}, labels)


def _rule(name, learning_rate, weight_decay):
    decay = optax.add_decayed_weights(weight_decay)
    if name == "sgd":
        return optax.chain(decay, optax.sgd(learning_rate, momentum=0.9))
    if name == "lars":
        return lars(learning_rate, weight_decay)
    if name == "adam":
        return optax.chain(decay, optax.adam(learning_rate))
    return optax.adamw(learning_rate, weight_decay=weight_decay)
