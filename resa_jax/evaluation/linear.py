"""The authors' linear probe for CIFAR: a softmax classifier on unnormalised features."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Num

from resa_jax.evaluation.knn import topk_accuracy


def linear_cifar(
    train: Num[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, " n"],
    test: Num[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, " m"],
    *,
    seed: int,
    epochs: int = 500,
    batch_size: int = 1000,
    first_rate: float = 1e-2,
    last_rate: float = 1e-6,
    weight_decay: float = 5e-6,
) -> dict[str, float]:
    """Accuracy after the last epoch of a linear classifier trained on features.

    Adam (betas 0.9 and 0.999) with the L2 term weight_decay * parameter added to the gradient, a
    learning rate that falls geometrically from epoch to epoch, shuffled each epoch, the last
    partial batch kept, PyTorch's default initialisation of a Linear layer.

    Args:
      train, train_labels: features and classes (integers from 0) to fit.
      test, test_labels: features and classes to score.
      seed: of the initialisation and the shuffling.
      epochs, batch_size, weight_decay: as named.
      first_rate, last_rate: epoch e's rate is first_rate * (last_rate / first_rate)^(e / epochs).

    Returns:
      {"top1": percent, "top5": percent}; equal logits in the order of their labels.

    Source: resa_cifar, eval/evaluate.py; Table 1.
    """
    num_classes = int(train_labels.max()) + 1
    parameters = fit_linear_cifar(
        train,
        train_labels,
        num_classes=num_classes,
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        first_rate=first_rate,
        last_rate=last_rate,
        weight_decay=weight_decay,
    )
    return topk_accuracy(linear_ranking(parameters, test), test_labels)


def fit_linear_cifar(
    train: Num[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, " n"],
    *,
    num_classes: int,
    seed: int,
    epochs: int = 500,
    batch_size: int = 1000,
    first_rate: float = 1e-2,
    last_rate: float = 1e-6,
    weight_decay: float = 5e-6,
) -> dict[str, Float[Array, "..."]]:
    """The classifier of `linear_cifar`: {"kernel": [d, classes], "bias": [classes]}, float32.

    With key = jax.random.key(seed): `initial_linear(fold_in(key, 0), ...)`, and epoch e visits the
    rows in the order permutation(fold_in(fold_in(key, 1), e), n).
    """
    key = jax.random.key(seed)
    parameters = initial_linear(jax.random.fold_in(key, 0), train.shape[1], num_classes)
    return _fit(
        parameters,
        jax.random.fold_in(key, 1),
        jnp.asarray(train, jnp.float32),
        jnp.asarray(train_labels, jnp.int32),
        epochs=epochs,
        batch_size=min(batch_size, len(train)),
        rates=(first_rate, last_rate),
        weight_decay=weight_decay,
    )


def initial_linear(key: Array, num_inputs: int, num_outputs: int) -> dict[str, Float[Array, "..."]]:
    """PyTorch's default for a Linear layer: uniform within 1 / sqrt(num_inputs) of zero."""
    bound = num_inputs**-0.5
    kernel_key, bias_key = jax.random.split(key)
    shape = (num_inputs, num_outputs)
    return {
        "kernel": jax.random.uniform(kernel_key, shape, jnp.float32, -bound, bound),
        "bias": jax.random.uniform(bias_key, (num_outputs,), jnp.float32, -bound, bound),
    }


def linear_ranking(
    parameters: dict[str, Float[Array, "..."]], features: Num[np.ndarray, "m d"]
) -> Int[np.ndarray, "m r"]:
    """The first five classes by logit for each row, equal logits by label, best first."""
    kernel, bias = np.asarray(parameters["kernel"]), np.asarray(parameters["bias"])
    logits = features.astype(np.float32) @ kernel + bias
    return np.argsort(-logits, axis=1, kind="stable")[:, :5]


@partial(jax.jit, static_argnames=("epochs", "batch_size", "rates", "weight_decay"))
def _fit(
    parameters: dict[str, Array],
    key: Array,
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    *,
    epochs: int,
    batch_size: int,
    rates: tuple[float, float],
    weight_decay: float,
) -> dict[str, Array]:
    n = len(features)
    steps = -(-n // batch_size)
    optimizer = optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_adam(),
        optax.scale_by_learning_rate(
            lambda step: rates[0] * (rates[1] / rates[0]) ** ((step // steps) / epochs)
        ),
    )

    def loss(parameters, rows, weights):
        logits = jnp.matmul(
            features[rows], parameters["kernel"], precision=jax.lax.Precision.HIGHEST
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits + parameters["bias"], labels[rows]
        )
        return (losses * weights).sum() / weights.sum()

    def step(carry, batch):
        parameters, state = carry
        gradients = jax.grad(loss)(parameters, *batch)
        updates, state = optimizer.update(gradients, state, parameters)
        return (optax.apply_updates(parameters, updates), state), None

    def epoch(carry, number):
        order = jax.random.permutation(jax.random.fold_in(key, number), n)
        # The last batch is filled up with rows of weight zero.
        rows = jnp.zeros(steps * batch_size, order.dtype).at[:n].set(order)
        weights = (jnp.arange(steps * batch_size) < n).astype(jnp.float32)
        batches = rows.reshape(steps, batch_size), weights.reshape(steps, batch_size)
        return jax.lax.scan(step, carry, batches)

    carry = parameters, optimizer.init(parameters)
    (parameters, _), _ = jax.lax.scan(epoch, carry, jnp.arange(epochs))
    return parameters
