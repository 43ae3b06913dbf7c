"""finetune-1 and finetune-10: encoder and classifier trained on a few labels."""

import math
import os
from collections import defaultdict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int

from resa_jax.data.augment import augment
from resa_jax.data.sources import Source
from resa_jax.errors import UserError
from resa_jax.evaluation.features import Preprocessing, TrainedNetwork
from resa_jax.evaluation.protocols import Finetune1
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
from resa_jax.models.layers import Frozen
from resa_jax.sharding import batch_sharding, create_mesh, replicated


def finetune(
    protocol: Finetune1,
    network: TrainedNetwork,
    preprocessing: Preprocessing,
    train: Subset,
    test: Subset,
    seed: int,
) -> dict[str, dict]:
    """Trains encoder and classifier, each with its rate; BatchNorm in train mode.

    SGD with momentum, both rates times batch_size / 256 and, in epoch e of n, times
    (1 + cos(pi e / n)) / 2; the last partial batch is kept.

    Returns:
      "finetune": the accuracies after the last epoch and in the best one (by top-1).

    Source: resa, eval_linear.py with --weights finetune.
    """
    num_features = nnx.merge(
        network.encoder, network.params["encoder"], network.batch_stats["encoder"]
    ).num_features
    heads = initial_heads(jax.random.key(seed), 1, num_features, int(train.labels.max()) + 1)
    params = {"encoder": jax.tree.map(jnp.array, network.params["encoder"]), "heads": heads}
    batch_stats = jax.tree.map(jnp.array, network.batch_stats["encoder"])
    trace = jax.tree.map(jnp.zeros_like, params)
    trained = _trained_mask(network)
    view = training_view(protocol, preprocessing)

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params, batch_stats, trace, key, images, sizes, labels, rates):
        (inputs,) = augment(key, images, sizes, (view,), preprocessing.mean, preprocessing.std)

        def loss(params):
            encoder = nnx.merge(network.encoder, params["encoder"], batch_stats)
            value = heads_loss(params["heads"], encoder(inputs, train=True), labels)
            return value, nnx.to_pure_dict(nnx.state(encoder, nnx.BatchStat))

        gradients, moved = jax.grad(loss, has_aux=True)(params)
        gradients["encoder"] = jax.tree.map(jnp.multiply, gradients["encoder"], trained)
        rest = protocol.momentum, protocol.weight_decay
        new_params, new_trace = {}, {}
        for name, rate in rates.items():
            new_params[name], new_trace[name] = sgd(
                params[name], trace[name], gradients[name], rate, *rest
            )
        return new_params, moved, new_trace

    @jax.jit
    def logits(params, batch_stats, images, sizes):
        encoder = nnx.merge(network.encoder, params["encoder"], batch_stats)
        features = encoder(preprocessing(images, sizes), train=False)
        return features @ params["heads"]["kernel"][0] + params["heads"]["bias"][0]

    curve = []
    for epoch in range(protocol.epochs):
        share = (1 + math.cos(math.pi * epoch / protocol.epochs)) / 2 * protocol.batch_size / 256
        rates = {"encoder": protocol.encoder_rate * share, "heads": protocol.head_rate * share}
        for batch in training_batches(train, protocol.batch_size, seed, epoch):
            params, batch_stats, trace = step(
                params, batch_stats, trace, batch[0], *_real_rows(*batch[1:]), rates
            )
        outputs, labels = over_images(
            partial(logits, params, batch_stats), test, protocol.batch_size
        )
        curve.append(logits_accuracy(outputs, labels))
        report_epoch(epoch, protocol.epochs, curve[-1]["top1"])
    return {"finetune": last_and_best(curve)}


def only_listed(subset: Subset, list_file: str) -> Subset:
    """Those images of a subset whose names a file lists, one a line, folders before them or not.

    Raises:
      UserError: no such file, a source without file names, or a name that it does not have.
    """
    chosen = np.isin(subset.rows, _listed_rows(subset.source, list_file))
    if not chosen.any():
        raise UserError(f"{list_file} lists no image of those to train on.")
    return Subset(subset.source, subset.rows[chosen], subset.labels[chosen])


def _listed_rows(source: Source, list_file: str) -> Int[np.ndarray, " n"]:
    if not os.path.isfile(list_file):
        raise UserError(f"--list_file={list_file}: there is no such file.")
    if source.paths is None:
        raise UserError("--list_file names image files, so the source must be a folder:PATH.")
    with open(list_file, encoding="utf-8") as file:
        names = [line.strip() for line in file if line.strip()]
    rows = defaultdict(list)
    for row, path in enumerate(source.paths):
        rows[os.path.basename(path)].append(row)
    found = [rows.get(os.path.basename(name), []) for name in names]
    missing = [name for name, candidates in zip(names, found, strict=True) if not candidates]
    if missing:
        raise UserError(
            f"{list_file} lists {missing[0]}, which the source does not have "
            f"({len(missing)} of {len(names)} names are missing)."
        )
    return np.array(
        [_only_row(*pair, source.paths, list_file) for pair in zip(names, found, strict=True)]
    )


def _only_row(name: str, candidates: list[int], paths: tuple[str, ...], list_file: str) -> int:
    if len(candidates) > 1:  # then the folders in the list decide
        candidates = [row for row in candidates if paths[row].endswith(f"/{name}")]
    if len(candidates) != 1:
        raise UserError(
            f"{list_file} lists {name}, and the source has several images of that name; list them "
            "with their folders, as CLASS/NAME."
        )
    return candidates[0]


def _trained_mask(network: TrainedNetwork) -> dict:
    """1 for each parameter of the encoder, 0 for those that never train (a ViT's positions)."""
    encoder = nnx.merge(network.encoder, network.params["encoder"], network.batch_stats["encoder"])
    mask = jax.tree.map(
        lambda variable: 0.0 if isinstance(variable, Frozen) else 1.0,
        nnx.state(encoder, nnx.Param),
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )
    return nnx.to_pure_dict(mask)


def _real_rows(images, sizes, labels):
    """Without the last batch's filling, which would take part in BatchNorm's statistics."""
    real = np.asarray(labels) >= 0
    if real.all():
        return images, sizes, labels
    arrays = tuple(np.asarray(array)[real] for array in (images, sizes, labels))
    mesh = create_mesh()
    place = batch_sharding(mesh) if real.sum() % mesh.size == 0 else replicated(mesh)
    return jax.device_put(arrays, place)
