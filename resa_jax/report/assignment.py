"""The assignment of a batch by a checkpoint's two networks (Figure 11), and what it says."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from resa_jax.checkpoint import read_config, read_subtree
from resa_jax.data.augment import View, augment
from resa_jax.data.pipeline import evaluation_batches
from resa_jax.data.sources import Source
from resa_jax.methods.resa import cosine_similarity, sinkhorn_knopp
from resa_jax.training.networks import create_method, forward


def assignment_matrix(
    checkpoint: Path, source: Source, rows: Int[np.ndarray, " m"], seed: int = 0
) -> Float[np.ndarray, "m m"]:
    """The assignment that the method makes for some images in their weak view, in train mode.

    Args:
      checkpoint: `DIR/checkpoints/STEP` of a run.
      rows: positions of the images in the source; BatchNorm's statistics are theirs.
      seed: of the view.
    """
    config = ConfigDict(json.loads(read_config(checkpoint)))
    method, _ = create_method(config)
    names = ("params", "batch_stats", "ema_params", "ema_batch_stats")
    state = {name: {} for name in names} | read_subtree(checkpoint, *names)
    with evaluation_batches(source, rows=rows, batch_size=len(rows)) as stream:
        batch = next(iter(stream))
    fields = config.views[0].items()
    weak = View(**{k: tuple(v) if isinstance(v, list | tuple) else v for k, v in fields})
    views = augment(
        jax.random.key(seed),
        jnp.asarray(batch["images"]),
        jnp.asarray(batch["sizes"]),
        (weak,),
        config.data.mean,
        config.data.std,
    )
    (h,), (z,), _ = forward(method.online, state["params"], state["batch_stats"], views)
    target_h, target_z = h, z
    if method.momentum is not None:
        (target_h,), (target_z,), _ = forward(
            method.momentum, state["ema_params"], state["ema_batch_stats"], views
        )
    pair = {"encoding": (h, target_h), "embedding": (z, target_z), "momentum": (target_h,) * 2}
    return np.asarray(sinkhorn_knopp(cosine_similarity(*pair[method.assignment]), method.epsilon))


def assignment_scores(
    assignment: Float[np.ndarray, "m m"], labels: Int[np.ndarray, " m"] | None
) -> dict[str, float]:
    """Numbers that describe an assignment.

    Returns:
      entropy: mean entropy of a row, in nats; ln m when uniform.
      diagonal: mean weight that an image gives itself.
      same_class: share of the weight on pairs of one class, an image with itself included, and
      same_class_by_chance: the share of such pairs; both only with labels.
    """
    logs = np.log(np.maximum(assignment, np.finfo(np.float32).tiny))
    scores = {
        "entropy": float(-(assignment * logs).sum(1).mean()),
        "diagonal": float(np.diagonal(assignment).mean()),
    }
    if labels is not None:
        same = labels[:, None] == labels[None]
        scores["same_class"] = float((assignment * same).sum() / assignment.sum())
        scores["same_class_by_chance"] = float(same.mean())
    return scores
