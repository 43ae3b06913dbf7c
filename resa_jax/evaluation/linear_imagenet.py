"""linear-imagenet: linear classifiers trained on augmented views through the frozen encoder."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from resa_jax.data.augment import augment
from resa_jax.evaluation.features import Preprocessing, TrainedNetwork, last_tokens
from resa_jax.evaluation.protocols import LinearImageNet
from resa_jax.evaluation.training import (
    Subset,
    heads_loss,
    initial_heads,
    last_and_best,
    logits_accuracy,
    over_images,
    report_epoch,
    sgd,
    training_batches,
    training_view,
)
from resa_jax.models.encoders import is_vit


def resolve_linear(
    protocol: LinearImageNet, network: TrainedNetwork, pretraining_batch: int | None
) -> LinearImageNet:
    """Fills in the learning rate (Table 9) and the blocks by architecture.

    Args:
      pretraining_batch: the run's global batch: ConvNets pre-trained with 1024 images take the rate
        40, with 128 (ImageNet-100) 5, with 256 or an unknown number 10.
    """
    name = network.spec.name
    large = is_vit(name) and name.split("_")[1][0] in "bl"
    rates, blocks = protocol.rates, protocol.blocks
    if not rates and is_vit(name):
        rates = (0.02,) if large else (0.03,)
    elif not rates:
        size = pretraining_batch or 256
        rates = (40.0,) if size >= 1024 else (5.0,) if size <= 128 else (10.0,)
    if not is_vit(name):
        blocks = 0
    elif not blocks:
        depth = nnx.merge(
            network.encoder, network.params["encoder"], network.batch_stats["encoder"]
        ).depth
        blocks = 1 if large else min(4, depth)
    return dataclasses.replace(protocol, rates=rates, blocks=blocks)


def linear_imagenet(
    protocol: LinearImageNet,
    network: TrainedNetwork,
    preprocessing: Preprocessing,
    train: Subset,
    test: Subset,
    seed: int,
) -> dict[str, dict]:
    """One linear classifier for each learning rate, trained on the same augmented views.

    Cross-entropy, SGD with momentum, the rates times batch_size / 256; kernels start from
    N(0, 0.01), biases from 0. The encoder stays in evaluation mode.

    Returns:
      For each rate the accuracies after the last epoch and in the best one (by top-1).

    Source: resa, eval_linear.py.
    """
    params, batch_stats = jax.tree.map(jnp.asarray, (network.params, network.batch_stats))
    encode = partial(last_tokens, network, blocks=protocol.blocks)
    view = training_view(protocol, preprocessing)

    @jax.jit
    def test_features(params, batch_stats, images, sizes):
        return encode(params, batch_stats, preprocessing(images, sizes))

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(heads, trace, params, batch_stats, key, images, sizes, labels, rates):
        (inputs,) = augment(key, images, sizes, (view,), preprocessing.mean, preprocessing.std)
        features = encode(params, batch_stats, inputs)
        gradients = jax.grad(heads_loss)(heads, features, labels)
        return sgd(heads, trace, gradients, rates, protocol.momentum, protocol.weight_decay)

    held_out, test_labels = over_images(
        partial(test_features, params, batch_stats), test, protocol.batch_size
    )
    num_classes = int(train.labels.max()) + 1
    heads = initial_heads(jax.random.key(seed), len(protocol.rates), held_out.shape[1], num_classes)
    trace = jax.tree.map(jnp.zeros_like, heads)
    curves = []
    for epoch in range(protocol.epochs):
        drops = sum(epoch >= milestone for milestone in protocol.milestones)
        rates = np.array(protocol.rates, np.float32) * protocol.batch_size / 256
        rates = rates * np.float32(protocol.gamma**drops)
        for batch in training_batches(train, protocol.batch_size, seed, epoch):
            heads, trace = step(heads, trace, params, batch_stats, *batch, rates)
        kernel, bias = np.asarray(heads["kernel"]), np.asarray(heads["bias"])
        curves.append(
            [
                logits_accuracy(held_out @ k + b, test_labels)
                for k, b in zip(kernel, bias, strict=True)
            ]
        )
        report_epoch(epoch, protocol.epochs, max(scores["top1"] for scores in curves[-1]))
    return {
        f"rate={rate:g}": last_and_best([scores[n] for scores in curves])
        for n, rate in enumerate(protocol.rates)
    }
