"""SGD and AdamW as PyTorch defines them, and solo-learn's LARS, put together from optax."""

import jax
import optax

from resa_jax.training.lars import lars


def create_optimizer(
    name: str, learning_rate: optax.Schedule, weight_decay: float, frozen
) -> optax.GradientTransformation:
    """The optimiser of a recipe.

    Args:
      name: "sgd" (momentum 0.9, decay added to the gradient), "adamw" (betas 0.9 and 0.999,
        epsilon 1e-8, decoupled decay times the learning rate) or "lars" (see `lars`).
      learning_rate: a function of the step.
      weight_decay: of *every* parameter, biases and normalisation included, as the authors do;
        LARS leaves out those of one axis.
      frozen: pytree of bools over the parameters; True ones are neither updated nor decayed.
    """
    if name == "sgd":
        trained = optax.chain(
            optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=0.9)
        )
    elif name == "lars":
        trained = lars(learning_rate, weight_decay)
    else:
        trained = optax.adamw(learning_rate, weight_decay=weight_decay)
    labels = jax.tree.map(lambda keep: "frozen" if keep else "trained", frozen)
    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)
