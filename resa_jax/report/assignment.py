"""The assignment of a batch by a checkpoint's two networks (Figure 11), and what it says."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from resa_jax.checkpoint import read_config, read_subtree
from resa_jax.config import from_json
from resa_jax.data.augment import augment
from resa_jax.data.pipeline import evaluation_batches
from resa_jax.data.sources import Source
from resa_jax.data.view import View
from resa_jax.methods.interface import create_method
from resa_jax.paths import AnyPath
from resa_jax.training.networks import create_networks, forward


def makes_assignment(checkpoint: AnyPath) -> bool:
    """Whether the method of a checkpoint's run assigns images to each other, as ReSA does."""
    return hasattr(create_method(from_json(read_config(checkpoint), checkpoint).method), "assign")


def assignment_matrix(
    checkpoint: AnyPath, source: Source, rows: Int[np.ndarray, " m"], seed: int = 0
) -> Float[np.ndarray, "m m"]:
    """The assignment that the method makes for some images in their weak view, in train mode.

    Args:
      checkpoint: `DIR/checkpoints/STEP` of a run.
      rows: positions of the images in the source; BatchNorm's statistics are theirs.
      seed: of the view.
    """
    config = from_json(read_config(checkpoint), checkpoint)
    method: Any = create_method(config.method)  # one that has `assign`
    networks = create_networks(config, method)
    names = ("params", "batch_stats", "ema_params", "ema_batch_stats")
    state = {name: {} for name in names} | read_subtree(checkpoint, *names)
    with evaluation_batches(source, rows=rows, batch_size=len(rows)) as stream:
        batch = next(iter(stream))

    @jax.jit
    def assign(state, images, sizes):
        view = View(**config.views[0])
        data = config.data
        views = augment(jax.random.key(seed), images, sizes, (view,), data.mean, data.std)
        online, _ = forward(networks.online, state["params"], state["batch_stats"], views)
        if networks.momentum is None:
            return method.assign(online, online)
        ema = state["ema_params"], state["ema_batch_stats"]
        return method.assign(online, forward(networks.momentum, *ema, views)[0])

    return np.asarray(assign(state, batch["images"], batch["sizes"]))


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
