"""finetune-1 and finetune-10: encoder and classifier trained on a few labels."""

import math
import os
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Int

from resa_jax.data.sources import Source
from resa_jax.encoder import Encoder
from resa_jax.errors import UserError
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
from resa_jax.models.network import Network, evaluate_layers, frozen_mask, split
from resa_jax.sharding import create_mesh, replicated


def finetune(
    protocol: Any,
    encoder: Encoder,
    preprocessing: Preprocessing,
    train: Subset,
    test: Subset,
    seed: int,
) -> dict[str, dict]:
    """Trains encoder and classifier, each with its rate; BatchNorm in train mode.

    SGD with momentum, both rates times batch_size / 256 and, in epoch e of n, times
    (1 + cos(pi e / n)) / 2; the last partial batch is kept.

    Args:
      protocol: `protocols.Finetune1`, or one with its fields.

    Returns:
      "finetune": the accuracies after the last epoch and in the best one (by top-1).

    Source: resa, eval_linear.py with --weights finetune.
    """
    mesh, module = create_mesh(), Network(encoder.spec.create())
    graphdef = split(module)[0]
    heads = initial_heads(
        jax.random.key(seed), 1, encoder.num_features, int(train.labels.max()) + 1
    )
    params = {"encoder": encoder.params["encoder"], "heads": heads}
    batch_stats = {"encoder": encoder.batch_stats["encoder"]}
    params, batch_stats = jax.tree.map(jnp.copy, (params, batch_stats))  # the step donates them
    optimizer = partial(create_optimizer, protocol, frozen_mask(module))
    state = optimizer({"encoder": 0.0, "heads": 0.0}).init(params)
    params, batch_stats, state = jax.device_put((params, batch_stats, state), replicated(mesh))
    step = make_step(graphdef, TrainingView(preprocessing, protocol.crop_scale), optimizer)

    curve = []
    for epoch in range(protocol.epochs):
        share = (1 + math.cos(math.pi * epoch / protocol.epochs)) / 2 * protocol.batch_size / 256
        rates = {"encoder": protocol.encoder_rate * share, "heads": protocol.head_rate * share}
        # Filling would take part in BatchNorm's statistics.
        batches = training_batches(train, protocol.batch_size, seed, epoch, filled=False)
        for batch in batches:
            params, batch_stats, state = step(params, batch_stats, state, *batch, rates)
        forward = partial(
            evaluate_layers,
            graphdef,
            {"encoder": params["encoder"]},
            batch_stats,
            prepare=preprocessing,
        )
        features, labels = over_images(forward, test, protocol.batch_size, mesh)
        kernel, bias = np.asarray(params["heads"]["kernel"]), np.asarray(params["heads"]["bias"])
        curve.append(logits_accuracy(features["encoding"] @ kernel[0] + bias[0], labels))
        report_epoch(epoch, protocol.epochs, curve[-1]["top1"])
    return {"finetune": last_and_best(curve)}


def create_optimizer(
    protocol: Any, frozen: dict, rates: dict[str, float | Array]
) -> optax.GradientTransformation:
    """SGD for {"encoder": ..., "heads": ...}; frozen tensors are neither updated nor decayed.

    Args:
      frozen: {"encoder": a tree of bools like the encoder's parameters}.
      rates: learning rates of "encoder" and "heads".
    """
    rest = protocol.momentum, protocol.weight_decay
    labels = jax.tree.map(lambda keep: "frozen" if keep else "encoder", frozen)
    return optax.partition(
        {name: sgd(rate, *rest) for name, rate in rates.items()} | {"frozen": optax.set_to_zero()},
        labels | {"heads": "heads"},
    )


def make_step(graphdef: nnx.GraphDef, view: TrainingView, optimizer: Callable) -> Callable:
    """The jitted step: (params, batch_stats, state, key, images, sizes, labels, rates) moved."""

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params, batch_stats, state, key, images, sizes, labels, rates):
        inputs = view(key, images, sizes)

        def loss(params):
            network = nnx.merge(graphdef, {"encoder": params["encoder"]}, batch_stats)
            value = heads_loss(params["heads"], network.encoder(inputs, train=True), labels)
            return value, {"encoder": nnx.to_pure_dict(nnx.state(network.encoder, nnx.BatchStat))}

        gradients, moved = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer(rates).update(gradients, state, params)
        return optax.apply_updates(params, updates), moved, state

    return step


def balanced_share(subset: Subset, share: float) -> Subset:
    """That share of each class's images, one at least, by a fixed draw."""
    order = np.random.default_rng(0).permutation(len(subset.labels))
    chosen = []
    for label in np.unique(subset.labels):
        own = order[subset.labels[order] == label]
        chosen.append(own[: max(1, round(share * len(own)))])
    kept = np.sort(np.concatenate(chosen))
    return Subset(subset.source, subset.rows[kept], subset.labels[kept])


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
    paths = source.file_names()
    if paths is None:
        raise UserError(
            "--list_file names image files, and this source has none: give a folder:PATH, or a "
            "tfds:NAME whose records have a `file_name`, as imagenet2012's."
        )
    with open(list_file, encoding="utf-8") as file:
        names = [line.strip() for line in file if line.strip()]
    rows = defaultdict(list)
    for row, path in enumerate(paths):
        rows[os.path.basename(path)].append(row)
    found = [rows.get(os.path.basename(name), []) for name in names]
    missing = [name for name, candidates in zip(names, found, strict=True) if not candidates]
    if missing:
        raise UserError(
            f"{list_file} lists {missing[0]}, which the source does not have "
            f"({len(missing)} of {len(names)} names are missing)."
        )
    return np.array([_only_row(*pair, paths, list_file) for pair in zip(names, found, strict=True)])


def _only_row(name: str, candidates: list[int], paths: tuple[str, ...], list_file: str) -> int:
    if len(candidates) > 1:  # then the folders in the list decide
        candidates = [row for row in candidates if paths[row].endswith(f"/{name}")]
    if len(candidates) != 1:
        raise UserError(
            f"{list_file} lists {name}, and the source has several images of that name; list them "
            "with their folders, as CLASS/NAME."
        )
    return candidates[0]
