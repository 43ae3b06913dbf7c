"""linear-imagenet: linear classifiers trained on augmented views through the frozen encoder."""

from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from resa_jax.encoder import Encoder
from resa_jax.evaluation.preprocessing import Preprocessing
from resa_jax.evaluation.training import (
    Subset,
    TrainingView,
    heads_loss,
    initial_heads,
    last_and_best,
    logits_accuracy,
    over_images,
    report_epoch,
    sgd,
    training_batches,
)
from resa_jax.sharding import create_mesh, replicated


def linear_imagenet(
    protocol: Any,
    encoder: Encoder,
    preprocessing: Preprocessing,
    train: Subset,
    test: Subset,
    seed: int,
) -> dict[str, dict]:
    """One linear classifier for each learning rate, trained on the same augmented views.

    Cross-entropy, SGD with momentum, the rates times batch_size / 256; kernels start from
    N(0, 0.01), biases from 0. The encoder stays in evaluation mode.

    Args:
      protocol: `protocols.LinearImageNet` with its rates and blocks filled in.

    Returns:
      For each rate the accuracies after the last epoch and in the best one (by top-1).

    Source: resa, eval_linear.py.
    """
    mesh = create_mesh()
    read = partial(encoder.replicate(mesh).linear_features, blocks=protocol.blocks)
    view = TrainingView(preprocessing, protocol.crop_scale)
    outputs, test_labels = over_images(
        lambda *images: {"linear": read(*images, prepare=preprocessing)},
        test,
        protocol.batch_size,
        mesh,
    )
    held_out = outputs["linear"]
    num_classes = int(train.labels.max()) + 1
    heads = initial_heads(jax.random.key(seed), len(protocol.rates), held_out.shape[1], num_classes)
    rest = protocol.momentum, protocol.weight_decay
    state = jax.vmap(sgd(0.0, *rest).init)(heads)
    heads, state = jax.device_put((heads, state), replicated(mesh))

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(heads, state, features, labels, rates):
        def move(head, state, gradient, rate):
            updates, state = sgd(rate, *rest).update(gradient, state, head)
            return optax.apply_updates(head, updates), state

        gradients = jax.grad(heads_loss)(heads, features, labels)
        return jax.vmap(move)(heads, state, gradients, rates)

    curves = []
    for epoch in range(protocol.epochs):
        drops = sum(epoch >= milestone for milestone in protocol.milestones)
        rates = np.array(protocol.rates, np.float32) * protocol.batch_size / 256
        rates = rates * np.float32(protocol.gamma**drops)
        batches = training_batches(train, protocol.batch_size, seed, epoch, filled=True)
        for *inputs, labels in batches:
            heads, state = step(heads, state, read(*inputs, prepare=view), labels, rates)
        curves.append(_accuracies(heads, held_out, test_labels))
        report_epoch(epoch, protocol.epochs, max(scores["top1"] for scores in curves[-1]))
    return {
        f"rate={rate:g}": last_and_best([scores[n] for scores in curves])
        for n, rate in enumerate(protocol.rates)
    }


def _accuracies(heads, features, labels):
    kernels, biases = np.asarray(heads["kernel"]), np.asarray(heads["bias"])
    return [
        logits_accuracy(features @ kernel + bias, labels)
        for kernel, bias in zip(kernels, biases, strict=True)
    ]
